"""What the results folder says of a run, and what a record says of a result."""

import hashlib
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.lcde_toy import plan
from harness import atomic_files, records
from harness.errors import ResultFileError, ResultsError
from harness.records import (
    UNFINISHED,
    Run,
    RunContext,
    RunState,
    Status,
    check_writable,
    latest_metric,
    outcome,
    read_record,
    run_state,
    runs_to_do,
    save_not_needed,
    save_run,
    steps_to_keep,
)

ORIGIN = {"commit": "abc"}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path) -> Run:
    """A run of two files that was done."""
    files = (tmp_path / "out" / "steps.npy", tmp_path / "out" / "rmse.npy")
    run = Run("a run", files, {"seed": 1, "rtol": 1e-2, "solver": "tsit5"})
    save_run(run, [np.arange(3), np.zeros(3)], {"wall_time_s": 1.5}, ORIGIN)
    return run


def test_a_run_is_done_once_its_arrays_and_record_are_there(run):
    assert run_state(run).status is Status.DONE
    assert run.record.name == "steps.json"
    assert np.array_equal(np.load(run.files[0]), np.arange(3))
    record = json.loads(run.record.read_text())
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in run.files}
    assert record == {
        "config": run.config,
        "files": digests,
        "wall_time_s": 1.5,
        "provenance": {"started": run.context.started, **ORIGIN},
    }


@pytest.mark.parametrize("gone", [0, 1])
def test_a_run_is_missing_while_one_of_its_files_is(run, gone):
    run.files[gone].unlink()
    assert run_state(run).status is Status.MISSING


def test_a_file_of_another_config_is_a_conflict_that_names_what_differs(run):
    other = replace(run, config={"seed": 2, "rtol": 1e-2, "atol": 1e-3})
    state = run_state(other)
    assert state.status is Status.CONFLICT
    assert str(run.files[0]) in state.reason and "rtol" not in state.reason
    for words in (
        "seed 1 where this run has 2",
        "solver 'tsit5' where this run has 'nothing'",
        "atol 'nothing' where this run has 0.001",
    ):
        assert words in state.reason


def test_a_file_without_a_record_is_a_conflict(run):
    run.record.unlink()
    state = run_state(run)
    assert state.status is Status.CONFLICT and "has no record (steps.json)" in state.reason


@pytest.mark.parametrize(
    "record",
    [
        b'{"config": {',
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b'{"config": {}}',
        b'{"config": "seed", "files": {}}',
        b'{"config": {"max_steps": "2"}, "files": {}}',
        b'{"config": {"epochs": null}, "files": {}}',
        b'{"config": {}, "files": {"../steps.npy": ""}}',
        b'{"config": {}, "files": {}, "wall_time_s": "3 min"}',
        b'{"config": {}, "files": {}, "wall_time_s": NaN}',
        b'{"config": {}, "files": {}, "history": {"rmse": [0.1]}}',
        b'{"config": {}, "files": {}, "history": {"steps": [0, 1], "rmse": [0.1]}}',
        b'{"config": {}, "files": {}, "provenance": {"machine": "fast"}}',
    ],
)
def test_an_odd_record_is_a_conflict_that_says_what_is_odd(run, record):
    run.record.write_bytes(record)
    with pytest.raises(ResultFileError, match=r"not a usable run record \(.+\)"):
        read_record(run.record)
    state = run_state(run)
    assert state.status is Status.CONFLICT
    assert state.reason.startswith(f"{run.record}: not a usable run record (")
    assert latest_metric(run) == ""


def test_a_folder_in_the_place_of_a_record_or_a_file_is_a_conflict(run):
    for path in (run.files[1], run.record):
        path.unlink()
        path.mkdir()
        state = run_state(run)
        assert (state.status, str(path) in state.reason) == (Status.CONFLICT, True)


def test_a_record_keeps_what_it_holds_beyond_what_is_checked(run):
    save_run(run, [np.arange(3)] * 2, {"mse": 0.5, "features_s": 3}, ORIGIN | {"backend": "cpp"})
    content = read_record(run.record).model_dump(exclude_unset=True)
    assert content == json.loads(run.record.read_text())


@pytest.mark.parametrize("changed", [0, 1])
def test_a_file_that_changed_after_its_record_is_a_conflict(run, changed):
    np.save(run.files[changed], np.ones(3))
    state = run_state(run)
    assert state.status is Status.CONFLICT
    assert f"{run.files[changed]} is not the file its record describes" in state.reason


def test_only_missing_runs_are_to_be_done(run, tmp_path):
    missing = replace(run, files=(tmp_path / "other.npy",))
    assert runs_to_do([run, missing], overwrite=False) == [missing]
    assert runs_to_do([run, missing], overwrite=True) == [run, missing]


