"""Runs on a SLURM cluster, by submitit: one array task each, requeued until it is done.

What a run came to is read from its record and `squeue`; `sacct`, which submitit relies on, needs
an accounting database that many clusters do not have.
"""

import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError
from submitit.helpers import DelayedSubmission

from experiments.schema import PositiveFloat, PositiveInt, load_config
from harness.atomic_files import atomic_write
from harness.errors import UnavailableError
from harness.paths import LOGS, ROOT, user_path
from harness.process import STOPPED
from harness.queue import run_lock
from harness.records import Run, latest_metric
from launchers.reports import divergence, is_finished, print_failure, result_in_words

MAX_ARRAY_SIZE = 1001
PREEMPTED = signal.SIGUSR2  # submitit's signal
PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"}


# Values become `#SBATCH --key=value` lines, quoted; no value may begin a line of its own.
OneLine = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$")]
OptionName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]


class SlurmConfig(BaseModel):
    """How --launcher slurm uses a cluster."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    partition: OneLine | None
    account: OneLine | None
    time_minutes: PositiveInt
    gpus: Annotated[int, Field(ge=0)]
    cpus: PositiveInt
    memory_gb: PositiveFloat | None
    array_parallelism: PositiveInt
    signal_before_end_s: PositiveInt
    requeues: Annotated[int, Field(ge=0)]
    sbatch: dict[OptionName, OneLine | int | bool]
    setup: list[OneLine]
    python: OneLine | None
    poll_interval_s: PositiveFloat
    settle_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RunTask:
    """What a task of the array does: `run_experiment.py` in a process of its own, for one run.

    That process saves a checkpoint on submitit's signal and ends; then submitit requeues the task.
    """

    def __call__(self, words: Sequence[str]) -> None:
        """Do the run. Raises: SystemExit, with the process's exit code if it is not 0."""
        requeue = signal.getsignal(PREEMPTED)
        received: list[int] = []
        process: subprocess.Popen | None = None

        def pass_on(number: int, frame: FrameType | None) -> None:
            received.append(number)
            if process:
                process.send_signal(number)

        for number in (PREEMPTED, signal.SIGTERM):
            signal.signal(number, pass_on)
        process = subprocess.Popen([sys.executable, ROOT / "run_experiment.py", *words])
        for number in received:  # before there was a process
            process.send_signal(number)
        code = process.wait()
        # A process that had not begun to listen was killed by the signal.
        if PREEMPTED in received and code in (STOPPED, -PREEMPTED):
            requeue(PREEMPTED, None)
        if code:
            raise SystemExit(code if code > 0 else 128 - code)

    def checkpoint(self, words: Sequence[str]) -> DelayedSubmission:
        """How submitit is to go on after requeueing: the run resumes by itself."""
        return DelayedSubmission(self, words)


class Job(BaseModel):
    """A task in the queue. SLURM uses numbers again after a while, so its name belongs to it.

    log: the name of the file with what it says.
    """

    number: str
    name: str
    log: str


