"""The paper's theory in numbers: width, structure, kernel and groups of Linear CDEs.

An extension: the paper proves what is measured here (section 4; docs/theory.md says which part is
whose). Each part is a set of small runs; what a part measures stands in the file it is done in.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from data_dir.datasets import training_paths
from data_dir.finite_groups import GROUP_NAMES
from experiments.devices import jax_device, jax_numbers
from experiments.schema import ExperimentConfig, Fraction, PositiveFloat, PositiveInt
from experiments.theory_antisymmetry import do_algebra, do_floor
from experiments.theory_fields import ANTISYMMETRIC, TOY_TARGETS, do_fields, load_target
from experiments.theory_groups import do_exact
from experiments.theory_kernel import do_kernel
from harness.file_names import AlgebraKey, ExactKey, FieldsKey, FloorKey, KernelKey, Key
from harness.paths import THEORY_RESULTS
from harness.records import Run, provenance, save_run

EXTRA = "jax"
PACKAGES = ("jax", "jaxlib", "diffrax", "equinox", "numpy", "scikit-learn", "scipy", "signax")
PARTS = ("width", "structure", "kernel", "groups")
Sizes = Annotated[list[PositiveInt], Field(min_length=1)]
BlockSizes = Annotated[list[PositiveInt | Literal["dense"]], Field(min_length=1)]


class Config(ExperimentConfig):
    """The settings; their values stand in experiment_configs/theory.yaml."""

    flags: ClassVar[Mapping[str, str]] = {"-s": "seed"}

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

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for num_paths in (self.num_paths, self.antisymmetric_paths):
            training_paths(self.train_fraction, num_paths)
        self._check_blocks("block_sizes", "hidden_dims", self.hidden_dims)
        for part in ("structure", "antisymmetric"):
            key = f"{part}_hidden_dim"
            self._check_blocks(f"{part}_block_sizes", key, [getattr(self, key)])
        return self

    def _check_blocks(self, key: str, width_key: str, hidden_dims: list[int]) -> None:
        for size in getattr(self, key):
            for hidden_dim in hidden_dims:
                if size != "dense" and hidden_dim % size:
                    raise ValueError(
                        f"{key}: blocks of {size} do not fill a width of {hidden_dim}, which is "
                        f"in {width_key} (allowed: its divisors, and dense)"
                    )


def plan(config: Config, results_dir: Path) -> list[Run]:
    """The runs of the chosen parts; what two parts measure alike is one run."""
    runs = {}
    for part in config.parts:
        for kind, label, key, settings in PLANS[part](config):
            files = key.paths(results_dir / THEORY_RESULTS)
            runs[files] = Run(label, files, {"kind": kind, **vars(key), **settings})
    return list(runs.values())


Planned = tuple[str, str, Key, Mapping[str, Any]]


def plan_width(config: Config) -> Iterator[Planned]:
    """Area and volume against H, for each structure."""
    for target in TOY_TARGETS:
        for hidden_dim in config.hidden_dims:
            yield from fields(config, target, hidden_dim, config.block_sizes)


def plan_structure(config: Config) -> Iterator[Planned]:
    """Volume and fully antisymmetric terms against block size at equal H, and their algebra."""
    toy = toy_settings(config)
    yield "floor", "floor of the volume", FloorKey(), toy
    yield from fields(config, "volume", config.structure_hidden_dim, config.structure_block_sizes)
    for level in config.antisymmetric_levels:
        yield from fields(
            config,
            ANTISYMMETRIC.format(level),
            config.antisymmetric_hidden_dim,
            config.antisymmetric_block_sizes,
        )
    for size in config.algebra_block_sizes:
        settings = {"seed": config.seed, "draws": config.algebra_draws}
        yield "algebra", f"algebra k={size}", AlgebraKey(size), settings


def plan_kernel(config: Config) -> Iterator[Planned]:
    """The signature kernel against the size of the state."""
    names = ("draws", "paths", "scale", "level", "refinement")
    settings = {name: getattr(config, f"kernel_{name}") for name in names}
    settings |= {"seed": config.seed, "paper_data": config.paper_data}
    for state_dim in config.kernel_state_dims:
        yield "kernel", f"kernel N={state_dim}", KernelKey(state_dim), settings


def plan_groups(config: Config) -> Iterator[Planned]:
    """Groups solved by their representations."""
    settings = {"length": config.exact_length, "sequences": config.exact_sequences}
    settings["seed"] = config.seed
    for group in config.exact_groups:
        yield "exact", f"exact {group}", ExactKey(group), settings


PLANS = {
    "width": plan_width,
    "structure": plan_structure,
    "kernel": plan_kernel,
    "groups": plan_groups,
}


def fields(
    config: Config, target: str, hidden_dim: int, block_sizes: list[int | str]
) -> Iterator[Planned]:
    """Random fields of one width on one target."""
    settings = {"seed": config.seed, "flow_batch_size": config.flow_batch_size}
    if target in TOY_TARGETS:
        settings |= {"input_dim": TOY_TARGETS[target], **toy_settings(config)}
    else:
        settings |= {
            "input_dim": int(target.rpartition("_")[2]),
            "num_paths": config.antisymmetric_paths,
            "train_fraction": config.train_fraction,
            "steps": config.antisymmetric_steps,
        }
    for size in block_sizes:
        for run in range(config.runs):
            label = f"{target} H={hidden_dim} k={size} run {run}"
            yield "fields", label, FieldsKey(target, hidden_dim, size, run), settings


def toy_settings(config: Config) -> dict[str, Any]:
    """Which toy data are read."""
    names = ("num_paths", "train_fraction", "paper_data")
    return {name: getattr(config, name) for name in names}


@jax_numbers()
def run(config: Config, runs: Iterable[Run], data_dir: Path, device: str) -> None:
    """Do the runs, each a few numbers with its record.

    Raises: UnavailableError, DataError, OSError, FloatingPointError.
    """
    del config
    from linear_cde import adaptive_cde_solve

    load = lru_cache(maxsize=1)(load_target)
    solve = partial(adaptive_cde_solve, check_times=False)
    origin = provenance(PACKAGES, jax_device(device))
    do = {
        "fields": partial(do_fields, load=load, solve=solve),
        "floor": do_floor,
        "algebra": do_algebra,
        "kernel": do_kernel,
        "exact": do_exact,
    }
    for run in runs:
        started = time.monotonic()
        arrays, details, data = do[run.config["kind"]](run, data_dir)
        seconds = round(time.monotonic() - started, 2)
        run.context.show(0, {name: v for name, v in details.items() if isinstance(v, float)})
        save_run(run, arrays, {**details, "wall_time_s": seconds}, {**origin, "data": data})
        print(f"{run.label}: {in_words(details)} in {seconds:.1f} s", flush=True)


def in_words(details: Mapping[str, Any]) -> str:
    """The numbers of a run, by name."""
    numbers = {name: v for name, v in details.items() if isinstance(v, int | float)}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items())
