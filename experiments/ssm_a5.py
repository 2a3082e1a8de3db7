"""RNN, Transformer, S4 and Mamba trained on a word problem: paper, section 5.2, Figure 2.

An embedding, one to four gated blocks, a linear output at every position, trained by AdamW on
cross-entropy; a step adds the gradients of a batch of sequences of length L and of one of length 2.
The metric is the fraction of correct tokens, and the search is for the fewest blocks that solve a
length.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from data_dir.a5_dataset import load_word_problem, split, training_rows
from data_dir.finite_groups import GROUP_NAMES, group
from experiments.devices import torch_device, torch_numbers
from experiments.schema import Depth, Fraction, PositiveFloat, PositiveInt, SSMConfig
from experiments.training_loop import DataOrder, Do, Prepared, Schedule, do_run
from harness.file_names import A5CurveKey, configuration_label
from harness.outcomes import failed
from harness.paths import A5_RESULTS, WORD_DATA
from harness.records import Run, outcome

if TYPE_CHECKING:
    import torch

    from torch_layers import Dropout

EXTRA = "torch"
A5Model = Literal["RNN", "Transformer", "S4", "Mamba"]
Length = Annotated[int, Field(ge=2)]


class Config(SSMConfig):
    """The settings; their values stand in experiment_configs/ssm_a5.yaml."""

    flags: ClassVar[Mapping[str, str]] = {
        "-s": "seed",
        "-n": "models",
        "-l": "lengths",
        "-d": "depths",
    }
    not_identity: ClassVar[frozenset[str]] = frozenset(
        {"results_dir", "models", "lengths", "depths", "learning_rates", "other_batch_sizes"}
        | {"batch_size", "search", "checkpoint_interval", "eval_batch_size"}
    )

    group: Literal[GROUP_NAMES]
    models: Annotated[list[A5Model], Field(min_length=1)]
    lengths: Annotated[list[Length], Field(min_length=1)]
    depths: Annotated[list[Depth], Field(min_length=1)]
    search: bool
    samples: Annotated[int, Field(ge=10)]
    data_seed: Annotated[int, Field(ge=0)]
    train_fraction: Fraction
    num_heads: PositiveInt
    feed_forward_dim: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]
    learning_rates: dict[A5Model, Annotated[list[PositiveFloat], Field(min_length=1)]]
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    other_batch_sizes: dict[A5Model, dict[Length, PositiveInt]]
    short_batch_size: Annotated[int, Field(ge=0)]
    epochs: PositiveInt
    stop_accuracy: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        for length in self.lengths:
            training_rows(self.train_fraction, min(self.samples, group(self.group).order ** length))
        return self

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for model in self.models:
            known = len(self.learning_rates.get(model, []))
            if known < max(self.depths):
                raise ValueError(
                    f"learning_rates: {known} for {model}, one for each depth up to "
                    f"{max(self.depths)} is needed"
                )
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} does not divide hidden_dim: {self.hidden_dim}"
            )
        return self


def plan(config: Config, results_dir: Path) -> list[Run]:
    """One run for each model, length and number of blocks, in the order of the paper's search.

    With `search`, a run is not needed once fewer blocks have solved its length, or its number of
    blocks has failed at a shorter one.
    """
    folder = results_dir / A5_RESULTS
    runs = [
        _run(config, folder, model, length, depth)
        for model in config.models
        for length in sorted(config.lengths)
        for depth in sorted(config.depths)
    ]
    if not config.search:
        return runs
    return [replace(run, not_needed=partial(_why_not_needed, run, runs)) for run in runs]


def _run(config: Config, folder: Path, model: str, length: int, depth: int) -> Run:
    learning_rate = config.learning_rates[model][depth - 1]
    batch_size = config.other_batch_sizes.get(model, {}).get(length, config.batch_size)
    key = A5CurveKey(model, length, depth, learning_rate, config.hidden_dim, config.seed)
    return Run(
        label=f"{config.group} length {length}, {configuration_label(model, depth, False)}",
        files=key.paths(folder),
        config={
            **config.identity(),
            "model": model,
            "length": length,
            "depth": depth,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
        },
    )


def _why_not_needed(run: Run, runs: Sequence[Run]) -> str:
    model, length, depth = (run.config[key] for key in ("model", "length", "depth"))
    for other in runs:
        other_length, other_depth = other.config["length"], other.config["depth"]
        if other.config["model"] != model:
            continue
        if other_length == length and other_depth < depth and outcome(other) == "solved":
            return f"{other_depth} blocks solve length {length}"
        if other_depth == depth and other_length < length and failed(outcome(other)):
            return f"{depth} blocks failed at length {other_length}"
    return ""


def run(config: Config, runs: Iterable[Run], data_dir: Path, device: str, do: Do = do_run) -> None:
    """Do the runs, as `training_loop.do_runs`.

    Raises: ConfigError, UnavailableError, DataError, OSError, and, when all is done,
    FloatingPointError that names the runs that diverged.
    """
    torch_numbers(config.matmul_precision)
    from experiments.ssm_training import do_all

    do_all(config, runs, device, partial(prepare, config, data_dir / WORD_DATA), do)


def prepare(
    config: Config, folder: Path, run: Run, where: "torch.device", backend: str
) -> Prepared:
    """Data, model, optimizer and schedule of a run."""
    import torch

    from experiments import ssm_training as training
    from torch_layers import Dropout

    settings, symbols = run.config, group(config.group)
    seed = training.run_seed(settings)
    sources, validation, digests = _data(config, settings, folder, where)
    generator = training.generator_of([*seed, training.DROPOUT], where)
    dropout = Dropout(config.dropout, generator)
    model = model_of(config, settings, symbols.order, backend, dropout).to(where)
    trainable = training.Training(
        training.maybe_compiled(model, config.compile),
        torch.optim.AdamW(
            training.parameter_groups(model),
            lr=settings["learning_rate"],
            weight_decay=config.weight_decay,
        ),
        [(*data, DataOrder(len(data[0]), size, [*seed, tag])) for data, size, tag in sources],
        training.mean_cross_entropy,
        lambda m, *rows: training.accuracy(m, *rows, config.eval_batch_size),
        validation,
        dropout=(generator, [*seed, training.DROPOUT]),
    )
    schedule = Schedule(
        config.epochs * trainable.sources[0][2].batches,
        config.eval_interval,
        config.checkpoint_interval,
        config.stop_accuracy,
    )
    return Prepared(trainable, schedule, "accuracy", digests)


def _data(
    config: Config, settings: Mapping[str, Any], folder: Path, where: "torch.device"
) -> tuple[list, tuple, dict[str, str]]:
    """Sources (rows, batch size, tag of their order), validation rows, the files' digests."""
    import torch

    from experiments.ssm_training import ORDER, SHORT_ORDER, SPLIT

    symbols, length = group(config.group), settings["length"]
    source = {"seed": config.data_seed, "samples": config.samples}

    def on_device(rows: Sequence[np.ndarray]) -> tuple["torch.Tensor", ...]:
        return tuple(torch.from_numpy(x).to(where, torch.int32) for x in rows)

    rng = np.random.default_rng([config.seed, length, SPLIT])
    rows = load_word_problem(folder, symbols, length, **source)
    parts = split(rows.inputs, rows.targets, config.train_fraction, rng)
    training, validation = map(on_device, parts)
    sources, digests = [(training, settings["batch_size"], ORDER)], rows.digest
    if config.short_batch_size:
        pairs = load_word_problem(folder, symbols, 2, **source)
        digests = digests | pairs.digest
        on_it = on_device((pairs.inputs, pairs.targets))
        sources.append((on_it, config.short_batch_size, SHORT_ORDER))
    return sources, validation, digests


