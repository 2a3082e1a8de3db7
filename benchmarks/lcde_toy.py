"""Shared flows against path by path: the features of one full-scale run of the toy task.

Both sides use this repository's Linear CDE, Tsit5 and tolerances, in one process, alternating,
after a warm-up that compiles both. Path by path through diffrax, as the released code did, runs on
a stated subset and is scaled linearly to all paths; shared flows run in full, flows included.
Also: how the cost of shared flows grows with the number of paths, and how far both sides' features
are apart. Run it on an otherwise idle machine. The last line is one JSON object.

    python benchmarks/lcde_toy.py [--input-dim 2] [--repeats 3] [--subset 4000]
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_dir.datasets import load_toy_dataset
from experiments.lcde_toy import (
    PACKAGES,
    Config,
    choose_sharing,
    features_of,
    model_key,
    solver_of,
)
from experiments.schema import load_config
from harness.machine import describe_machine, package_versions
from harness.paths import CONFIG_FOLDER, DATA_DIR
from linear_cde import LinearCDE

GROWTH = (25_000, 50_000, 100_000)
SMALLEST_SUBSET = 4000


def timed(make: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Seconds a call took, and what it returned."""
    start = time.perf_counter()
    result = make()
    return time.perf_counter() - start, result


def measure(input_dim: int, repeats: int, subset: int) -> dict[str, object]:
    """All figures of one input dimension."""
    config = load_config(Config, CONFIG_FOLDER / "lcde_toy.yaml", {})
    paths = load_toy_dataset(
        DATA_DIR,
        input_dim,
        num_paths=config.num_paths,
        train_fraction=config.train_fraction,
        paper_data=True,
    ).paths
    solve = solver_of(config)
    model = LinearCDE(config.hidden_dim, input_dim, key=model_key(config.seed, run=0))

    def ours(count: int = len(paths)) -> np.ndarray:
        shared, reason = choose_sharing(config, paths[:count])
        if shared is None:
            raise RuntimeError(reason)
        return features_of(model, paths[:count], shared, config, solve)

    def reference() -> np.ndarray:
        return features_of(model, paths[:subset], None, config, solve)

    reference()
    ours(subset)
    ours_s, reference_s = [], []
    for _ in range(repeats):
        seconds, features = timed(ours)
        ours_s.append(seconds)
        seconds, expected = timed(reference)
        reference_s.append(seconds * len(paths) / subset)
    difference = np.linalg.norm(features[:subset] - expected) / np.linalg.norm(expected)
    ours_median, reference_median = statistics.median(ours_s), statistics.median(reference_s)
    return {
        "benchmark": "features of one toy run, Linear CDE",
        "input_dim": input_dim,
        "paths": len(paths),
        "hidden_dim": config.hidden_dim,
        "ours_s": round(ours_median, 2),
        "reference_s": round(reference_median, 1),
        "speedup": round(reference_median / ours_median, 1),
        "reference": f"path by path on {subset} paths, times {len(paths) / subset:g}",
        "ours_all_s": [round(s, 2) for s in ours_s],
        "reference_all_s": [round(s, 1) for s in reference_s],
        "features_relative_difference": float(f"{difference:.2e}"),
        "growth_s": {str(n): round(timed(lambda n=n: ours(n))[0], 2) for n in GROWTH},
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "machine": {**describe_machine(), "packages": package_versions(PACKAGES)},
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input-dim", type=int, choices=[2, 3], default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--subset", type=int, default=SMALLEST_SUBSET)
    arguments = parser.parse_args()
    if arguments.subset < SMALLEST_SUBSET or arguments.repeats < 1:
        parser.error(f"--subset must be at least {SMALLEST_SUBSET}, --repeats at least 1")
    print(json.dumps(measure(arguments.input_dim, arguments.repeats, arguments.subset)))


if __name__ == "__main__":
    main()
