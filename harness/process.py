"""What a shell does to a process: signals that stop it, standard streams that it cannot write.

A signal ends a run with a checkpoint first, if it trains; a second Ctrl-C ends it at once. Who
starts a command may have Ctrl-C ignored, as a shell script has for its background jobs, which are
not meant by it; then it stays ignored, and SIGTERM stops them. Standard output and error may be
closed, on a full disk, or piped to who has left.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import IO, Self

from harness.errors import OutputError

# EX_TEMPFAIL of sysexits.h: stopped by SIGTERM or SIGUSR2, the same command goes on.
STOPPED = 75
GRACEFUL = (signal.SIGTERM, signal.SIGUSR2)
# What shells report of a process that wrote to a pipe nobody reads.
BROKEN_PIPE = 128 + signal.SIGPIPE


class Stop:
    """A wish to stop, and the signal it came by. A context manager that listens to signals.

    Signals raise KeyboardInterrupt; while that is deferred, they only note the wish, but for a
    second Ctrl-C.
    """

    def __init__(self) -> None:
        """Nothing is wished yet, and no signal is listened to."""
        self.number: int | None = None
        self._deferred = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        """Listen."""
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        for number in GRACEFUL if ignored else (signal.SIGINT, *GRACEFUL):
            self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the signals as they were before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def wanted(self) -> bool:
        """Whether to stop."""
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, as shells have it, else `STOPPED`."""
        return 130 if self.number == signal.SIGINT else STOPPED

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Meanwhile whoever runs asks `wanted` and saves before it stops."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _notice(self, number: int, frame: FrameType | None) -> None:
        del frame
        again = self.number == signal.SIGINT
        # A second signal must not hide that the first was Ctrl-C.
        self.number = signal.SIGINT if again else number
        if not self._deferred or (again and number == signal.SIGINT):
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            with suppress(OSError):  # `print` may be interrupted by this, and cannot begin again
                os.write(sys.stderr.fileno(), b"\nsaving; Ctrl-C again ends at once\n")


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
        if isinstance(out, TextIOWrapper):  # a locale may have no dashes
            out.reconfigure(errors="backslashreplace")
        errors = _Stream(sys.stderr or out, is_needed=False)
        with redirect_stdout(_Stream(out, is_needed=True)), redirect_stderr(errors):
            yield


class _Stream:
    """A stream that tells what it is given from files: a failure to write it is not theirs."""

    def __init__(self, stream: IO[str], is_needed: bool):
        self._stream, self._is_needed = stream, is_needed

    def write(self, text: str) -> int:
        with self._discarding():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._discarding():
            self._stream.flush()

    @contextmanager
    def _discarding(self) -> Iterator[None]:
        """Send what cannot be written nowhere: Python would fail on it again when it ends."""
        try:
            yield
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            if self._is_needed:
                raise OutputError(error.strerror) from error

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
