"""The training loop that every trained model shares: when to evaluate, stop, and checkpoint.

No framework in here: a `Trainable` updates and evaluates itself, and gives its state as arrays.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol, SupportsFloat

import numpy as np

from harness.checkpoints import Checkpoints, checkpoint_folder
from harness.outcomes import FINISHED, NOT_SOLVED, UNFINISHED
from harness.process import Stop
from harness.progress import progress_bar
from harness.records import Run, save_run, steps_to_keep

# Reading a loss waits for the device, so it is done for so many steps together, at most.
UNREAD = 100
# What tells a process from the others that did a part of a run.
PROCESS = ("host", "device", "version", "commit", "dirty", "packages", "command")


class Trainable(Protocol):
    """A model with its optimizer and its data."""

    validation: Sequence[Any]  # arrays of as many rows, which the metric is over

    def update(self, step: int) -> SupportsFloat:
        """Do step `step`, counted from 0; returns its training loss."""

    def evaluate(self) -> float:
        """The metric over `validation`."""

    def arrays(self) -> Mapping[str, np.ndarray]:
        """All that updates change, by name."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go back to what `arrays` gave."""


@dataclass(frozen=True)
class Schedule:
    """When things happen, in steps; training stops above `stop_above`, if that is not None."""

    max_steps: int
    eval_interval: int
    checkpoint_interval: int
    stop_above: float | None = None

    def evaluates(self, step: int) -> bool:
        """Whether there is an evaluation after so many updates."""
        return step % self.eval_interval == 0 or step == self.max_steps

    def outcome(self, step: int, metric: float) -> str:
        """How training ends with an evaluation; empty where it goes on."""
        if self.stop_above is not None and metric > self.stop_above:
            return "solved"
        if step < self.max_steps:
            return ""
        return FINISHED if self.stop_above is None else NOT_SOLVED


@dataclass
class History:
    """What a training run leaves: one entry an evaluation."""

    steps: list[int] = field(default_factory=list)
    metric: list[float] = field(default_factory=list)
    train_loss: list[float | None] = field(default_factory=list)  # mean since the one before
    seconds: list[float] = field(default_factory=list)  # since the start, resumed or not

    def latest(self, metric: str) -> dict[str, float]:
        """The last evaluation by name, the metric under its own."""
        values = {metric: self.metric[-1], "train_loss": self.train_loss[-1]}
        return {name: value for name, value in values.items() if value is not None}

    def named(self, metric: str) -> dict[str, list]:
        """The history for a record, the metric under its own name."""
        return {metric if key == "metric" else key: value for key, value in asdict(self).items()}


@dataclass
class Progress:
    """Where a training run stands; with the arrays it is all of a checkpoint."""

    history: History = field(default_factory=History)
    step: int = 0
    loss_sum: float = 0.0
    losses: int = 0
    seconds: float = 0.0
    unread: list[SupportsFloat] = field(default_factory=list)  # none in a checkpoint

    def add_loss(self, loss: SupportsFloat) -> None:
        """Count a step and its loss."""
        self.step += 1
        self.unread.append(loss)

    def read_losses(self) -> str:
        """Add up the losses of the last steps. Returns how they diverged, empty if they did not."""
        for step, loss in enumerate(map(float, self.unread), self.step - len(self.unread)):
            if not math.isfinite(loss):
                return f"diverged: the loss was {loss} at step {step}"
            self.loss_sum += loss
            self.losses += 1
        self.unread = []
        return ""

    def record(self, metric: float) -> None:
        """Add an evaluation to the history."""
        self.history.steps.append(self.step)
        self.history.metric.append(metric)
        self.history.train_loss.append(self.loss_sum / self.losses if self.losses else None)
        self.history.seconds.append(round(self.seconds, 1))
        self.loss_sum, self.losses = 0.0, 0

    @classmethod
    def resume(cls, trainable: Trainable, checkpoints: Checkpoints) -> "Progress":
        """From the newest checkpoint, `trainable` restored; from the start where there is none.

        Raises: ResultsError, when the checkpoint is not one of this training.
        """
        checkpoint = checkpoints.load(like=trainable.arrays())
        if checkpoint is None:
            return cls()
        trainable.restore(checkpoint.arrays)
        numbers = dict(checkpoint.state)
        return cls(History(**numbers.pop("history")), **numbers)

    def save(self, trainable: Trainable, checkpoints: Checkpoints) -> None:
        """Write a checkpoint."""
        state = asdict(self)
        del state["unread"]
        checkpoints.save(self.step, trainable.arrays(), state)


