"""Files that are either whole or not there: every file this repository writes goes through here."""

import errno
import glob
import io
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np


@contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file that replaces `path` once the block ends and the bytes are on disk.

    mode: "wb", or "w" for UTF-8 text with line feeds. On any error, a full disk or Ctrl-C the
    temporary file is removed and `path` stays as it was.
    Raises: OSError, when the folder cannot be written or the disk is full.
    """
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with _temporary_beside(path) as temporary, _naming(path, temporary):
        with temporary.open(mode, **text) as handle:
            yield handle
            _to_disk(handle)
        temporary.replace(path)


def write_together(contents: Sequence[tuple[Path, bytes]]) -> None:
    """Write several files: all bytes are on disk before the first name changes.

    Names change in the order given; a name may come twice, with what it holds meanwhile and what
    it ends with. Raises: OSError, with every file as it was before.
    """
    with ExitStack() as stack:
        staged = [(stack.enter_context(_temporary_beside(path)), path) for path, _ in contents]
        for (temporary, path), (_, data) in zip(staged, contents, strict=True):
            with _naming(path, temporary), temporary.open("wb") as handle:
                handle.write(data)
                _to_disk(handle)
        for temporary, path in staged:
            with _naming(path, temporary):
                temporary.replace(path)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write one array as .npy, atomically and without pickle. Raises: OSError, ValueError."""
    with atomic_write(path) as handle:
        # Not np.save to the file itself: on a full disk that hides the reason.
        handle.write(npy_bytes(array))


def npy_bytes(array: np.ndarray) -> bytes:
    """The bytes of an array's .npy file, without pickle. Raises: ValueError."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def remove_temporaries(path: Path) -> None:
    """Remove what a process that was killed while it wrote `path` has left beside it."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        temporary.unlink(missing_ok=True)


@contextmanager
def _temporary_beside(path: Path) -> Iterator[Path]:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder has the name of the file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Errors name the file that was to be written: a full disk names none, others the temporary."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and str(error.filename) in ("None", str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _to_disk(handle: IO) -> None:
    handle.flush()
    os.fsync(handle.fileno())
