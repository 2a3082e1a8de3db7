"""Standard output and error as users leave them: closed, on a full disk, piped to who has left."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO

from harness.errors import OutputError

# What shells report of a process that wrote to a pipe nobody reads.
BROKEN_PIPE = 128 + signal.SIGPIPE


def on_standard_streams(work: Callable[[], int]) -> int:
    """Do work that writes to them. Returns its exit code, 1 or `BROKEN_PIPE` if output failed.

    `work` lets OutputError pass. What cannot be said on standard error is not said.
    """
    with _usable_streams():
        try:
            try:
                return work()
            finally:
                sys.stdout.flush()
        except OutputError as error:
            if isinstance(error.__cause__, BrokenPipeError):
                return BROKEN_PIPE
            print(f"error: standard output cannot be written: {error}", file=sys.stderr)
            return 1


@contextmanager
def _usable_streams() -> Iterator[None]:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed, as a daemon's: the next file that is opened would be in its place
            os.open(os.devnull, os.O_RDWR)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        out = sys.stdout or nowhere
        errors = _Stream(sys.stderr or out, lambda error: None)
        with redirect_stdout(_Stream(out, _raise)), redirect_stderr(errors):
            yield


class _Stream:
    """A stream that tells what it is given from files: a failure to write it is not theirs."""

    def __init__(self, stream: IO[str], failed: Callable[[OSError], None]):
        self._stream, self._failed = stream, failed

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._discard(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error: OSError) -> None:
        """Send what is still held nowhere: Python would fail on it again when it ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        self._failed(error)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _raise(error: OSError) -> None:
    raise OutputError(error.strerror) from error