def train(
    trainable: Trainable,
    schedule: Schedule,
    checkpoints: Checkpoints,
    metric_name: str,
    description: str = "training",
    evaluated: Callable[[History], None] = lambda history: None,
    stop: Stop | None = None,
    goes_on: bool = False,
) -> tuple[History, str]:
    """Train until the metric exceeds `stop_above` or for `max_steps`; resumes by itself.

    Evaluations come every `eval_interval` steps, the first before any update; `evaluated` is called
    after each that does not end the run. The state before the one that does is saved: a schedule
    that ends later need not evaluate there, and goes on as if it had not ended.
    goes_on: say so if there is no state to go on from. Returns the history and the outcome:
    "solved" or "not solved", "finished" where nothing was to be exceeded, or "diverged ...".
    Raises: KeyboardInterrupt, a checkpoint saved, once `stop` is wanted.
    """
    stop = stop or Stop()
    progress = Progress.resume(trainable, checkpoints)
    if goes_on and not progress.step:
        print(f"{description}: starts at step 0, {checkpoints.folder} holds no state to go on from")
    since = time.monotonic() - progress.seconds
    with progress_bar(description, schedule.max_steps, "step", progress.step) as bar:
        while True:
            progress.seconds = time.monotonic() - since
            if schedule.evaluates(progress.step):
                metric = trainable.evaluate()
                if not math.isfinite(metric):
                    words = f"diverged: the {metric_name} was {metric} at step {progress.step}"
                    return progress.history, words
                bar.set_postfix_str(f"{metric_name} {metric:.4f}")
                if outcome := schedule.outcome(progress.step, metric):
                    progress.save(trainable, checkpoints)
                progress.record(metric)
                if outcome:
                    return progress.history, outcome
                evaluated(progress.history)
            progress.add_loss(trainable.update(progress.step))
            bar.update()
            step, stops = progress.step, stop.wanted
            saves = stops or step % schedule.checkpoint_interval == 0
            reads = saves or schedule.evaluates(step) or step % UNREAD == 0
            if reads and (diverged := progress.read_losses()):
                return progress.history, diverged
            if saves:
                progress.seconds = time.monotonic() - since
                progress.save(trainable, checkpoints)
            if stops:
                raise KeyboardInterrupt


def checkpoint_config(config: Mapping[str, Any], data: Mapping[str, str]) -> dict[str, Any]:
    """What has to agree with a checkpoint: data exchanged since would give a curve of both."""
    return {**config, **{f"data file {name}": sha256 for name, sha256 in data.items()}}


class Tested(NamedTuple):
    """What a trained model is tested for, once, beside its curve."""

    arrays: Sequence[np.ndarray] = ()
    details: Mapping[str, Any] = {}  # for the record
    words: Sequence[str] = ()


class Prepared(NamedTuple):
    """A run that may begin: the same for the same config and data, wherever it is prepared."""

    trainable: Trainable
    schedule: Schedule
    metric: str  # its name in the record
    data: Mapping[str, str]  # SHA-256 of the data files, by name
    test: Callable[[], Tested] | None = None


Do = Callable[[Run, Prepared, Mapping[str, Any]], str]


