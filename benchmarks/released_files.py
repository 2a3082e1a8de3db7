"""A stand-in for the paper's released result files: their names, lengths and published values.

What is not published between two values is drawn as a smooth curve through them. For tests and
benchmarks of what reads result files; no result of anything.
"""

from pathlib import Path

import numpy as np

from harness.file_names import A5CurveKey, A5ScoreKey, Key, ToyCurveKey, ToyScoreKey
from harness.paths import A5_RESULTS, TOY_RESULTS
from verdict.results import LINEAR_CDE, published_results, published_run

RECORD_INTERVAL = 10_000  # steps
CHANCE = 1 / 60  # accuracy of guessing on A5
# Last step and accuracy of the runs for which no number is published.
UNPUBLISHED_END = {True: (20_000, 0.95), False: (990_000, 0.6)}  # by success


def write_released_files(results_dir: Path) -> list[Path]:
    """Write a whole set under `results_dir`; returns the paths."""
    published = published_results()
    return [
        *write_toy_files(results_dir, published["figure_1"]),
        *write_a5_files(results_dir, published["figure_2"]),
    ]


def write_toy_files(results_dir: Path, published: dict) -> list[Path]:
    """Write every run of Figure 1; returns the paths."""
    arrays = {
        ToyScoreKey(input_dim, run).names[0]: np.array(mse)
        for input_dim, runs in published["linear_cde"]["mse"].items()
        for run, mse in enumerate(runs)
    }
    part = published["sequence_models"]
    steps = np.arange(0, part["last_step"] + 1, RECORD_INTERVAL)
    rate, width = part["settings"]["learning_rate"], part["settings"]["hidden_dim"]
    for curve in part["curves"]:
        identity = [curve[name] for name in ("model", "depth", "nonlinear", "input_dim")]
        for run, rmse in enumerate(_five_runs(steps, curve["rmse"])):
            key = ToyCurveKey(*identity, learning_rate=rate, hidden_dim=width, run=run)
            arrays |= dict(zip(key.names, (steps, rmse), strict=True))
    return _save(results_dir / TOY_RESULTS, arrays)


def _five_runs(steps: np.ndarray, values: dict[int, dict[str, float]]) -> np.ndarray:
    """RMSE (5, records) with the mean, least and greatest that are published."""
    means = {step: value["mean"] for step, value in values.items() if "mean" in value}
    ranged = {step: values[step] for step in means if "min" in values[step]}
    mean = np.exp(_between(steps, {step: np.log(value) for step, value in means.items()}))
    low, high = (
        mean * _between(steps, {step: v[end] / v["mean"] for step, v in ranged.items()} or {0: 1.0})
        for end in ("min", "max")
    )
    middle = (5 * mean - low - high) / 3
    return np.stack([low, middle, middle, middle, high])


def _between(steps: np.ndarray, known: dict[int, float]) -> np.ndarray:
    places = [np.log(np.array(x) + RECORD_INTERVAL) for x in (steps, list(known))]
    return np.interp(*places, list(known.values()))


def write_a5_files(results_dir: Path, published: dict, every_depth: bool = False) -> list[Path]:
    """Write the runs that a search makes to find Figure 2's table; returns the paths.

    It stops at the first number of blocks that solves a length or, with `every_depth`, tries each
    until it fails.
    """
    arrays = {}
    for model, depth, length, solved in _searched(published, every_depth):
        last, accuracy = _end(published, model, depth, length, solved)
        steps = np.arange(0, last + 1, RECORD_INTERVAL)
        rising = np.linspace(CHANCE, 0.9 * accuracy, len(steps) - 1)
        names = _a5_key(published, model, depth, length).names
        arrays |= dict(zip(names, (steps, np.r_[rising, accuracy]), strict=True))
    return _save(results_dir / A5_RESULTS, arrays)


def _searched(published: dict, every_depth: bool) -> list[tuple[str, int, int, bool]]:
    """Model, depth, length and success."""
    table = published["min_blocks"]
    runs = []
    for model, blocks in table["models"].items():
        part = published["linear_cde" if model == LINEAR_CDE else "sequence_models"]
        failed = set()
        for length, fewest in zip(table["lengths"], blocks, strict=True):
            for depth in range(1, part["max_blocks"] + 1):
                solved = fewest is not None and depth >= fewest
                if depth not in failed:
                    runs.append((model, depth, length, solved))
                    if solved and not every_depth:
                        break
                if not solved:
                    failed.add(depth)
    return runs


def _end(published: dict, model: str, depth: int, length: int, solved: bool) -> tuple[int, float]:
    for known in (published["failures"], published["stopping_points"]):
        if run := published_run(known["runs"], model, depth, length):
            accuracy = run["accuracy"]
            return run["step"], accuracy["min"] if isinstance(accuracy, dict) else accuracy
    return UNPUBLISHED_END[solved]


def _a5_key(published: dict, model: str, depth: int, length: int) -> Key:
    if model == LINEAR_CDE:
        return A5ScoreKey(length)
    part = published["sequence_models"]
    rate, width = part["learning_rates"][model][depth - 1], part["settings"]["hidden_dim"]
    batch_size = part["other_batch_sizes"].get(model, {}).get(length)
    seed = part["settings"]["seed"]
    return A5CurveKey(model, length, depth, rate, width, seed, batch_size)


def _save(folder: Path, arrays: dict[str, np.ndarray]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / name, array)
    return [folder / name for name in arrays]
