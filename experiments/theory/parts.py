"""The paper's theory in numbers: width, structure, kernel and groups of Linear CDEs.

An extension: the paper proves what is measured here (section 4; docs/theory.md says which part is
whose). Each part is a set of small runs; what a part measures stands in the file it is done in.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_dir.datasets import training_paths
from data_dir.finite_groups import GROUP_NAMES
from experiments import lcde_toy
from experiments.devices import jax_numbers, origin_of_jax_runs
from experiments.schema import ExperimentConfig, Fraction, PositiveFloat, PositiveInt
from experiments.theory.antisymmetry import do_algebra, do_floor
from experiments.theory.fields import ANTISYMMETRIC, TOY_TARGETS, do_fields, load_target
from experiments.theory.groups import do_exact
from experiments.theory.kernel import do_kernel
from experiments.theory.training import prepare
from experiments.training_loop import do_run, report_divergence
from harness.paths import THEORY_RESULTS
from harness.records import Run, save_run
from kernels.allocator import keep_freed_memory

EXTRA = "jax"
PACKAGES = (*lcde_toy.PACKAGES, "optax")
PARTS = ("width", "structure", "kernel", "groups", "lengths")
# The result files of each kind of run, named by its config. Learned groups: the curve, and the
# accuracy by position at its end.
LEARNED = tuple(
    f"{{kind}}_{{group}}_{{length}}_{{block_size}}_{array}_run_{{run}}.npy"
    for array in ("steps", "acc", "positions")
)
FILES = {
    "fields": ("fields_{target}_{hidden_dim}_{block_size}_run_{run}.npy",),
    "floor": ("floor_volume.npy",),
    "algebra": ("algebra_{block_size}.npy",),
    "kernel": ("kernel_{state_dim}.npy",),
    "exact": ("exact_{group}.npy",),
    "trained": LEARNED,
    "lengths": LEARNED,
}
# Keys of the config that runs take over: of those on the toy data, and of all trained ones.
TOY_KEYS = ("num_paths", "train_fraction", "paper_data")
TRAINING_KEYS = ("seed", "samples", "validation_samples", "test_samples", "batch_size")
TRAINING_KEYS += ("short_batch_size", "dropout", "weight_decay", "eval_interval")
Sizes = Annotated[list[PositiveInt], Field(min_length=1)]
BlockSizes = Annotated[list[PositiveInt | Literal["dense"]], Field(min_length=1)]


class TrainedGroup(BaseModel):
    """How a group's word problem is learned, for which blocks."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    length: Annotated[int, Field(ge=2)]
    hidden_dim: PositiveInt
    learning_rate: PositiveFloat
    block_sizes: Sizes


class Config(ExperimentConfig):
    """The settings; their values stand in experiment_configs/theory.yaml."""

    parts: Annotated[list[Literal[PARTS]], Field(min_length=1)]
    runs: PositiveInt

    num_paths: Annotated[int, Field(ge=10)]
    train_fraction: Fraction
    paper_data: bool
    flow_batch_size: PositiveInt
    hidden_dims: Sizes
    block_sizes: BlockSizes
    structure_hidden_dim: PositiveInt
    structure_block_sizes: BlockSizes

    antisymmetric_levels: Annotated[list[Literal[2, 3, 4, 5]], Field(min_length=1)]
    antisymmetric_hidden_dim: PositiveInt
    antisymmetric_block_sizes: BlockSizes
    antisymmetric_paths: Annotated[int, Field(ge=10)]
    antisymmetric_steps: PositiveInt
    algebra_block_sizes: Annotated[list[Annotated[int, Field(gt=0, le=5)]], Field(min_length=1)]
    algebra_draws: PositiveInt

    kernel_state_dims: Sizes
    kernel_draws: PositiveInt
    kernel_paths: PositiveInt
    kernel_scale: PositiveFloat
    kernel_level: PositiveInt
    kernel_refinement: Annotated[int, Field(ge=0)]

    exact_groups: Annotated[list[Literal[GROUP_NAMES]], Field(min_length=1)]
    exact_length: Annotated[int, Field(ge=2)]
    exact_sequences: PositiveInt
    trained_groups: dict[Literal[GROUP_NAMES], TrainedGroup]

    lengths_group: Literal[GROUP_NAMES]
    lengths_trained: Annotated[int, Field(ge=2)]
    lengths_tested: Annotated[int, Field(ge=2)]
    lengths_hidden_dim: PositiveInt
    lengths_block_sizes: BlockSizes
    lengths_learning_rate: PositiveFloat
    lengths_max_steps: PositiveInt

    samples: Annotated[int, Field(ge=10)]
    validation_samples: PositiveInt
    test_samples: PositiveInt
    batch_size: PositiveInt
    short_batch_size: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    max_steps: PositiveInt
    eval_interval: PositiveInt
    stop_accuracy: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for num_paths in (self.num_paths, self.antisymmetric_paths):
            training_paths(self.train_fraction, num_paths)
        check_blocks("block_sizes", self.block_sizes, self.hidden_dims)
        for part in ("structure", "antisymmetric", "lengths"):
            sizes, hidden_dim = f"{part}_block_sizes", getattr(self, f"{part}_hidden_dim")
            check_blocks(sizes, getattr(self, sizes), [hidden_dim])
        for name, chosen in self.trained_groups.items():
            check_blocks(f"trained_groups: {name}", chosen.block_sizes, [chosen.hidden_dim])
        return self


