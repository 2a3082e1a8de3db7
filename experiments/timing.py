"""What missing runs would cost here: a part of each configuration measured, and hours from that."""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.devices import jax_device, jax_numbers
from experiments.schema import ExperimentConfig
from experiments.training_loop import Prepared, Schedule, Trainable
from harness.checkpoints import checkpoint_folder
from harness.errors import ConfigError
from harness.machine import describe_machine
from harness.records import Run, Status, run_state, steps_to_keep

# What tells runs of the same cost from each other.
SAME_COST = {"seed", "run", "learning_rate"}
WARM_UP = 2  # updates: memory is allocated, programs are compiled
LEAST_S, MOST_STEPS = 3.0, 100
HOUR_S = 3600

StopOf = Callable[[Mapping[str, Any]], int | None]


@dataclass(frozen=True)
class Cost:
    """Seconds of an update, and of an evaluation: measured on some of the rows, and scaled up."""

    schedule: Schedule
    step_s: float
    evaluation_s: float
    measured: int
    rows: int

    def seconds(self, last: int, first: int = 0) -> float:
        """From one step to another: the updates, and the evaluations before and after them."""
        evaluations = len(range(first, last, self.schedule.eval_interval)) + 1
        return (last - first) * self.step_s + evaluations * self.evaluation_s

    def in_words(self) -> str:
        """What was measured, and a step with its share of all evaluations."""
        steps = self.schedule.max_steps
        return (
            f"{self.step_s:.4f} s a step, {self.evaluation_s:.2f} s an evaluation "
            f"({how_known(self.measured, self.rows)}), "
            f"{self.seconds(steps) / steps:.4f} s a step with evaluations"
        )


def print_hours(
    experiment: ModuleType,
    config: ExperimentConfig,
    runs: Sequence[Run],
    data_dir: Path,
    device: str,
    published_stop: StopOf,
) -> None:
    """Measure each configuration of the runs that are missing; print it, and the hours of its runs.

    Nothing is saved but data, which are made where they are missing, as runs do.
    published_stop: for a run's config the step at which the paper's run was solved, if known.
    Raises: ConfigError; as the experiment's `run`.
    """
    if not hasattr(experiment, "prepare") and not hasattr(experiment, "solver_of"):
        raise ConfigError(
            "--time: not with -e theory, whose runs take seconds to minutes, as its records say "
            "(allowed: -e toy, -e A5)"
        )
    missing = [run for run in runs if run_state(run).status is Status.MISSING]
    machine, load = describe_machine(), os.getloadavg()[0]
    print(f"on {machine['cpu']}, {machine['cores']} cores, which had a load of {load:.1f} before:")
    of_runs = hours_of_training if hasattr(experiment, "prepare") else hours_of_scores
    print(of_runs(experiment, config, groups_of_runs(missing), data_dir, device, published_stop))


def groups_of_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs by what decides their cost, in their order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = str({name: x for name, x in run.config.items() if name not in SAME_COST})
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def hours_of_training(
    experiment: ModuleType,
    config: Any,
    groups: Sequence[Sequence[Run]],
    data_dir: Path,
    device: str,
    published_stop: StopOf,
) -> str:
    """`print_hours` where models are trained; returns the sum in words."""
    to_the_end, to_the_stop = [], []
    group_of = {group[0].record: group for group in groups}

    def timed(run: Run, prepared: Prepared, origin: Mapping[str, Any]) -> str:
        cost = measure(prepared.trainable, prepared.schedule, config.eval_batch_size)
        group, last = group_of[run.record], prepared.schedule.max_steps
        whole = [cost.seconds(last, first_step(run)) for run in group]
        to_the_end.extend(whole)
        line = f"{what(group)}: {cost.in_words()}, {hours(whole)} to step {last:,}"
        if stop := published_stop(run.config):
            solved = [cost.seconds(stop)] * len(group)
            to_the_stop.extend(solved)
            line += f", {hours(solved)} to {stop:,}, where the paper's was solved"
        print(line, flush=True)
        return ""

    experiment.run(config, [group[0] for group in groups], data_dir, device, timed)
    total = f"{len(to_the_end)} missing runs: {hours(to_the_end)}"
    if to_the_stop:
        total += f"; {len(to_the_stop)} of them to where the paper's were solved: "
        total += hours(to_the_stop)
    return total


def measure(trainable: Trainable, schedule: Schedule, batch: int) -> Cost:
    """Time some updates, then evaluations; batch: the fewest rows that are evaluated."""
    for step in range(WARM_UP):
        float(trainable.update(step))
    started = time.monotonic()
    for step in range(WARM_UP, WARM_UP + MOST_STEPS):
        loss = trainable.update(step)
        if time.monotonic() - started >= LEAST_S:
            break
    float(loss)  # waits for the device
    step_s = (time.monotonic() - started) / (step - WARM_UP + 1)
    validation, rows = trainable.validation, len(trainable.validation[0])

    def evaluate(part: int) -> float:
        trainable.validation = [x[:part] for x in validation]
        started = time.monotonic()
        trainable.evaluate()
        return time.monotonic() - started

    part = min(batch, rows)
    evaluate(part)
    while (seconds := evaluate(part)) < LEAST_S and part < rows:
        part = min(4 * part, rows)
    return Cost(schedule, step_s, seconds * rows / part, part, rows)


def first_step(run: Run) -> int:
    """Where a run would go on: at the last evaluation of its files, if a state was kept."""
    kept = any(checkpoint_folder(run).glob("step_*.npz"))
    return max(steps_to_keep(run), 0) if kept else 0


@jax_numbers()
def hours_of_scores(
    experiment: ModuleType,
    config: Any,
    groups: Sequence[Sequence[Run]],
    data_dir: Path,
    device: str,
    published_stop: StopOf,
) -> str:
    """`print_hours` of the random Linear CDE: one run, or a batch of its paths, after a warm-up."""
    jax_device(device)
    solve, times = experiment.solver_of(config), []
    for group in groups:
        dataset = config.data(data_dir, group[0].config["input_dim"])
        shared, how = experiment.choose_sharing(config, dataset.paths)
        rows = len(dataset.paths)
        if shared is None:  # path by path: all batches cost the same
            part = min(rows, config.batch_size)
            arrays = {"paths": dataset.paths[:part], "labels": dataset.labels[:part]}
            dataset = replace(dataset, **arrays, num_train=int(config.train_fraction * part))
        for _ in range(2):  # the first compiles
            _, seconds = experiment.do_run(config, group[0], dataset, shared, solve)
        run_s = seconds["wall_time_s"] * rows / len(dataset.paths)
        times += [run_s] * len(group)
        known = how_known(len(dataset.paths), rows)
        print(f"{what(group)}: {run_s:.1f} s a run ({known}), {how}", flush=True)
    return f"{len(times)} missing runs: {hours(times)}"


def how_known(measured: int, rows: int) -> str:
    """Whether a time was measured whole."""
    return "measured" if measured == rows else f"estimated from {measured:,} of {rows:,} rows"


def what(group: Sequence[Run]) -> str:
    """A configuration in words, and how many runs it has."""
    label = re.sub(r",? run \d+$", "", group[0].label)
    return label if len(group) == 1 else f"{label}, {len(group)} runs"


def hours(seconds: Sequence[float]) -> str:
    """A sum as hours, in words."""
    total = sum(seconds) / HOUR_S
    return f"{total:,.0f} hours" if total >= 100 else f"{total:.2g} hours"
