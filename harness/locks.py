"""Locks between processes that share a folder, on one machine or over NFS.

A lock is the file `NAME.N` with the greatest N. It is taken by creating the next number with
O_EXCL, which NFS (version 3 and later) does atomically, so of two that try exactly one succeeds,
and an owner whose number is not the greatest any more has lost the lock. No clocks of two hosts are
compared: a heartbeat is any change of the file's time, an interval is the observer's own.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self

from harness.errors import LockLostError

HEARTBEAT_S = 20.0
# Without a heartbeat for so long an owner is dead, where nothing more certain is known of it. Far
# more than the minute for which NFS clients may keep a file's time in their caches.
PATIENCE_S = 300.0
# An owner writes who it is right after it makes the file, so one that has not by then was killed in
# between. One that was merely slow finds out in `confirm`.
UNWRITTEN_S = 30.0
ASK_AGAIN_S = 10.0  # SLURM, about a job
# The states of `squeue` in which a job has processes, or may have them still.
ALIVE = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. `machine` and `started` are None where the system does not tell."""

    host: str
    pid: int
    machine: str | None  # this boot and PID namespace: where `pid` means something
    started: int | None  # the process's start, in clock ticks since the boot
    slurm_job: str | None
    slurm_restarts: int
    nonce: str

    @classmethod
    def this_process(cls, environment: Mapping[str, str] = os.environ) -> "Owner":
        """The owner that this process is, with a nonce of its own."""
        array, task = (environment.get(f"SLURM_ARRAY_{x}_ID") for x in ("JOB", "TASK"))
        job = f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID")
        restarts = int(environment.get("SLURM_RESTART_COUNT", 0))
        pid, nonce = os.getpid(), secrets.token_hex(8)
        return cls(socket.gethostname(), pid, _machine(), _start_of(pid), job, restarts, nonce)

    @property
    def words(self) -> str:
        """For people."""
        job = f", SLURM job {self.slurm_job}" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}{job}"

    def is_dead(self) -> bool | None:
        """Whether the owner is gone; None where that cannot be told from here."""
        if self.machine is not None and self.machine == _machine():
            return None if _is_hidden(self.pid) else _start_of(self.pid) != self.started
        me = Owner.this_process()
        requeued = me.slurm_restarts > self.slurm_restarts
        return True if self.slurm_job and self.slurm_job == me.slurm_job and requeued else None


@dataclass(frozen=True)
class _Top:
    """The lock file with the greatest number; `owner` is None while it cannot be read."""

    number: int
    owner: Owner | None
    beat: int