def test_every_conflict_is_named_and_only_overwriting_passes_it(run, tmp_path):
    other = replace(run, config={"seed": 2})
    stray = Run("stray", (tmp_path / "stray.npy",), {})
    np.save(stray.files[0], np.ones(3))
    before = content(tmp_path)
    with pytest.raises(ResultsError) as caught:
        runs_to_do([other, stray], overwrite=False)
    for words in (str(run.files[0]), "seed", str(stray.files[0]), "--overwrite", "--results-dir"):
        assert words in str(caught.value)
    assert content(tmp_path) == before
    assert runs_to_do([other, stray], overwrite=True) == [other, stray]


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_full_disk_while_saving_leaves_the_former_result_whole(run, monkeypatch, nth):
    before, syncs = content(run.record.parent), iter(range(1, 9))

    def fsync(descriptor: int) -> None:
        if next(syncs) == nth:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_files.os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        save_run(replace(run, config={"seed": 2}), [np.ones(3), np.ones(3)], {}, ORIGIN)
    assert content(run.record.parent) == before
    assert run_state(run).status is Status.DONE


class Crash(BaseException):
    pass


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
@pytest.mark.parametrize("before", ["nothing", UNFINISHED, "another result"])
def test_a_crash_between_two_names_leaves_a_run_to_do_and_no_conflict(
    run, tmp_path, monkeypatch, nth, before
):
    mine = replace(run, files=tuple(tmp_path / "mine" / p.name for p in run.files))
    arrays = [np.ones(3), np.ones(3)]
    if before != "nothing":
        save_run(mine, [np.zeros(3), np.zeros(3)], {"outcome": before}, ORIGIN)
    replacements, rename = iter(range(1, 9)), Path.replace

    def interrupted(path: Path, target: Path) -> None:
        if next(replacements) == nth:
            raise Crash
        rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(Crash):
            save_run(mine, arrays, {"outcome": "finished"}, ORIGIN)
    untouched = nth == 1 and before == "another result"
    assert run_state(mine).status is (Status.DONE if untouched else Status.MISSING)
    save_run(mine, arrays, {"outcome": "finished"}, ORIGIN)
    assert run_state(mine).status is Status.DONE
    assert outcome(mine) == "finished"


def test_results_of_an_unfinished_run_are_there_but_it_is_still_to_do(run):
    save_run(run, [np.ones(2), np.ones(2)], {"outcome": UNFINISHED}, ORIGIN)
    assert run_state(run).status is Status.MISSING
    assert runs_to_do([run], overwrite=False) == [run]
    assert outcome(run) is None
    assert np.array_equal(np.load(run.files[0]), np.ones(2))


def test_unfinished_results_of_another_config_are_in_the_way(run):
    save_run(run, [np.ones(2), np.ones(2)], {"outcome": UNFINISHED}, ORIGIN)
    assert run_state(replace(run, config={"seed": 2})).status is Status.CONFLICT


SCHEDULED = {"seed": 1, "max_steps": 100, "eval_interval": 10}


@pytest.fixture
def ended(tmp_path):
    """Make a run of `SCHEDULED` that ended with an outcome; returns it with another schedule."""

    def make(outcome, **schedule) -> Run:
        files = (tmp_path / "scheduled" / "steps.npy", tmp_path / "scheduled" / "acc.npy")
        run = Run("a run", files, SCHEDULED)
        save_run(run, [np.arange(3)] * 2, {"outcome": outcome, "history": {"steps": [0]}}, ORIGIN)
        return replace(run, config={**SCHEDULED, **schedule})

    return make


LONGER, OFTENER, SHORTER = {"max_steps": 200}, {"eval_interval": 5}, {"max_steps": 50}


@pytest.mark.parametrize("ending", ["solved", "diverged: the loss was nan at step 3"])
@pytest.mark.parametrize("schedule", [LONGER, OFTENER, LONGER | OFTENER])
def test_a_run_that_ended_by_itself_is_done_under_any_schedule_that_ends_later(
    ended, ending, schedule
):
    run = ended(ending, **schedule)
    state = run_state(run)
    assert state.status is Status.DONE
    assert all(
        f"{k} {SCHEDULED[k]} where this run has {v}" in state.reason for k, v in schedule.items()
    )
    assert outcome(run) == ending


def test_the_plan_says_of_a_diverged_run_that_it_diverged(ended):
    words = "diverged: the loss was nan at step 3"
    assert run_state(ended(words)) == RunState(ended(words), Status.DONE, words)


@pytest.mark.parametrize("schedule", [LONGER, LONGER | OFTENER], ids=["longer", "and oftener"])
@pytest.mark.parametrize("ending", ["finished", "not solved"])
def test_a_run_whose_files_end_earlier_is_to_be_done_and_they_stay_meanwhile(
    ended, ending, schedule
):
    run = ended(ending, **schedule)
    assert steps_to_keep(run) == 0
    state = run_state(run)
    assert state.status is Status.MISSING
    assert "max_steps 100 where this run has 200" in state.reason
    needless = run_state(replace(run, not_needed=lambda: "why"))
    assert (needless.status, needless.reason) == (Status.NOT_NEEDED, "why")


