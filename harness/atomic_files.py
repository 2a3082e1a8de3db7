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
    with _replacing(path, mode) as handle:
        yield handle
        _to_disk(handle)


def write_together(contents: Sequence[tuple[Path, bytes]]) -> None:
    """Write several files: all bytes are on disk before the first name changes.

    Names change in the order given; a name may come twice, with what it holds meanwhile and what
    it ends with. Raises: OSError, with every file as it was before.
    """
    with ExitStack() as stack:
        for path, data in reversed(contents):  # the stack ends with the first
            handle = stack.enter_context(_replacing(path, "wb"))
            handle.write(data)
            _to_disk(handle)


def npy_bytes(array: np.ndarray) -> bytes:
    """The bytes of an array's .npy file, without pickle. Raises: ValueError."""
    buffer = io.BytesIO()  # np.save to a file hides why it fails on a full disk
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def remove_temporaries(path: Path) -> None:
    """Remove what a process that was killed while it wrote `path` has left beside it."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        temporary.unlink(missing_ok=True)


@contextmanager
def _replacing(path: Path, mode: str) -> Iterator[IO]:
    """Open a temporary file that gets the name `path` when the block ends.

    Errors name `path`: a full disk names no file, others the temporary one.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder has the name of the file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with temporary.open(mode, **text) as handle:
            yield handle
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and str(error.filename) in ("None", str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _to_disk(handle: IO) -> None:
    handle.flush()
    os.fsync(handle.fileno())
