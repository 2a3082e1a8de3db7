"""A process does the runs that are still to be done and that nobody else is at."""

import json
from contextlib import closing, nullcontext
from dataclasses import replace

import numpy as np
import pytest

from harness import queue
from harness.checkpoints import Checkpoints, checkpoint_folder
from harness.errors import LockLostError, ResultsError
from harness.locks import Lock, this_process
from harness.outcomes import NOT_NEEDED, UNFINISHED
from harness.process import Stop
from harness.queue import claimed_runs, run_lock
from harness.records import Run, Status, outcome, run_state, save_run
from verdict.results import load_a5_results


@pytest.fixture
def runs(tmp_path):
    files = [
        tuple(tmp_path / "outputs_A5" / f"RNN_{length}_1_0.0001_8_{x}_run_1.npy" for x in X)
        for length in (3, 4, 5)
    ]
    return [Run(f"run {i}", pair, {"length": 3 + i}) for i, pair in enumerate(files)]


X = ("steps", "acc")


def finish(run, outcome="solved"):
    save_run(run, [np.arange(2), np.ones(2)], {"outcome": outcome}, {})


def claims(runs, wait=False, overwrite=False, stop=None, display=None):
    display = display or (lambda run: nullcontext(lambda step, values: None))
    return closing(claimed_runs(runs, stop or Stop(), display, overwrite=overwrite, wait=wait))


def test_each_run_is_locked_while_the_caller_is_at_it_and_free_after(runs):
    with claims(runs) as todo:
        for run in todo:
            assert run_lock(run).holder() is not None
            others = [other for other in runs if other != run]
            assert [run_lock(other).holder() for other in others] == [None, None]
            finish(run)
    assert all(run_lock(run).holder() is None for run in runs)


def test_an_error_while_at_a_run_gives_its_lock_back(runs):
    with pytest.raises(FloatingPointError), claims(runs) as todo:
        for _ in todo:
            raise FloatingPointError
    assert run_lock(runs[0]).holder() is None


def test_a_run_that_another_holds_is_passed_over_by_its_owners_name(runs, capsys):
    other = run_lock(runs[1])
    other.try_acquire()
    with claims(runs) as todo:
        assert [run.label for run in todo] == ["run 0", "run 2"]
    assert f"run 1: passed over, held by {this_process()}" in capsys.readouterr().out


def test_others_runs_are_waited_for_and_done_here_only_if_they_were_not_there(runs, monkeypatch):
    finishes, gives_up = run_lock(runs[0]), run_lock(runs[1])
    for lock in (finishes, gives_up):
        lock.try_acquire()

    def meanwhile(seconds):
        finish(runs[0])
        for lock in (finishes, gives_up):
            lock.release()

    monkeypatch.setattr(queue.time, "sleep", meanwhile)
    with claims(runs, wait=True) as todo:
        assert [run.label for run in todo] == ["run 2", "run 1"]


def test_a_run_that_others_finished_since_the_plan_is_not_repeated(runs, capsys):
    finish(runs[0])
    with claims(runs) as todo:
        assert [run.label for run in todo] == ["run 1", "run 2"]
    assert "run 0: done by another process meanwhile" in capsys.readouterr().out
    with claims(runs, overwrite=True) as todo:
        assert [run.label for run in todo] == ["run 0", "run 1", "run 2"]


def test_overwriting_starts_anew_whatever_the_config_of_the_checkpoint(runs):
    old = Checkpoints(checkpoint_folder(runs[0]), {"length": 7})
    old.save(1, {"place": np.ones(1)}, {})
    with claims(runs[:1], overwrite=True) as todo:
        run = next(todo)
        assert Checkpoints(checkpoint_folder(run), run.config).load({}) is None


def test_two_commands_that_overwrite_do_a_run_once(runs, monkeypatch):
    for run in runs:
        finish(run)
    other = run_lock(runs[0])
    other.try_acquire()

    def meanwhile(seconds):
        finish(runs[0])  # by the process that held it
        other.release()

    monkeypatch.setattr(queue.time, "sleep", meanwhile)
    with claims(runs, wait=True, overwrite=True) as todo:
        finish(runs[2])  # between the command's start and its turn
        assert [run.label for run in todo] == ["run 1"]


