"""Which runs an experiment consists of, and the files each leaves; no framework needed to ask."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from experiments.schema import LCDEA5Config, LCDEToyConfig, SSMA5Config, SSMToyConfig
from harness.file_names import (
    ToyCurveKey,
    a5_curve_name,
    a5_lcde_name,
    configuration_label,
    toy_lcde_name,
    toy_rmse_name,
    toy_steps_name,
)
from harness.paths import A5_RESULTS, TOY_RESULTS
from harness.records import Run, outcome


def plan_lcde_toy(config: LCDEToyConfig, results_dir: Path) -> list[Run]:
    """One run for each path dimension d and run number."""
    return [
        Run(
            label=f"{input_dim}D run {run}",
            files=(results_dir / TOY_RESULTS / toy_lcde_name(input_dim, run),),
            config={**config.identity(), "input_dim": input_dim, "run": run},
        )
        for input_dim in config.input_dims
        for run in range(config.runs)
    ]


def plan_lcde_a5(config: LCDEA5Config, results_dir: Path) -> list[Run]:
    """One run for each sequence length."""
    folder = results_dir / A5_RESULTS
    return [
        Run(
            label=f"{config.group} length {length}",
            files=tuple(folder / a5_lcde_name(length, kind) for kind in ("steps", "val_accs")),
            config={**config.identity(), "length": length},
        )
        for length in config.lengths
    ]


def plan_ssm_toy(config: SSMToyConfig, results_dir: Path) -> list[Run]:
    """One run for each path dimension, model, configuration of blocks and run number."""
    return [
        _toy_run(config, results_dir / TOY_RESULTS, input_dim, model, depth, nonlinear, run)
        for input_dim in config.input_dims
        for model in config.models
        for depth, nonlinear in _toy_configurations(config)
        for run in range(config.runs)
    ]


def _toy_configurations(config: SSMToyConfig) -> list[tuple[int, bool]]:
    """Depth and nonlinearity; the paper has no nonlinear model of depth 1.

    That one is run where nothing else is asked for.
    """
    pairs = [(depth, nonlinear) for depth in config.depths for nonlinear in config.nonlinear]
    return [pair for pair in pairs if pair != (1, True)] or pairs


def _toy_run(
    config: SSMToyConfig,
    folder: Path,
    input_dim: int,
    model: str,
    depth: int,
    nonlinear: bool,
    run: int,
) -> Run:
    key = ToyCurveKey(
        model, depth, nonlinear, input_dim, config.learning_rate, config.hidden_dim, run
    )
    settings = {
        "model": model,
        "depth": depth,
        "nonlinear": nonlinear,
        "input_dim": input_dim,
        "run": run,
    }
    return Run(
        label=f"{input_dim}D {configuration_label(model, depth, nonlinear)}, run {run}",
        files=(folder / toy_steps_name(key), folder / toy_rmse_name(key)),
        config={**config.identity(), **settings},
    )


def plan_ssm_a5(config: SSMA5Config, results_dir: Path) -> list[Run]:
    """One run for each model, length and number of blocks, in the order of the paper's search.

    With `search`, a run is not needed once fewer blocks have solved its length, or its number of
    blocks has failed at a shorter one.
    """
    folder = results_dir / A5_RESULTS
    runs = [
        _a5_run(config, folder, model, length, depth)
        for model in config.models
        for length in sorted(config.lengths)
        for depth in sorted(config.depths)
    ]
    if not config.search:
        return runs
    return [replace(run, not_needed=partial(_why_not_needed, run, runs)) for run in runs]


def _a5_run(config: SSMA5Config, folder: Path, model: str, length: int, depth: int) -> Run:
    learning_rate = config.learning_rates[model][depth - 1]
    batch_size = config.other_batch_sizes.get(model, {}).get(length, config.batch_size)
    settings = (model, length, depth, learning_rate, config.hidden_dim)
    return Run(
        label=f"{config.group} length {length}, {configuration_label(model, depth, False)}",
        files=tuple(
            folder / a5_curve_name(*settings, kind, config.seed) for kind in ("steps", "acc")
        ),
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
        if other_depth == depth and other_length < length:
            result = outcome(other)
            if result is not None and result != "solved":
                return f"{depth} blocks failed at length {other_length}"
    return ""
