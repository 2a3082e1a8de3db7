"""Worker processes on this machine: one run each at a time, restarted when killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.machine import available_cores
from harness.paths import LOGS, ROOT
from harness.process import STOPPED
from harness.queue import run_lock
from harness.records import Run, latest_metric
from launchers.reports import is_finished, print_failure, result_in_words

POLL_S = 0.5
STATUS_INTERVAL_S = 60.0
# A run that is killed more often than this has failed: it will have a reason, such as its memory.
RESTARTS = 20


@dataclass(frozen=True)
class Slot:
    """A worker's share of the machine."""

    cores: frozenset[int]  # empty where processes cannot be bound to cores
    environment: Mapping[str, str]


@dataclass
class Task:
    """A run that is to be done, and what became of it so far."""

    run: Run
    log: Path
    starts: int = 0
    holder: str = ""  # another process that was last seen to do it
    failure: str = ""


def run_local(
    runs: Sequence[Run], words: Sequence[str], results_dir: Path, workers: int | None, device: str
) -> int:
    """Do the runs in `workers` processes. Returns the exit code: 1 if one failed.

    words: the command line of `run_experiment.py` that plans these runs. Raises: OSError;
    KeyboardInterrupt, once the workers have saved checkpoints and ended.
    """
    slots = machine_slots(workers, [] if device == "cpu" else gpus())
    folder = results_dir / LOGS
    tasks = [Task(run, folder / f"{run.record.stem}.log") for run in runs]
    share = f"{len(slots[0].cores)} cores each" if slots[0].cores else "cores not bound"
    print(f"{len(slots)} workers, {share}, logs in {folder}", flush=True)
    LocalRuns(tasks, slots, words).work()
    failed = [task for task in tasks if task.failure]
    for task in failed:
        print_failure(task.run.label, task.failure, task.log)
    print(f"{len(tasks) - len(failed)} of {len(tasks)} runs done, {len(failed)} failed")
    return 1 if failed else 0


class LocalRuns:
    """The tasks that wait, those that a process is at, and the slots that are free."""

    def __init__(self, tasks: Sequence[Task], slots: Sequence[Slot], words: Sequence[str]):
        """tasks: in the order in which to start them."""
        self.waiting, self.slots, self.words = list(tasks), list(slots), list(words)
        self.workers: dict[subprocess.Popen, tuple[Task, Slot]] = {}
        self.total = len(tasks)

    def work(self) -> None:
        """Until all tasks are done or have failed. Raises: OSError, KeyboardInterrupt."""
        shown = time.monotonic()
        try:
            while self.waiting or self.workers:
                self._collect()
                self._start()
                if time.monotonic() - shown > STATUS_INTERVAL_S:
                    shown = time.monotonic()
                    for task, _ in self.workers.values():
                        print(f"  at {task.run.label}: {latest_metric(task.run)}")
                time.sleep(POLL_S)
        finally:
            for process in self.workers:
                process.terminate()  # it saves a checkpoint first
            for process in self.workers:
                process.wait()

    def _start(self) -> None:
        for task in list(self.waiting):
            if not self.slots:
                return
            if is_finished(task.run):
                self.waiting.remove(task)
                self._say(f"{task.run.label}: {result_in_words(task.run)}")
            elif (holder := run_lock(task.run).holder()) is None:
                self.waiting.remove(task)
                slot = self.slots.pop(0)
                self.workers[start(task, slot, self.words)] = task, slot
            elif task.holder != holder:
                task.holder = holder
                print(f"{task.run.label}: held by {holder}, waits for it", flush=True)

    def _collect(self) -> None:
        for process in [p for p in self.workers if p.poll() is not None]:
            task, slot = self.workers.pop(process)
            self.slots.append(slot)
            code = process.returncode
            killed = code < 0 or code == STOPPED
            if killed and task.starts <= RESTARTS:
                how = f"by {signal.Signals(-code).name}" if code < 0 else "by a signal"
                print(
                    f"{task.run.label}: its worker was ended {how}, goes on in another", flush=True
                )
                self.waiting.insert(0, task)
                continue
            if code:
                task.failure = f"exit code {code}"
            elif not is_finished(task.run):
                task.failure = "ended without a result"
            said = f"failed, {task.failure}" if task.failure else result_in_words(task.run)
            self._say(f"{task.run.label}: {said}")

    def _say(self, line: str) -> None:
        left = len(self.waiting) + len(self.workers)
        print(f"[{self.total - left}/{self.total}] {line}", flush=True)


def start(task: Task, slot: Slot, words: Sequence[str]) -> subprocess.Popen:
    """Start a process for one run, bound to its slot. Raises: OSError."""
    task.starts += 1
    task.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, ROOT / "run_experiment.py", *words, "--only", task.run.label]
    with task.log.open("ab") as log, bound_to(slot.cores):
        # A session of its own: Ctrl-C reaches the launcher alone, which then ends its workers.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **slot.environment},
            start_new_session=True,
        )


@contextmanager
def bound_to(cores: frozenset[int]) -> Iterator[None]:
    """Bind this process to cores for a while; what it starts meanwhile stays bound to them."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def machine_slots(workers: int | None, devices: Sequence[str]) -> list[Slot]:
    """Equal shares of the cores, so that no result depends on the share, and a GPU for each.

    workers: None is one for each GPU, or 1 without any.
    """
    count = workers or max(len(devices), 1)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    each = max(available_cores() // count, 1)
    slots = []
    for k in range(count):
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(each))}
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[k % len(devices)]
        if len(devices) < count:  # else the first process on a GPU takes most of its memory
            environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        mine = frozenset(cores[(k * each + i) % len(cores)] for i in range(each) if cores)
        slots.append(Slot(mine, environment))
    return slots


def gpus() -> list[str]:
    """The NVIDIA GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return [line.partition("UUID: ")[2].rstrip(")") for line in lines]
