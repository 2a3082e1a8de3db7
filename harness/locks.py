"""Locks between processes that share a folder: flock, through filelock, with the owner in words.

The kernel frees a lock when the process that holds it dies, however it dies, and a child does not
inherit it. So nothing is ever taken over, and a file that a killed process left is no lock.

The price: every file system and mount that the processes share must have flock, across hosts too
(NFS and Lustre: by how they are mounted); where there is none, a lock is refused. The lock of a
host that hangs or is cut off is not taken over: the file server frees it, or that host's end does.
"""

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout, UnixFileLock

from harness.errors import LockLostError, UnavailableError

NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
GATE = ".look"


class Lock:
    """One process's view of the lock `folder/NAME.lock`: to take it, to keep it, to see who has it.

    The file is there while the lock is held. Whoever looks at a lock takes it for a moment; the
    folder's lock `GATE` sees to it that a look is not mistaken for an owner.
    """

    def __init__(self, folder: Path, name: str):
        """folder: made when the lock is taken."""
        self.folder, self.name = folder, name
        self.path = folder / f"{name}.lock"
        # filelock's other kind, a file that exists or not, outlives a killed process.
        how = {"thread_local": False, "fallback_to_soft": False, "on_acquired": self._sign}
        self._lock = UnixFileLock(self.path, **how)

    def try_acquire(self) -> str | None:
        """Take the lock if it is free; returns None, or its owner in words.

        Raises: UnavailableError, where the file system has no flock; OSError.
        """
        with waiting(self.folder, GATE):
            return self.take(blocking=False)

    def take(self, blocking: bool) -> str | None:
        """`try_acquire` for a lock that nobody looks at; blocking: wait until it is free."""
        try:
            self._lock.acquire(blocking=blocking)
        except Timeout:
            return self._owner()
        except OSError as error:
            if error.errno in NO_FLOCK:
                raise UnavailableError(
                    f"the file system of {self.folder} has no file locks (flock: "
                    f"{error.strerror}), without which two processes could do one run; use a "
                    "folder on another one"
                ) from None
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        return None

    def confirm(self) -> None:
        """Make sure that the lock's file is still the one that is held.

        If a person removed it, the lock is taken again. Raises: LockLostError, OSError.
        """
        if self._is_in_place():
            return
        self._lock.release()
        if (owner := self.try_acquire()) is not None:
            raise LockLostError(f"the lock {self.path} went to {owner}")

    def release(self) -> None:
        """Give the lock back, if it is held. Raises: OSError."""
        if self._lock.is_locked:
            # While it is held: whoever waits for this very file finds it removed, and tries again.
            if self._is_in_place():
                self.path.unlink()
            self._lock.release()

    def holder(self) -> str | None:
        """The owner in words, None if there is none. Raises: as `try_acquire`."""
        if not self.path.exists():
            return None
        look = Lock(self.folder, self.name)
        with waiting(self.folder, GATE):
            try:
                return look.take(blocking=False)
            finally:
                look.release()

    def _sign(self, descriptor: int) -> None:
        self._signed = os.fstat(descriptor)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, this_process().encode())

    def _owner(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8") or "another process"
        except FileNotFoundError:  # just given back
            return "another process"

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(self._signed, self.path.stat())
        except FileNotFoundError:
            return False


@contextmanager
def waiting(folder: Path, name: str) -> Iterator[None]:
    """In it this process alone holds a lock; it waits for it first. Raises: as `try_acquire`."""
    lock = Lock(folder, name)
    try:
        lock.take(blocking=True)
        yield
    finally:
        lock.release()


def this_process(environment: Mapping[str, str] = os.environ) -> str:
    """Who this is, in words: process, host, and the SLURM job where there is one."""
    array, task = (environment.get(f"SLURM_ARRAY_{x}_ID") for x in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID")
    words = f"process {os.getpid()} on {socket.gethostname()}"
    return f"{words}, SLURM job {job}" if job else words