def test_a_run_that_another_command_began_to_overwrite_and_left_is_done_anew(runs):
    finish(runs[0])
    with claims(runs[:1], overwrite=True) as todo:
        finish(runs[0], UNFINISHED)
        assert [run.label for run in todo] == ["run 0"]


def test_files_of_another_config_that_came_since_the_plan_are_refused(runs):
    finish(replace(runs[0], config={"length": 7}))
    with pytest.raises(ResultsError, match="length 7 where this run has 3"), claims(runs) as todo:
        list(todo)


def test_a_run_that_became_needless_says_so_in_a_record(runs, capsys):
    needless = replace(runs[0], not_needed=lambda: "1 blocks solve length 3")
    with claims([needless]) as todo:
        assert list(todo) == []
    assert capsys.readouterr().out == "run 0: not needed, 1 blocks solve length 3\n"
    record = json.loads(needless.record.read_text())
    assert record["outcome"] == NOT_NEEDED and record["config"] == needless.config
    assert record["not_needed"] == "1 blocks solve length 3"
    assert run_state(needless).status is Status.NOT_NEEDED
    # Once the reason is gone it is a run to do like any other.
    assert run_state(runs[0]).status is Status.MISSING
    results = load_a5_results(runs[0].record.parents[1])
    assert results.curves == [] and results.problems == []


@pytest.mark.parametrize("results_before", [False, True])
def test_overwriting_does_a_needless_run_only_to_replace_its_result(runs, results_before):
    needless = replace(runs[1], not_needed=lambda: "why" if outcome(runs[0]) == "solved" else "")
    for run in (runs[0], needless) if results_before else ():
        finish(run, "not solved")
    with claims([runs[0], needless], overwrite=True) as todo:
        for run in todo:
            finish(run)
    assert outcome(runs[0]) == "solved"
    assert run_state(needless).status is (Status.DONE if results_before else Status.NOT_NEEDED)
    assert outcome(needless) == ("solved" if results_before else None)


def test_a_needless_run_that_was_unfinished_keeps_its_results_so_far(runs):
    finish(runs[0], UNFINISHED)
    before = {path: path.read_bytes() for path in runs[0].files}
    needless = replace(runs[0], not_needed=lambda: "why")
    with claims([needless]) as todo:
        assert list(todo) == []
    assert {path: path.read_bytes() for path in runs[0].files} == before
    record = json.loads(needless.record.read_text())
    assert (record["outcome"], record["not_needed"]) == (UNFINISHED, "why")
    assert run_state(needless).status is Status.NOT_NEEDED


def test_a_run_whose_lock_was_taken_saves_nothing(runs):
    with claims(runs[:1]) as todo:
        run = next(todo)
        finish(run, UNFINISHED)
        before = run.record.read_bytes()
        taker = Lock(run.record.parents[1] / "locks", run.record.stem)
        taker.path.unlink()
        assert taker.try_acquire() is None
        with pytest.raises(LockLostError, match="went to process"):
            finish(run)
        assert run.record.read_bytes() == before
    assert taker.holder() is not None


def test_what_a_killed_process_was_writing_is_removed(runs):
    folder = runs[0].record.parent
    folder.mkdir()
    other = folder / f".{runs[1].record.name}.0123.tmp"
    for path in (folder / f".{runs[0].files[1].name}.4567.tmp", other):
        path.touch()
    with claims(runs[:1]) as todo:
        next(todo)
        assert list(folder.iterdir()) == [other]


def test_a_stop_between_runs_ends_them_with_no_lock_left(runs):
    stop, done = Stop(), []
    with pytest.raises(KeyboardInterrupt), claims(runs, stop=stop) as todo:
        for run in todo:
            done.append(run.label)
            stop.number = 15
    assert done == ["run 0"]
    assert [run_lock(run).holder() for run in runs] == [None, None, None]


def test_ctrl_c_between_the_taking_of_a_lock_and_its_use_leaves_it_free(runs, monkeypatch):
    take, taken = Lock.try_acquire, []

    def interrupted_at_the_end(lock):
        taken.append(lock)
        assert take(lock) is None
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Lock, "try_acquire", interrupted_at_the_end)
        with pytest.raises(KeyboardInterrupt), claims(runs) as todo:
            next(todo)
    assert len(taken) == 1 and not taken[0].path.exists()
    assert run_lock(runs[0]).try_acquire() is None
