"""The Linear CDE on the word problem of a finite group: paper, section 5.2, Figure 2.

One block is trained for each sequence length L, until it solves it. A step makes one update on
sequences of length L and one on sequences of length 2.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

from data_dir.a5_dataset import Arrays, load_word_problem, split
from data_dir.finite_groups import group
from experiments.devices import jax_device, jax_numbers, origin_of_jax_runs
from experiments.schema import LinearCDEConfig, PositiveFloat, PositiveInt, WordConfig
from experiments.training_loop import DataOrder, Do, Prepared, Schedule, do_run, do_runs
from harness.file_names import A5ScoreKey
from harness.paths import A5_RESULTS, WORD_DATA
from harness.records import Run
from kernels.allocator import keep_freed_memory

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray

    from experiments.lcde_training import Batch, Training
    from linear_cde import A5LinearCDE

EXTRA = "jax"
PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy")
# What a run draws with NumPy, after seed and length. Never 0: NumPy pads short seeds with zeros.
SPLIT, ORDER, SHORT_ORDER = 1, 2, 3


class Config(LinearCDEConfig, WordConfig):
    """The settings; their values stand in experiment_configs/lcde_a5.yaml."""

    flags: ClassVar[Mapping[str, str]] = {"-s": "seed", "-l": "lengths"}
    not_identity: ClassVar[frozenset[str]] = frozenset(
        {"results_dir", "lengths", "checkpoint_interval", "eval_batch_size"}
    )
    unsaid: ClassVar[Mapping[str, Any]] = {"step": "length", "time_channel": True}

    step: Literal["length", "fixed"]
    time_channel: bool
    learning_rate: PositiveFloat
    batch_size: PositiveInt
    max_steps: PositiveInt
    eval_interval: PositiveInt
    eval_batch_size: PositiveInt
    checkpoint_interval: PositiveInt


def plan(config: Config, results_dir: Path) -> list[Run]:
    """One run for each sequence length."""
    folder = results_dir / A5_RESULTS
    return [
        Run(
            label=f"{config.group} length {length}",
            files=A5ScoreKey(length).paths(folder),
            config={**config.identity(), "length": length},
        )
        for length in config.lengths
    ]


@jax_numbers()
def run(config: Config, runs: Iterable[Run], data_dir: Path, device: str, do: Do = do_run) -> None:
    """Do the runs, as `training_loop.do_runs`.

    Raises: UnavailableError, DataError, OSError, and, when all is done, FloatingPointError that
    names the runs that diverged.
    """
    keep_freed_memory()
    origin = origin_of_jax_runs(PACKAGES, device)
    do_runs(runs, partial(prepare, config, data_dir / WORD_DATA), origin, do)


def prepare(config: Config, folder: Path, run: Run) -> Prepared:
    """Data, model, optimizer and schedule of a run."""
    from experiments.lcde_training import accuracy

    data = load_data(config, run.config["length"], folder)
    metric = partial(accuracy, batch_size=config.eval_batch_size)
    schedule = Schedule(
        config.max_steps, config.eval_interval, config.checkpoint_interval, config.stop_accuracy
    )
    trainable = training_of(run.config, data, metric)
    return Prepared(trainable, schedule, "accuracy", data.digests)


class WordData(NamedTuple):
    """Sequences of one length, split, and where a step has a second batch those of length 2.

    Each with their running products, uint8 (b, L).
    """

    training: Arrays
    validation: Arrays
    pairs: Arrays | None
    digests: dict[str, str]  # file name -> SHA-256

    def batches(
        self, settings: Mapping[str, Any], seed: Sequence[int]
    ) -> list[tuple[Arrays, DataOrder]]:
        """For each batch of a step its data and their order; seed: integers that name the run."""
        sources = [(self.training, settings["batch_size"], ORDER)]
        if self.pairs is not None:
            sources.append((self.pairs, settings["short_batch_size"], SHORT_ORDER))
        return [(rows, DataOrder(len(rows[0]), size, [*seed, tag])) for rows, size, tag in sources]


def load_data(config: WordConfig, length: int, folder: Path) -> WordData:
    """The group's sequences of a length, split by the config's seed. Raises: DataError, OSError."""
    symbols, source = group(config.group), {"seed": config.data_seed, "samples": config.samples}
    rows = load_word_problem(folder, symbols, length, **source)
    rng = np.random.default_rng([config.seed, length, SPLIT])
    training, validation = split(rows.inputs, rows.targets, config.train_fraction, rng)
    if not config.short_batch_size:
        return WordData(training, validation, None, rows.digest)
    pairs = load_word_problem(folder, symbols, 2, **source)
    digests = rows.digest | pairs.digest
    return WordData(training, validation, (pairs.inputs, pairs.targets), digests)


def training_of(
    settings: Mapping[str, Any], data: WordData, metric: Callable[["A5LinearCDE", "Batch"], float]
) -> "Training":
    """A new model of a run's config and its training, drawn from the run's seed.

    metric: of the model and the validation sequences, where training is evaluated.
    """
    import jax.random as jr
    import optax

    from experiments.lcde_training import Batch, Training

    seed, length = settings["seed"], settings["length"]
    model_key, train_key = jr.split(jr.fold_in(jr.key(seed, impl="threefry2x32"), length))
    return Training(
        model_of(settings, model_key),
        [(Batch(*rows), order) for rows, order in data.batches(settings, [seed, length])],
        optax.adamw(settings["learning_rate"], weight_decay=settings["weight_decay"]),
        settings["dropout"],
        lambda model, *rows: metric(model, Batch(*rows)),
        data.validation,
        train_key,
    )


def model_of(settings: Mapping[str, Any], key: "PRNGKeyArray") -> "A5LinearCDE":
    """The model of a run's config, as a record has it, drawn from a key."""
    from linear_cde import A5LinearCDE

    return A5LinearCDE(
        group(settings["group"]).order,
        settings["hidden_dim"],
        key=key,
        block_size=settings.get("block_size"),
        time_channel=settings.get("time_channel", True),
        step_length=settings["length"] if settings.get("step") == "fixed" else None,
    )


@jax_numbers()
def trained_model(
    settings: Mapping[str, Any], parameters: Mapping[str, np.ndarray], device: str
) -> "A5LinearCDE":
    """The model of a run's config with these parameters.

    Raises: ValueError, where they do not fit; UnavailableError.
    """
    jax_device(device)
    import jax.random as jr

    from experiments.lcde_training import with_leaves

    return with_leaves(model_of(settings, jr.key(0)), parameters)
