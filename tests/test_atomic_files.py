"""A file is whole or as it was before, whatever goes wrong on the way."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from harness import atomic_files
from harness.atomic_files import atomic_write, npy_bytes, write_together


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def disk_full_at_sync(monkeypatch):
    """Make the n-th sync to disk fail as a full disk does."""

    def arm(n: int) -> None:
        syncs = iter(range(1, 1000))

        def fsync(descriptor: int) -> None:
            if next(syncs) == n:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(atomic_files.os, "fsync", fsync)

    return arm


@pytest.fixture
def small_disk(tmp_path, mount_disk):
    """A file system of 64 KiB."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mount_disk(folder, 64)
    return folder


def test_text_is_written_as_utf8_with_line_feeds_in_a_folder_that_is_made(tmp_path):
    path = tmp_path / "new" / "folder" / "text"
    with atomic_write(path, "w") as handle:
        handle.write("Φ\n")
    assert path.read_bytes() == "Φ\n".encode()


def test_nothing_appears_under_the_name_before_the_block_ends(tmp_path):
    path = tmp_path / "result"
    path.write_bytes(b"old")
    with atomic_write(path) as handle:
        handle.write(b"new")
        handle.flush()
        assert path.read_bytes() == b"old"
    assert content(tmp_path) == {"result": b"new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [{}, {"result": b"old"}])
def test_an_error_in_the_block_changes_nothing(tmp_path, error, before):
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(error), atomic_write(tmp_path / "result") as handle:
        handle.write(b"half")
        raise error
    assert content(tmp_path) == before


def save(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as handle:
        handle.write(npy_bytes(array))


def test_a_full_disk_at_the_last_moment_changes_nothing(tmp_path, disk_full_at_sync):
    path = tmp_path / "array.npy"
    save(path, np.zeros(3))
    before = content(tmp_path)
    disk_full_at_sync(1)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        save(path, np.ones(3))
    assert content(tmp_path) == before


def test_a_disk_that_is_really_full_changes_nothing(small_disk):
    path = small_disk / "array.npy"
    save(path, np.zeros(3))
    before = content(small_disk)
    with pytest.raises(OSError, match="No space left"):
        save(path, np.ones(100_000))
    with pytest.raises(OSError, match="No space left"):
        write_together(list({path: b"new", small_disk / "other": bytes(100_000)}.items()))
    assert content(small_disk) == before


def test_an_array_comes_back_and_objects_are_refused(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save(tmp_path / "array.npy", array)
    loaded = np.load(tmp_path / "array.npy", allow_pickle=False)
    assert loaded.dtype == array.dtype and np.array_equal(loaded, array)
    with pytest.raises(ValueError, match="Object arrays"):
        save(tmp_path / "array.npy", np.array([{}]))
    assert np.array_equal(np.load(tmp_path / "array.npy"), array)


def test_files_written_together_all_appear(tmp_path):
    write_together(list({tmp_path / "a": b"1", tmp_path / "sub" / "b": b"2"}.items()))
    assert content(tmp_path) == {"a": b"1", "b": b"2"}


@pytest.mark.parametrize("nth", [1, 2])
def test_files_written_together_stay_as_they_were_when_one_does_not_fit(
    tmp_path, disk_full_at_sync, nth
):
    (tmp_path / "a").write_bytes(b"old")
    disk_full_at_sync(nth)
    with pytest.raises(OSError, match="No space left"):
        write_together(list({tmp_path / "a": b"new", tmp_path / "b": b"new"}.items()))
    assert content(tmp_path) == {"a": b"old"}


def test_files_written_together_stay_as_they_were_when_a_folder_cannot_be_made(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(OSError, match="a"):
        write_together(list({tmp_path / "b": b"new", tmp_path / "a" / "c": b"new"}.items()))
    assert content(tmp_path) == {"a": b"old"}


def test_files_written_together_stay_as_they_were_when_a_folder_has_the_name(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b").mkdir()
    with pytest.raises(IsADirectoryError):
        write_together(list({tmp_path / "a": b"new", tmp_path / "b": b"new"}.items()))
    assert content(tmp_path) == {"a": b"old"}


def test_the_name_changes_only_after_the_bytes_are_on_disk(tmp_path, monkeypatch):
    paths = [tmp_path / "a", tmp_path / "b"]
    seen = []
    monkeypatch.setattr(
        atomic_files.os, "fsync", lambda _: seen.append([path.exists() for path in paths])
    )
    write_together(list({path: b"new" for path in paths}.items()))
    assert seen == [[False, False], [False, False]]
    assert all(path.exists() for path in paths)
