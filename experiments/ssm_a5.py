"""RNN, Transformer, S4 and Mamba trained on a word problem: paper, section 5.2, Figure 2.

An embedding, one to four gated blocks, a linear output at every position, trained by AdamW on
cross-entropy; a step adds the gradients of a batch of sequences of length L and of one of length 2.
The metric is the fraction of correct tokens, and the search is for the fewest blocks that solve a
length.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from data_dir.finite_groups import group
from experiments.devices import torch_device, torch_numbers
from experiments.lcde_a5 import load_data
from experiments.schema import Length, PositiveFloat, PositiveInt, SSMConfig, WordConfig
from experiments.training_loop import Do, Prepared, Schedule, do_run
from harness.file_names import A5CurveKey, configuration_label
from harness.outcomes import failed
from harness.paths import A5_RESULTS, WORD_DATA
from harness.records import Run, outcome

if TYPE_CHECKING:
    import torch

    from torch_layers import Dropout

EXTRA = "torch"
A5Model = Literal["RNN", "Transformer", "S4", "Mamba"]


class Config(SSMConfig, WordConfig):
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

    models: Annotated[list[A5Model], Field(min_length=1)]
    depths: Annotated[list[PositiveInt], Field(min_length=1)]
    search: bool
    num_heads: PositiveInt
    feed_forward_dim: PositiveInt
    learning_rates: dict[A5Model, Annotated[list[PositiveFloat], Field(min_length=1)]]
    other_batch_sizes: dict[A5Model, dict[Length, PositiveInt]]
    epochs: PositiveInt

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
    runs = []
    lengths, depths = sorted(config.lengths), sorted(config.depths)
    for model, length, depth in product(config.models, lengths, depths):
        rate = config.learning_rates[model][depth - 1]
        batch_size = config.other_batch_sizes.get(model, {}).get(length, config.batch_size)
        settings = {"model": model, "length": length, "depth": depth}
        settings |= {"learning_rate": rate, "batch_size": batch_size}
        label = f"{config.group} length {length}, {configuration_label(model, depth, False)}"
        key = A5CurveKey(model, length, depth, rate, config.hidden_dim, config.seed)
        files = key.paths(results_dir / A5_RESULTS)
        runs.append(Run(label, files, {**config.identity(), **settings}))
    if not config.search:
        return runs
    return [replace(run, not_needed=partial(_why_not_needed, run, runs)) for run in runs]


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

    settings = run.config
    seed = training.run_seed(settings)
    data = load_data(config, settings["length"], folder)

    def on_device(rows: Sequence[np.ndarray]) -> tuple["torch.Tensor", ...]:
        return tuple(torch.from_numpy(x).to(where, torch.int32) for x in rows)

    generator = training.generator_of([*seed, training.DROPOUT], where)
    dropout = Dropout(config.dropout, generator)
    model = model_of(settings, backend, dropout).to(where)
    trainable = training.Training(
        torch.compile(model) if config.compile else model,
        torch.optim.AdamW(
            training.parameter_groups(model),
            lr=settings["learning_rate"],
            weight_decay=config.weight_decay,
        ),
        [(*on_device(rows), order) for rows, order in data.batches(settings, seed)],
        training.mean_cross_entropy,
        lambda m, *rows: training.accuracy(m, *rows, config.eval_batch_size),
        on_device(data.validation),
        dropout=(generator, [*seed, training.DROPOUT]),
    )
    schedule = Schedule(
        config.epochs * trainable.sources[0][2].batches,
        config.eval_interval,
        config.checkpoint_interval,
        config.stop_accuracy,
    )
    return Prepared(trainable, schedule, "accuracy", data.digests)


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
    model = model_of(settings, settings["scan_backend"], dropout)
    return training.with_parameters(model, parameters).to(where)


def model_of(settings: Mapping[str, Any], backend: str, dropout: "Dropout") -> Any:
    """The `SequenceModel` of a run's config, drawn from the run's own stream."""
    from experiments.ssm_training import PARAMETERS, generator_of, layer_maker, run_seed
    from torch_sequence_models import a5_model

    generator = generator_of([*run_seed(settings), PARAMETERS])
    attention = (settings["num_heads"], settings["feed_forward_dim"], dropout)
    return a5_model(
        layer_maker(settings, backend, generator, attention),
        vocabulary=group(settings["group"]).order,
        width=settings["hidden_dim"],
        depth=settings["depth"],
        positions=settings["length"] if settings["model"] == "Transformer" else None,
        dropout=dropout,
        generator=generator,
    )