def check_blocks(key: str, block_sizes: list[int | str], hidden_dims: list[int]) -> None:
    """Refuse blocks that leave a rest of a width. Raises: ValueError."""
    for size in block_sizes:
        for hidden_dim in hidden_dims:
            if size != "dense" and hidden_dim % size:
                raise ValueError(
                    f"{key}: blocks of {size} do not fill a width of {hidden_dim} "
                    "(allowed: its divisors, and dense)"
                )


def plan(config: Config, results_dir: Path) -> list[Run]:
    """The runs of the chosen parts; what two parts measure alike is one run."""
    runs = {}
    for part in config.parts:
        for label, settings in PLANS[part](config):
            names = (name.format(**settings) for name in FILES[settings["kind"]])
            files = tuple(results_dir / THEORY_RESULTS / name for name in names)
            runs[files] = Run(label, files, settings)
    return list(runs.values())


# The label and the config of a run.
Planned = tuple[str, dict[str, Any]]


def plan_width(config: Config) -> Iterator[Planned]:
    """Area and volume against H, for each structure."""
    for target in TOY_TARGETS:
        for hidden_dim in config.hidden_dims:
            yield from fields(config, target, hidden_dim, config.block_sizes)


def plan_structure(config: Config) -> Iterator[Planned]:
    """Volume and fully antisymmetric terms against block size at equal H, and their algebra."""
    yield "floor of the volume", {"kind": "floor", **settings_of(config, TOY_KEYS)}
    yield from fields(config, "volume", config.structure_hidden_dim, config.structure_block_sizes)
    for level in config.antisymmetric_levels:
        target, hidden_dim = ANTISYMMETRIC.format(level), config.antisymmetric_hidden_dim
        yield from fields(config, target, hidden_dim, config.antisymmetric_block_sizes)
    for size in config.algebra_block_sizes:
        settings = {"kind": "algebra", "seed": config.seed, "draws": config.algebra_draws}
        yield f"algebra k={size}", {**settings, "block_size": size}


def plan_kernel(config: Config) -> Iterator[Planned]:
    """The signature kernel against the size of the state."""
    names = ("draws", "paths", "scale", "level", "refinement")
    settings = {name: getattr(config, f"kernel_{name}") for name in names}
    settings |= {"kind": "kernel", "seed": config.seed, "paper_data": config.paper_data}
    for state_dim in config.kernel_state_dims:
        yield f"kernel N={state_dim}", {**settings, "state_dim": state_dim}


def plan_groups(config: Config) -> Iterator[Planned]:
    """Groups solved by their representations, and learned with blocks of several sizes."""
    settings = {"length": config.exact_length, "sequences": config.exact_sequences}
    settings |= {"kind": "exact", "seed": config.seed}
    for group in config.exact_groups:
        yield f"exact {group}", {**settings, "group": group}
    for group, chosen in config.trained_groups.items():
        settings = settings_of(config, ("max_steps", "stop_accuracy"))
        settings |= {"hidden_dim": chosen.hidden_dim, "learning_rate": chosen.learning_rate}
        settings |= {"test_length": chosen.length, "step": "length", "time_channel": True}
        yield from trained(config, "trained", group, chosen.length, chosen.block_sizes, settings)