def trained_model(
    settings: Mapping[str, Any], parameters: Mapping[str, np.ndarray], device: str
) -> Any:
    """The `SequenceModel` of a run's config with these parameters, to evaluate.

    Raises: ValueError, where they do not fit; UnavailableError.
    """
    from experiments import ssm_training as training
    from torch_layers import Dropout

    where = torch_device(device, "float32")
    dropout = Dropout(settings["dropout"], training.generator_of([1], where))
    config, symbols = Config.model_construct(**settings), group(settings["group"])
    model = model_of(config, settings, symbols.order, settings["scan_backend"], dropout)
    return training.with_parameters(model, parameters).to(where)


def model_of(
    config: Config, settings: Mapping[str, Any], vocabulary: int, backend: str, dropout: "Dropout"
) -> Any:
    """The `SequenceModel` of a run, drawn from the run's own stream."""
    from experiments.ssm_training import PARAMETERS, generator_of, layer_maker, run_seed
    from torch_sequence_models import a5_model

    generator = generator_of([*run_seed(settings), PARAMETERS])
    attention = (config.num_heads, config.feed_forward_dim, dropout)
    return a5_model(
        layer_maker(config, settings, backend, generator, attention),
        vocabulary=vocabulary,
        width=config.hidden_dim,
        depth=settings["depth"],
        positions=settings["length"] if settings["model"] == "Transformer" else None,
        dropout=dropout,
        generator=generator,
    )