class Lock:
    """One process's view of one lock: to take it, to keep it, to watch whoever has it."""

    def __init__(
        self,
        folder: Path,
        name: str,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ):
        """folder: made when the lock is taken; clock: seconds that only ever go up."""
        self.folder, self.name = folder, name
        self.owner = Owner.this_process()
        self.number: int | None = None  # while held
        self._patience_s, self._clock = patience_s, clock
        self._seen: tuple[tuple[int, int], float] | None = None
        self._asked: tuple[str, float, bool | None] | None = None
        self._released = Event()

    def try_acquire(self) -> str | None:
        """Take the lock if it is free or its owner dead; returns None, or its owner in words.

        Raises: OSError.
        """
        top = self._top()
        if top is not None and not self._is_dead(top):
            return _in_words(top)
        number = top.number + 1 if top else 1
        if not self._create(number):
            return _in_words(self._top())
        now = self._top()
        if not now or now.number != number or (top and self._owner(top.number) != top.owner):
            # What was read first is out of date: the lock was given back and taken again since.
            self._path(number).unlink(missing_ok=True)
            return _in_words(self._top())
        self._remove_below(number)
        self.number = number
        self._released.clear()
        Thread(target=self._beat, daemon=True, name=f"heartbeat of {self.name}").start()
        return None

    def confirm(self) -> None:
        """Make sure that the lock is still held, by taking its next number.

        If its folder was removed it is made again, and the lock with it.
        Raises: LockLostError, OSError.
        """
        top = self._top()
        if not (top is None or self._is_mine(top)) or not self._create(self.number + 1):
            raise LockLostError(f"the lock {self.folder / self.name} went to {self.holder()}")
        self.number += 1
        self._remove_below(self.number)

    def release(self) -> None:
        """Give the lock back. Raises: OSError."""
        self._released.set()
        top = self._top()
        if top is not None and self._is_mine(top):
            self._remove_below(top.number + 1)
        self.number = None

    def holder(self) -> str | None:
        """The owner in words, None if there is none."""
        top = self._top()
        return None if top is None or self._is_dead(top) else _in_words(top)

    def _is_mine(self, top: _Top) -> bool:
        return top.owner is not None and top.owner.nonce == self.owner.nonce

    def _is_dead(self, top: _Top) -> bool:
        """Certain knowledge first, else no heartbeat for as long as patience lasts."""
        now, sign = self._clock(), (top.number, top.beat)
        if self._seen is None or self._seen[0] != sign:
            self._seen = sign, now
        dead = top.owner.is_dead() if top.owner else None
        if dead is None and top.owner and top.owner.slurm_job:
            dead = self._ask_slurm(top.owner.slurm_job, now)
        patience_s = self._patience_s if top.owner else min(self._patience_s, UNWRITTEN_S)
        return now - self._seen[1] > patience_s if dead is None else dead

    def _ask_slurm(self, job: str, now: float) -> bool | None:
        """Whether a job is gone; SLURM is asked once in a while only."""
        asked = self._asked
        if asked is None or asked[0] != job or now - asked[1] > ASK_AGAIN_S:
            self._asked = job, now, _job_is_gone(job)
        return self._asked[2]

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT_S):
            try:
                os.utime(self._path(self.number))
            except OSError:
                # Just replaced or released, or the folder is gone: `confirm` finds out which.
                continue

    def _create(self, number: int) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        path, text = self._path(number), json.dumps(asdict(self.owner))
        try:
            file = path.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(text)
        except OSError as error:  # a full disk; an unreadable lock would have to be waited for
            path.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error
        return True

    def _top(self) -> _Top | None:
        numbers = self._numbers()
        if not numbers:
            return None
        found = self._read(numbers[-1])
        return found or self._top()  # its owner went on to the next number meanwhile

    def _read(self, number: int) -> _Top | None:
        try:
            # Opening a file makes NFS ask the server how it is now.
            with self._path(number).open(encoding="utf-8") as file:
                text, beat = file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None
        try:
            return _Top(number, Owner(**json.loads(text)), beat)
        except (ValueError, TypeError):
            return _Top(number, None, beat)

    def _owner(self, number: int) -> Owner | None:
        found = self._read(number)
        return found.owner if found else None

    def _numbers(self) -> list[int]:
        files = self.folder.glob(f"{self.name}.*")
        ends = (path.name.removeprefix(f"{self.name}.") for path in files)
        return sorted(int(end) for end in ends if end.isdecimal())

    def _remove_below(self, number: int) -> None:
        for lower in self._numbers():
            if lower < number:
                self._path(lower).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.name}.{number}"


class Waiting:
    """A context in which this process alone holds a lock; it waits for it first."""

    def __init__(self, folder: Path, name: str):
        """As of `Lock`."""
        self.lock = Lock(folder, name)

    def __enter__(self) -> Self:
        """Wait. Raises: OSError."""
        while self.lock.try_acquire() is not None:
            time.sleep(0.2)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the lock back."""
        self.lock.release()


def _in_words(top: _Top | None) -> str:
    return top.owner.words if top and top.owner else "another process"


def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _start_of(pid: int) -> int | None:
    """When a process started, in ticks since the boot; None if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def _is_hidden(pid: int) -> bool:
    """Whether a process is there, though /proc does not show those of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return not Path(f"/proc/{pid}").exists()
    return False


def _job_is_gone(job: str) -> bool | None:
    """Whether SLURM says that a job has no processes; None where it does not answer."""
    if not shutil.which("squeue"):
        return None
    command = ["squeue", "--noheader", "--array", f"--jobs={job}", "--format=%T"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return True if "Invalid job id" in done.stderr else None
    return not ALIVE & set(done.stdout.split())
