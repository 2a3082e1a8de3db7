"""Which runs an experiment consists of, and the files each leaves; no framework needed to ask."""

from pathlib import Path

from experiment_config import LCDEA5Config, LCDEToyConfig
from experiment_results import Run
from result_files import A5_FOLDER, TOY_FOLDER, a5_lcde_name, toy_lcde_name


def plan_lcde_toy(config: LCDEToyConfig, results_dir: Path) -> list[Run]:
    """One run for each path dimension d and run number."""
    return [
        Run(
            label=f"{input_dim}D run {run}",
            files=(results_dir / TOY_FOLDER / toy_lcde_name(input_dim, run),),
            config={**config.identity(), "input_dim": input_dim, "run": run},
        )
        for input_dim in config.input_dims
        for run in range(config.runs)
    ]


def plan_lcde_a5(config: LCDEA5Config, results_dir: Path) -> list[Run]:
    """One run for each sequence length."""
    folder = results_dir / A5_FOLDER
    return [
        Run(
            label=f"{config.group} length {length}",
            files=tuple(folder / a5_lcde_name(length, kind) for kind in ("steps", "val_accs")),
            config={**config.identity(), "length": length},
        )
        for length in config.lengths
    ]