@pytest.mark.parametrize(
    ("ending", "changes"),
    [
        ("finished", SHORTER),
        ("finished", OFTENER),
        ("finished", SHORTER | OFTENER),
        ("solved", SHORTER),
        ("solved", LONGER | {"seed": 2}),
        ("solved", LONGER | {"stop_accuracy": 0.9}),
        (UNFINISHED, SHORTER),
        (UNFINISHED, LONGER | OFTENER),
    ],
)
def test_files_that_a_longer_schedule_would_not_have_made_are_in_the_way(ended, ending, changes):
    assert run_state(ended(ending, **changes)).status is Status.CONFLICT


def test_an_interrupted_run_goes_on_under_a_longer_schedule(ended):
    run = ended(UNFINISHED, **LONGER)
    assert run_state(run).status is Status.MISSING
    assert steps_to_keep(run) == 0


@pytest.mark.parametrize("ending", ["finished", "solved"])
def test_files_that_end_earlier_and_changed_after_their_record_are_in_the_way(ended, ending):
    run = ended(ending, **LONGER)
    np.save(run.files[0], np.ones(3))
    assert run_state(run).status is Status.CONFLICT


def test_a_record_of_files_that_end_earlier_is_kept_where_going_on_is_not_needed(ended):
    run = ended("finished", **LONGER)
    before = json.loads(run.record.read_text())
    save_not_needed(run, "why", ORIGIN)
    assert json.loads(run.record.read_text()) == {**before, "not_needed": "why"}


def test_each_run_has_its_own_start(run, monkeypatch):
    for day in (1, 2):
        clock = SimpleNamespace(now=lambda zone, day=day: datetime(2024, 5, day, 3, tzinfo=zone))
        monkeypatch.setattr(records, "datetime", clock)
        save_run(replace(run, context=RunContext()), [np.ones(3)] * 2, {}, ORIGIN)
        started = read_record(run.record).provenance.started
        assert started == f"2024-05-0{day}T03:00:00+00:00"


def test_records_of_earlier_versions_are_read_by_the_names_of_today(run):
    record = json.loads(run.record.read_text())
    record |= {"outcome": "under way", "history": {"steps": [0], "val_accs": [0.5]}}
    run.record.write_text(json.dumps(record))
    assert run_state(run).status is Status.MISSING
    assert latest_metric(run) == "accuracy 0.5000 at step 0"


def test_a_missing_run_that_is_not_needed_is_not_to_be_done(run, tmp_path):
    elsewhere = (tmp_path / "other.npy",)
    needless = replace(run, files=elsewhere, not_needed=lambda: "a shallower one solves it")
    state = run_state(needless)
    assert (state.status, state.reason) == (Status.NOT_NEEDED, "a shallower one solves it")
    assert runs_to_do([needless], overwrite=False) == []
    assert run_state(replace(run, not_needed=lambda: "why")).status is Status.DONE


def test_a_record_never_holds_what_json_cannot(run):
    before = content(run.record.parent)
    with pytest.raises(ValueError, match="JSON"):
        save_run(run, [np.ones(3), np.ones(3)], {"mse": float("nan")}, ORIGIN)
    with pytest.raises(ValueError, match="shorter"):
        save_run(run, [np.ones(3)], {}, ORIGIN)
    assert content(run.record.parent) == before


def test_a_results_folder_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_file_in_the_way_of_the_results_folder_is_named(tmp_path, folder):
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match=f"the folder {tmp_path / folder} cannot be"):
        check_writable(tmp_path / folder)


def test_a_read_only_results_folder_is_named(tmp_path):
    tmp_path.chmod(0o555)
    try:
        (tmp_path / "probe").touch()
    except PermissionError:
        with pytest.raises(ResultsError, match=f"{tmp_path} cannot be written: Permission denied"):
            check_writable(tmp_path)
    else:
        pytest.skip("this user may write to read-only folders")
    finally:
        tmp_path.chmod(0o755)


def test_the_toy_plan_has_one_run_for_each_dimension_and_number_under_the_released_names(
    toy_config, tmp_path
):
    runs = plan(toy_config(runs=2), tmp_path)
    assert [run.label for run in runs] == ["2D run 0", "2D run 1", "3D run 0", "3D run 1"]
    assert runs[3].files == (tmp_path / "outputs_toy" / "lin_cde_mse_3_run_1.npy",)
    assert runs[3].config["input_dim"] == 3 and runs[3].config["run"] == 1


def test_how_many_runs_are_asked_for_is_no_part_of_what_a_run_is(toy_config, tmp_path):
    (one,) = plan(toy_config(runs=1, input_dims=[2], results_dir="a"), tmp_path)
    assert one == plan(toy_config(), tmp_path)[0]
    assert one != plan(toy_config(rtol=1e-3), tmp_path)[0]
