"""Random fields of every width and structure: what a trained readout gets from their states.

Letters: H hidden width, k block size, d path dimension, n points of a path, N paths.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from data_dir.datasets import ToyDataset, load_toy_dataset, training_paths
from experiments.lcde_toy import features_of, model_key, sample_times
from experiments.theory.antisymmetry import antisymmetric_terms, lattice_walks
from harness.records import Run

if TYPE_CHECKING:
    from kernels.shared_flows import SharedIncrements
    from linear_cde import Solver

TOY_TARGETS = {"area": 2, "volume": 3}  # path dimension
ANTISYMMETRIC = "antisymmetric_{}"  # level
PATH_BY_PATH = 1000  # paths solved together where increments do not repeat
# What a run's target and the sharing of its flows depend on.
TARGET = ("target", "input_dim", "num_paths", "train_fraction", "paper_data", "steps", "hidden_dim")

Target = tuple[ToyDataset, "SharedIncrements | None", str]


def do_fields(
    run: Run, data_dir: Path, load: Callable[..., Target], solve: Solver
) -> tuple[list[np.ndarray], dict[str, Any], dict[str, str]]:
    """RMSE on the validation paths of a run's random field, and of predicting zero, (2,).

    load: `load_target`, or one that remembers; solve: the same for all runs, since it is compiled.
    Raises: DataError, FloatingPointError.
    """
    from linear_cde import LinearCDE, train_linear

    config = run.config
    settings = {key: config[key] for key in (*TARGET, "seed") if key in config}
    data, shared, how = load(data_dir, **settings)
    block_size = None if config["block_size"] == "dense" else config["block_size"]
    key = model_key(config["seed"], config["run"])
    model = LinearCDE(config["hidden_dim"], config["input_dim"], key=key, block_size=block_size)
    sizes = SimpleNamespace(batch_size=PATH_BY_PATH, flow_batch_size=config["flow_batch_size"])
    features = features_of(model, data.paths, shared, sizes, solve, run.label)
    mse = train_linear(features, data.labels, data.num_train)
    zero = float(np.sqrt(np.mean(data.labels[data.num_train :].astype(np.float64) ** 2)))
    rmse = float(np.sqrt(mse))
    details = {"rmse": rmse, "mse": mse, "predicting_zero": zero, "solver": f"tsit5, {how}"}
    return [np.array([rmse, zero])], details, data.digests


def load_target(data_dir: Path, target: str, seed: int, hidden_dim: int, **settings: Any) -> Target:
    """The paths and labels of a run, and the increments whose flows it shares, with why.

    Area and volume: the toy data. Fully antisymmetric terms: random lattice walks of their own.
    Raises: DataError.
    """
    from kernels.shared_flows import find_shared_increments

    if target in TOY_TARGETS:
        data = load_toy_dataset(data_dir, **settings)
    else:
        data = antisymmetric_dataset(seed=seed, **settings)
    shared, how = find_shared_increments(sample_times(data.paths), data.paths, hidden_dim)
    return data, shared, f"shared flows: {how}" if shared else f"path by path: {how}"


def antisymmetric_dataset(
    input_dim: int, num_paths: int, train_fraction: float, steps: int, seed: int
) -> ToyDataset:
    """Lattice walks and their fully antisymmetric term of the level that is their dimension."""
    walks = lattice_walks(num_paths, steps, input_dim, seed)
    labels = antisymmetric_terms(walks)
    labels = (labels / np.max(np.abs(labels))).astype(np.float32)
    return ToyDataset(walks, labels, training_paths(train_fraction, num_paths), {})
