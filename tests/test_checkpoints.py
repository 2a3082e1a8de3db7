"""Checkpoints: whole or not there, verified, of this config, the last two kept."""

import hashlib
import json
import zipfile

import numpy as np
import pytest

from harness.checkpoints import FORMAT, STATE, Checkpoints
from harness.errors import ResultsError

CONFIG = {"seed": 1, "length": 5}
ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.asarray(7)}


def saved(folder, *steps):
    checkpoints = Checkpoints(folder, CONFIG)
    for step in steps:
        checkpoints.save(
            step, {name: array + step for name, array in ARRAYS.items()}, {"step": step}
        )
    return checkpoints


def test_a_folder_without_checkpoints_gives_none(tmp_path):
    assert Checkpoints(tmp_path / "none", CONFIG).load(ARRAYS) is None


def test_the_newest_checkpoint_returns_bit_for_bit(tmp_path):
    checkpoint = saved(tmp_path, 9, 10, 100).load(ARRAYS)
    assert checkpoint.state == {"step": 100}
    assert list(checkpoint.arrays) == list(ARRAYS)
    for name, expected in ARRAYS.items():
        assert checkpoint.arrays[name].dtype == expected.dtype
        assert np.array_equal(checkpoint.arrays[name], expected + 100)


def test_the_last_two_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_000000002.npz",
        "step_000000003.npz",
    ]


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "empty":
        content.clear()
    elif how == "truncated":
        del content[-10:]
    else:
        place = {"arrays": content.index(b"NUMPY") + 150, "state": content.index(b'"step"') + 8}
        place |= {"digest": len(content) - 1, "directory": len(content) - 80}
        content[place[how]] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["empty", "truncated", "arrays", "state", "digest", "directory"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, how):
    checkpoints = saved(tmp_path, 1, 2)
    damage(tmp_path / "step_000000002.npz", how)
    assert checkpoints.load(ARRAYS).state == {"step": 1}
    assert f"checkpoint {tmp_path / 'step_000000002.npz'} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("like", "difference"),
    [
        (
            {"a.weight": np.zeros((3, 2), np.float32)},
            r"float32 \(2, 3\) as the array a.weight where ",
        ),
        ({"a.weight": np.zeros((2, 3))}, r"a.weight where this run has float64 \(2, 3\)"),
        ({"more": np.zeros(1)}, r"nothing as the array more where this run has float64 \(1,\)"),
        ({"step": None}, r"int64 \(\) as the array step where this run has nothing"),
    ],
)
def test_other_arrays_than_the_run_has_are_refused_by_name(tmp_path, like, difference):
    expected = {name: array for name, array in (ARRAYS | like).items() if array is not None}
    with pytest.raises(ResultsError, match=difference):
        saved(tmp_path, 1).load(expected)


def test_another_format_is_refused_by_number(tmp_path, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr("harness.checkpoints.FORMAT", FORMAT + 1)
        checkpoints = saved(tmp_path, 1)
    with pytest.raises(
        ResultsError, match=f"format {FORMAT + 1} where this version reads {FORMAT}"
    ):
        checkpoints.load(ARRAYS)


def test_the_two_files_of_an_earlier_format_are_refused(tmp_path):
    np.savez(tmp_path / "step_000000001.npz", np.ones(3))
    (tmp_path / "step_000000001.json").write_text('{"format": 2, "config": {}, "state": {}}')
    with pytest.raises(ResultsError, match="a format before 3 where this version reads 3"):
        Checkpoints(tmp_path, CONFIG).load(ARRAYS)


def test_checkpoints_of_another_config_are_refused_with_the_difference(tmp_path):
    saved(tmp_path, 1)
    with pytest.raises(ResultsError, match=r"length 5 where this run has 6"):
        Checkpoints(tmp_path, {**CONFIG, "length": 6}).load(ARRAYS)


SCHEDULE = {"max_steps": 100, "eval_interval": 10}


@pytest.mark.parametrize("schedule", [SCHEDULE, SCHEDULE | {"max_steps": 200}])
def test_a_schedule_that_ends_later_goes_on_from_the_checkpoint(tmp_path, schedule):
    Checkpoints(tmp_path, CONFIG | SCHEDULE).save(1, ARRAYS, {"step": 1})
    assert Checkpoints(tmp_path, CONFIG | schedule).load(ARRAYS).state == {"step": 1}


def test_a_schedule_that_ends_earlier_is_refused(tmp_path):
    Checkpoints(tmp_path, CONFIG | SCHEDULE).save(1, ARRAYS, {})
    with pytest.raises(ResultsError, match="max_steps 100 where this run has 50"):
        Checkpoints(tmp_path, CONFIG | SCHEDULE | {"max_steps": 50}).load(ARRAYS)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("max_steps", [100, 200])
def test_with_another_eval_interval_it_starts_anew_and_says_so(tmp_path, capsys, max_steps):
    Checkpoints(tmp_path / "run", CONFIG | SCHEDULE).save(90, ARRAYS, {})
    other = CONFIG | {"max_steps": max_steps, "eval_interval": 5}
    assert Checkpoints(tmp_path / "run", other).load(ARRAYS) is None
    said = capsys.readouterr().out
    assert "starts at step 0" in said and "eval_interval 10 where this run has 5" in said
    # Else the next ones, of lower steps, would be dropped as the oldest.
    assert not (tmp_path / "run").exists()


def test_a_finished_run_keeps_one_and_no_temporary_file(tmp_path):
    checkpoints = saved(tmp_path, 1, 2)
    (tmp_path / ".step_000000003.npz.0123.tmp").touch()
    checkpoints.keep(1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000002.npz"]


def test_a_failed_save_leaves_the_checkpoints_as_they_were(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("harness.atomic_files.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, ARRAYS, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def full_disk(descriptor):
    del descriptor
    raise OSError(28, "No space left on device")


def test_objects_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="Object arrays"):
        Checkpoints(tmp_path, CONFIG).save(1, {"objects": np.array([{}], dtype=object)}, {})
    assert list(tmp_path.iterdir()) == []


def test_any_reader_of_zip_files_and_arrays_can_read_it(tmp_path):
    saved(tmp_path, 1)
    path = tmp_path / "step_000000001.npz"
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read(STATE))["config"] == CONFIG
        rest = path.read_bytes().removesuffix(archive.comment)
        assert archive.comment == hashlib.sha256(rest).hexdigest().encode()
    with np.load(path, allow_pickle=False) as arrays:
        assert np.array_equal(arrays["a.weight"], ARRAYS["a.weight"] + 1)


def test_the_same_checkpoint_has_the_same_bytes(tmp_path):
    for folder in (tmp_path / "one", tmp_path / "two"):
        saved(folder, 1)
    one, two = sorted(tmp_path.glob("*/*.npz"))
    assert one.read_bytes() == two.read_bytes()


def test_removing_leaves_no_folder(tmp_path):
    saved(tmp_path / "run", 1).remove()
    assert not (tmp_path / "run").exists()


def test_what_is_kept_is_read_for_just_its_config_and_left_as_it_is(tmp_path):
    config = {"seed": 1, "max_steps": 10}
    checkpoints = Checkpoints(tmp_path, config)
    assert checkpoints.kept() is None
    for step in (3, 4):
        checkpoints.save(step, {"x": np.full(2, step)}, {"step": step})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept = Checkpoints(tmp_path, config).kept()
    assert kept.arrays["x"].tolist() == [4, 4] and kept.state == {"step": 4}
    for other in ({**config, "max_steps": 11}, {**config, "seed": 2}):
        assert Checkpoints(tmp_path, other).kept() is None
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
