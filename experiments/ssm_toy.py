"""S4, Mamba and S5 trained on the toy task: paper, section 5.1, Figure 1.

A linear input layer, one or two blocks, the mean over positions, a linear output, trained by Adam
on the squared error; the metric is the RMSE on the validation paths.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from experiments.devices import torch_device, torch_numbers
from experiments.schema import PositiveFloat, PositiveInt, SSMConfig, ToyConfig
from experiments.training_loop import DataOrder, Do, Prepared, Schedule, do_run
from harness.file_names import ToyCurveKey, configuration_label
from harness.paths import TOY_RESULTS
from harness.records import Run

if TYPE_CHECKING:
    import torch

EXTRA = "torch"


class Config(SSMConfig, ToyConfig):
    """The settings; their values stand in experiment_configs/ssm_toy.yaml."""

    flags: ClassVar[Mapping[str, str]] = {
        "-s": "seed",
        "-n": "models",
        "-d": "depths",
        "-i": "input_dims",
        "-nl": "nonlinear",
    }
    not_identity: ClassVar[frozenset[str]] = frozenset(
        {"results_dir", "runs", "models", "input_dims", "depths", "nonlinear"}
        | {"checkpoint_interval", "eval_batch_size"}
    )

    models: Annotated[list[Literal["Mamba", "S4", "S5"]], Field(min_length=1)]
    depths: Annotated[list[PositiveInt], Field(min_length=1)]
    nonlinear: Annotated[list[bool], Field(min_length=1)]
    block_order: Literal["activate_then_mix", "mix_then_activate"]
    learning_rate: PositiveFloat
    max_steps: PositiveInt


def plan(config: Config, results_dir: Path) -> list[Run]:
    """One run for each path dimension, model, configuration of blocks and run number.

    The paper has no nonlinear model of depth 1: that one is run where nothing else is asked for.
    """
    blocks = [(depth, nonlinear) for depth in config.depths for nonlinear in config.nonlinear]
    blocks = [pair for pair in blocks if pair != (1, True)] or blocks
    rate, width = config.learning_rate, config.hidden_dim
    runs = []
    for input_dim, model, (depth, nonlinear), number in product(
        config.input_dims, config.models, blocks, range(config.runs)
    ):
        key = ToyCurveKey(model, depth, nonlinear, input_dim, rate, width, number)
        settings = {"model": model, "depth": depth, "nonlinear": nonlinear}
        settings |= {"input_dim": input_dim, "run": number}
        label = f"{input_dim}D {configuration_label(model, depth, nonlinear)}, run {number}"
        files = key.paths(results_dir / TOY_RESULTS)
        runs.append(Run(label, files, {**config.identity(), **settings}))
    return runs


def run(config: Config, runs: Iterable[Run], data_dir: Path, device: str, do: Do = do_run) -> None:
    """Do the runs, as `training_loop.do_runs`.

    Raises: ConfigError, UnavailableError, DataError, OSError, and, when all is done,
    FloatingPointError that names the runs that diverged.
    """
    torch_numbers(config.matmul_precision)
    from experiments.ssm_training import do_all

    do_all(config, runs, device, partial(prepare, config, data_dir), do)


def prepare(
    config: Config, data_dir: Path, run: Run, where: "torch.device", backend: str
) -> Prepared:
    """Data, model, optimizer and schedule of a run."""
    import torch

    from experiments import ssm_training as training

    settings = run.config
    data = config.data(data_dir, settings["input_dim"])
    paths, labels = (torch.from_numpy(x).to(where) for x in (data.paths, data.labels))
    seed = training.run_seed(settings)
    order = DataOrder(data.num_train, config.batch_size, [*seed, training.ORDER])
    validation = paths[data.num_train :], labels[data.num_train :]
    model = model_of(settings, backend).to(where)
    trainable = training.Training(
        torch.compile(model) if config.compile else model,
        torch.optim.Adam(training.parameter_groups(model), lr=config.learning_rate),
        [(paths, labels, order)],
        training.squared_error,
        lambda m, *rows: training.root_mean_square_error(m, *rows, config.eval_batch_size),
        validation,
    )
    schedule = Schedule(config.max_steps, config.eval_interval, config.checkpoint_interval)
    return Prepared(trainable, schedule, "rmse", data.digests)


def trained_model(
    settings: Mapping[str, Any], parameters: Mapping[str, np.ndarray], device: str
) -> Any:
    """The `SequenceModel` of a run's config with these parameters, to evaluate.

    Raises: ValueError, where they do not fit; UnavailableError.
    """
    from experiments import ssm_training as training

    where = torch_device(device, "float32")
    model = model_of(settings, settings["scan_backend"])
    return training.with_parameters(model, parameters).to(where)


def model_of(settings: Mapping[str, Any], backend: str) -> Any:
    """The `SequenceModel` of a run's config, drawn from the run's own stream."""
    from experiments.ssm_training import PARAMETERS, generator_of, layer_maker, run_seed
    from torch_sequence_models import toy_model

    generator = generator_of([*run_seed(settings), PARAMETERS])
    return toy_model(
        layer_maker(settings, backend, generator),
        input_dim=settings["input_dim"],
        width=settings["hidden_dim"],
        depth=settings["depth"],
        nonlinear=settings["nonlinear"],
        mix_first=settings["block_order"] == "mix_then_activate",
        generator=generator,
    )