def do_run(run: Run, prepared: Prepared, origin: Mapping[str, Any]) -> str:
    """One run of an experiment: train, save the result with its record, print a line.

    After every evaluation the curve so far is saved too, with a record that says `UNFINISHED`; over
    files of the same training that ended earlier, once it is as long as they are. Not where there
    is a test. A checkpoint to go on from has to be one of the same data.
    Returns the outcome. Raises: ResultsError, LockLostError, OSError, KeyboardInterrupt.
    """
    trainable, schedule, metric, data, test = prepared
    context, kept = run.context, steps_to_keep(run)
    process = {key: origin[key] for key in PROCESS if key in origin} | {"started": context.started}
    config = checkpoint_config(run.config, data)
    checkpoints = Checkpoints(checkpoint_folder(run), config, context.confirm, process)

    def save(history: History, outcome: str, tested: Tested) -> None:
        arrays, details = [], {"outcome": outcome}
        if history.steps:  # else it diverged before any update
            arrays = [np.asarray(history.steps), np.asarray(history.metric), *tested.arrays]
            details |= {"history": history.named(metric), **tested.details}
        done_by = checkpoints.processes
        made = {**origin, "started": done_by[0]["started"], "processes": done_by}
        save_run(run, arrays, details, made | ({"data": data} if data else {}))

    def evaluated(history: History) -> None:
        context.show(history.steps[-1], history.latest(metric))
        if test is None and history.steps[-1] >= kept:
            save(history, UNFINISHED, Tested())

    with context.stop.deferred():
        history, outcome = train(
            trainable,
            schedule,
            checkpoints,
            metric,
            run.label,
            evaluated=evaluated,
            stop=context.stop,
            goes_on=kept >= 0,
        )
        tested = test() if test else Tested()
        if history.steps:
            context.show(history.steps[-1], history.latest(metric))
        save(history, outcome, tested)
        checkpoints.keep(1)
    words = [f"{run.label}: {outcome}", *tested.words]
    if history.steps:
        last = f"{metric} {history.metric[-1]:.4f}, step {history.steps[-1]:,}"
        words[1:1] = [last, f"{history.seconds[-1]:,.0f} s"]
    print(", ".join(words), flush=True)
    return outcome


def do_runs(
    runs: Iterable[Run],
    prepare: Callable[[Run], Prepared],
    origin: Mapping[str, Any],
    do: Do = do_run,
) -> None:
    """Do the runs. One that diverges leaves a record that says so, and the others go on.

    do: what is done with a run that is prepared. Raises: as it and `prepare`, and, when all is
    done, FloatingPointError that names the runs that diverged.
    """
    report_divergence({run.label: do(run, prepare(run), origin) for run in runs})


def report_divergence(outcomes: Mapping[str, str]) -> None:
    """Raise FloatingPointError that names the runs that diverged, if any did; label -> outcome."""
    diverged = [f"{label} {text}" for label, text in outcomes.items() if "diverged" in text]
    if diverged:
        raise FloatingPointError("; ".join(diverged))


class DataOrder:
    """Endless batches of row numbers: every epoch a new order, any step without those before it."""

    def __init__(self, num_rows: int, batch_size: int, seed: Sequence[int]):
        """seed: integers that no other order of the run shares. A short last batch is left out."""
        self.num_rows = num_rows
        self.batch_size = min(batch_size, num_rows)
        self.seed = tuple(seed)
        self.batches = num_rows // self.batch_size
        self.epoch, self.order = -1, np.empty(0, dtype=np.int64)

    def rows(self, step: int) -> np.ndarray:
        """The rows of a step, counted from 0, int64 (batch_size,)."""
        epoch, place = divmod(step, self.batches)
        if epoch != self.epoch:
            rng = np.random.default_rng([*self.seed, epoch])
            self.epoch, self.order = epoch, rng.permutation(self.num_rows)
        return self.order[place * self.batch_size : (place + 1) * self.batch_size]
