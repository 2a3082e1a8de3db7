"""Checkpoints: whole or not there, verified, of this config, the last two kept."""

import json

import numpy as np
import pytest

from harness.checkpoints import Checkpoints
from harness.errors import ResultsError

CONFIG = {"seed": 1, "length": 5}
ARRAYS = [np.arange(6, dtype=np.float32).reshape(2, 3), np.asarray(7)]


def saved(folder, *steps):
    checkpoints = Checkpoints(folder, CONFIG)
    for step in steps:
        checkpoints.save(step, [array + step for array in ARRAYS], {"step": step})
    return checkpoints


def test_a_folder_without_checkpoints_gives_none(tmp_path):
    assert Checkpoints(tmp_path / "none", CONFIG).load() is None


def test_the_newest_checkpoint_returns_bit_for_bit(tmp_path):
    checkpoint = saved(tmp_path, 9, 10, 100).load()
    assert checkpoint.state == {"step": 100}
    for array, expected in zip(checkpoint.arrays, ARRAYS, strict=True):
        assert array.dtype == (expected + 100).dtype
        assert np.array_equal(array, expected + 100)


def test_the_last_two_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_000000002.json",
        "step_000000002.npz",
        "step_000000003.json",
        "step_000000003.npz",
    ]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "record"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, damage):
    checkpoints = saved(tmp_path, 1, 2)
    arrays, record = tmp_path / "step_000000002.npz", tmp_path / "step_000000002.json"
    content = bytearray(arrays.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        arrays.write_bytes(content)
    elif damage == "truncated":
        arrays.write_bytes(content[:-10])
    elif damage == "missing":
        arrays.unlink()
    else:
        record.write_text(record.read_text()[:-5])
    assert checkpoints.load().state == {"step": 1}
    assert "step_000000002 is damaged" in capsys.readouterr().err


def test_checkpoints_of_another_config_are_refused_with_the_difference(tmp_path):
    saved(tmp_path, 1)
    with pytest.raises(ResultsError, match=r"length 5 where this run has 6"):
        Checkpoints(tmp_path, {**CONFIG, "length": 6}).load()


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
    with pytest.raises(ValueError, match="allow_pickle"):
        Checkpoints(tmp_path, CONFIG).save(1, [np.array([{}], dtype=object)], {})


def test_the_record_is_plain_json(tmp_path):
    saved(tmp_path, 1)
    record = json.loads((tmp_path / "step_000000001.json").read_text())
    assert record["config"] == CONFIG and len(record["sha256"]) == 64


def test_removing_leaves_no_folder(tmp_path):
    saved(tmp_path / "run", 1).remove()
    assert not (tmp_path / "run").exists()