def plan_lengths(config: Config) -> Iterator[Planned]:
    """A group learned at one length with a fixed step and without time, tested far beyond."""
    settings = {"max_steps": config.lengths_max_steps, "stop_accuracy": None}
    settings |= {"hidden_dim": config.lengths_hidden_dim, "step": "fixed", "time_channel": False}
    settings |= {"learning_rate": config.lengths_learning_rate}
    settings |= {"test_length": config.lengths_tested}
    group, length = config.lengths_group, config.lengths_trained
    yield from trained(config, "lengths", group, length, config.lengths_block_sizes, settings)


PLANS = {
    "width": plan_width,
    "structure": plan_structure,
    "kernel": plan_kernel,
    "groups": plan_groups,
    "lengths": plan_lengths,
}


def fields(
    config: Config, target: str, hidden_dim: int, block_sizes: list[int | str]
) -> Iterator[Planned]:
    """Random fields of one width on one target."""
    settings = {"kind": "fields", "seed": config.seed, "target": target}
    settings |= {"hidden_dim": hidden_dim, "flow_batch_size": config.flow_batch_size}
    if target in TOY_TARGETS:
        settings |= {"input_dim": TOY_TARGETS[target], **settings_of(config, TOY_KEYS)}
    else:
        settings |= {
            "input_dim": int(target.rpartition("_")[2]),
            "num_paths": config.antisymmetric_paths,
            "train_fraction": config.train_fraction,
            "steps": config.antisymmetric_steps,
        }
    for size, run in product(block_sizes, range(config.runs)):
        label = f"{target} H={hidden_dim} k={size} run {run}"
        yield label, {**settings, "block_size": size, "run": run}


def trained(
    config: Config,
    task: str,
    group: str,
    length: int,
    block_sizes: list[int | str],
    settings: Mapping[str, Any],
) -> Iterator[Planned]:
    """A group learned with each block size."""
    settings = {**settings_of(config, TRAINING_KEYS), **settings}
    settings |= {"kind": task, "task": task, "group": group, "length": length}
    for size, run in product(block_sizes, range(config.runs)):
        label = f"{task} {group} L={length} k={size} run {run}"
        yield label, {**settings, "block_size": size, "run": run}


def settings_of(config: Config, keys: Iterable[str]) -> dict[str, Any]:
    """Some keys of the config with their values."""
    return {key: getattr(config, key) for key in keys}


@jax_numbers()
def run(config: Config, runs: Iterable[Run], data_dir: Path, device: str) -> None:
    """Do the runs, each a few numbers with its record.

    Raises: UnavailableError, DataError, ResultsError, OSError, and, when all is done,
    FloatingPointError that names the runs that diverged.
    """
    del config
    from linear_cde import adaptive_cde_solve

    keep_freed_memory()
    load = lru_cache(maxsize=1)(load_target)
    solve = partial(adaptive_cde_solve, check_times=False)
    measure = {
        "fields": partial(do_fields, load=load, solve=solve),
        "floor": do_floor,
        "algebra": lambda run, data_dir: do_algebra(run),
        "kernel": do_kernel,
        "exact": lambda run, data_dir: do_exact(run),
    }
    origin = origin_of_jax_runs(PACKAGES, device)
    outcomes = {}
    for run in runs:
        if run.config["kind"] not in measure:
            outcomes[run.label] = do_run(run, prepare(run), origin)
            continue
        try:
            do_measurement(run, partial(measure[run.config["kind"]], run, data_dir), origin)
        except FloatingPointError as error:
            outcomes[run.label] = f"diverged: {error}"
    report_divergence(outcomes)


Measurement = tuple[list[np.ndarray], dict[str, Any], dict[str, str]]


def do_measurement(run: Run, measure: Callable[[], Measurement], origin: Mapping[str, Any]) -> None:
    """Measure, save, and print a line."""
    started = time.monotonic()
    arrays, details, data = measure()
    seconds = round(time.monotonic() - started, 2)
    run.context.show(0, {name: v for name, v in details.items() if isinstance(v, float)})
    save_run(run, arrays, {**details, "wall_time_s": seconds}, {**origin, "data": data})
    numbers = {name: v for name, v in details.items() if isinstance(v, int | float)}
    words = ", ".join(f"{name.replace('_', ' ')} {v:.4g}" for name, v in numbers.items())
    print(f"{run.label}: {words} in {seconds:.1f} s", flush=True)
