"""How a signal ends a run: with a checkpoint first, if it trains; a second Ctrl-C ends it at once.

Who starts a command may have Ctrl-C ignored, as a shell script has for its background jobs, which
are not meant by it; then it stays ignored, and SIGTERM stops them.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Self

# EX_TEMPFAIL of sysexits.h: stopped by SIGTERM or SIGUSR2, the same command goes on.
STOPPED = 75
GRACEFUL = (signal.SIGTERM, signal.SIGUSR2)


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