def run_slurm(
    runs: Sequence[Run], words: Sequence[str], results_dir: Path, path: Path, wait: bool
) -> int:
    """Submit what is not in the queue yet and, with `wait`, follow it. Returns the exit code.

    words: the command line of `run_experiment.py` that plans these runs; path: of the SlurmConfig.
    Raises: ConfigError, UnavailableError, OSError.
    """
    config = load_config(SlurmConfig, path, {})
    missing = [command for command in ("sbatch", "srun", "squeue") if not shutil.which(command)]
    if missing:
        raise UnavailableError(
            f"--launcher slurm: {', '.join(missing)} not found; run it where SLURM's commands are, "
            "such as a cluster's login node, or use --launcher local"
        )
    folder = results_dir / LOGS / "slurm"
    queue = read_queue()
    if queue is None:
        raise UnavailableError("--launcher slurm: squeue does not answer; see what `squeue` says")
    jobs = {
        run.label: job
        for run in runs
        if (job := read_job(folder, run)) and (job.number, job.name) in queue
    }
    new = [run for run in runs if run.label not in jobs]
    if jobs:
        print(f"{len(jobs)} runs are in the queue already")
    size = largest_array()
    arrays = [new[i : i + size] for i in range(0, len(new), size)]
    for array in arrays:
        parallel = max(config.array_parallelism // len(arrays), 1)
        changed = config.model_copy(update={"array_parallelism": parallel})
        jobs |= submit(array, words, folder, changed)
    if not wait:
        print(f"look at them with squeue --me, or again with --plan or --wait; logs in {folder}")
        return 0
    try:
        return Following(runs, jobs, folder, config).until_finished()
    except KeyboardInterrupt:
        print("the jobs go on: squeue --me shows them, scancel ends them", flush=True)
        raise


def submit(
    runs: Sequence[Run], words: Sequence[str], folder: Path, config: SlurmConfig
) -> dict[str, Job]:
    """Submit a job array with a task for each run; label -> job.

    Raises: ConfigError; UnavailableError, with what sbatch says; OSError.
    """
    name = f"ssm-{secrets.token_hex(3)}"
    python = Path(config.python or sys.executable)
    python = shlex.quote(str(user_path(python, f"python: {python}")))
    executor = SlurmExecutor(folder, max_num_timeout=config.requeues, python=python)
    executor.update_parameters(**sbatch_parameters(config, name))
    commands = [[*words, "--only", run.label, "--leave-held"] for run in runs]
    try:
        submitted = executor.map_array(RunTask(), commands)
    except FailedJobError as error:
        raise UnavailableError(f"--launcher slurm: sbatch refused the job: {error}") from None
    jobs = {}
    for run, task in zip(runs, submitted, strict=True):
        job = Job(number=task.job_id, name=name, log=task.paths.stderr.name)
        with atomic_write(job_file(folder, run), "w") as file:
            file.write(job.model_dump_json())
        jobs[run.label] = job
    print(f"submitted {len(runs)} runs as job {submitted[0].job_id.partition('_')[0]} ({name})")
    return jobs


def largest_array() -> int:
    """How many tasks the cluster allows in a job array; SLURM's default where it does not say."""
    try:
        command = ["scontrol", "show", "config"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return MAX_ARRAY_SIZE
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)\s*$", done.stdout, re.MULTILINE)
    return max(int(found[1]), 1) if found else MAX_ARRAY_SIZE


def sbatch_parameters(config: SlurmConfig, name: str) -> dict[str, Any]:
    """The settings by the names that submitit has for them; it leaves out those that are None."""
    more = {key.replace("-", "_"): value for key, value in config.sbatch.items()}
    return {
        "job_name": name,
        "time": config.time_minutes,
        "cpus_per_task": config.cpus,
        "mem": config.memory_gb and f"{round(config.memory_gb * 1024)}M",
        "array_parallelism": config.array_parallelism,
        "signal_delay_s": config.signal_before_end_s,
        "setup": [*config.setup],
        # Since SLURM 22.05 srun does not take its CPUs from sbatch.
        "srun_args": [f"--cpus-per-task={config.cpus}"],
        # Python finds the pickled task's module in the folder where it starts.
        "additional_parameters": {"chdir": str(ROOT), "requeue": True, **more},
        "partition": config.partition,
        "account": config.account,
        "gpus_per_node": config.gpus or None,
    }


def job_file(folder: Path, run: Run) -> Path:
    """Where the job of a run is noted, for the next command."""
    return folder / f"{run.record.stem}.job"


def read_job(folder: Path, run: Run) -> Job | None:
    """The job that was last submitted for a run, None without any."""
    path = job_file(folder, run)
    return Job.model_validate_json(path.read_bytes()) if path.exists() else None


Queue = Mapping[tuple[str, str], tuple[str, str]]


def read_queue() -> Queue | None:
    """My tasks in the queue: (number, name) -> (state, reason); None without an answer."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%j"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    tasks = (line.split("|", 3) for line in done.stdout.splitlines())
    return {(number, name): (state, reason) for number, state, reason, name in tasks}


class Following:
    """Submitted runs, and what became of each."""

    def __init__(
        self, runs: Sequence[Run], jobs: Mapping[str, Job], folder: Path, config: SlurmConfig
    ):
        """jobs: by the run's label; folder: of their logs."""
        self.runs, self.jobs, self.folder, self.config = runs, jobs, folder, config
        self.gone_since: dict[str, float] = {}
        self.states = dict.fromkeys(jobs, "pending")
        self.held: dict[str, str] = {}

    def until_finished(self) -> int:
        """Print what changes in the table, and failed runs' logs. Returns the exit code."""
        shown: set[str] = set()
        while True:
            queue = read_queue()
            self.held = {}
            self.states = {run.label: self._state(run, queue) for run in self.runs}
            table = list(self._table(queue))
            if changed := [line for line in table if line not in shown]:
                print("\n".join(changed), flush=True)
            shown = set(table)
            if not {"pending", "running"} & set(self.states.values()):
                return self._report()
            time.sleep(self.config.poll_interval_s)

    def _state(self, run: Run, queue: Queue | None) -> str:
        label = run.label
        if self.states[label] in ("done", "failed"):
            return self.states[label]
        if is_finished(run):
            return "failed" if divergence(run) else "done"
        if queue is None:
            return self.states[label]
        job = self.jobs[label]
        in_queue, reason = queue.get((job.number, job.name), (None, ""))
        if "held" in reason.lower():
            self.held[label] = reason
        if in_queue is None and run_lock(run).holder() is None:
            since = self.gone_since.setdefault(label, time.monotonic())
            settled = time.monotonic() - since >= self.config.settle_s
            return "failed" if settled else self.states[label]
        self.gone_since.pop(label, None)
        return "pending" if in_queue in PENDING else "running"

    def _table(self, queue: Queue | None) -> Iterator[str]:
        if queue is None:
            yield "squeue does not answer; still looking at the results"
        counts = list(self.states.values())
        order = ("pending", "running", "done", "failed")
        yield ", ".join(f"{counts.count(state)} {state}" for state in order)
        for run in self.runs:
            if run.label in self.held:
                release = f"scontrol release {self.jobs[run.label].number}"
                yield f"  held     {run.label}  {self.held[run.label]}; `{release}` lets it go on"
            if self.states[run.label] == "running":
                yield f"  running  {run.label}  {latest_metric(run)}".rstrip()
            if self.states[run.label] == "done":
                yield f"  done     {run.label}  {result_in_words(run)}"

    def _report(self) -> int:
        failed = [run for run in self.runs if self.states[run.label] == "failed"]
        for run in failed:
            job = self.jobs[run.label]
            reason = divergence(run) or f"job {job.number} ended without a result"
            print_failure(run.label, reason, self.folder / job.log)
        return 1 if failed else 0
