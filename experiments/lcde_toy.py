"""The random Linear CDE with a trained readout on the toy task: paper, section 5.1 and Figure 1.

A model is drawn, never trained; its state at t = 1 is the feature of a path, and ordinary least
squares fits the signature term to the features. Letters: H hidden width, d path dimension, n points
of a path, N paths.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float
from pydantic import model_validator

from data_dir.datasets import ToyDataset
from experiments.devices import jax_numbers, origin_of_jax_runs
from experiments.schema import LinearCDEConfig, PositiveFloat, PositiveInt, ToyConfig
from experiments.training_loop import report_divergence
from harness.file_names import ToyScoreKey
from harness.machine import available_cores
from harness.paths import TOY_RESULTS
from harness.progress import progress_bar
from harness.records import Run, save_run

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray

    from kernels.shared_flows import SharedIncrements
    from linear_cde import LinearCDE, Solver

EXTRA = "jax"
NUM_CHECKED = 8  # paths
# Relative, of a path's features. Shared flows and the paper's solve part by 1e-5: its rounding.
CHECK_TOLERANCE = 1e-2
PACKAGES = ("jax", "jaxlib", "diffrax", "equinox", "numpy", "scikit-learn", "scipy", "signax")


class Config(LinearCDEConfig, ToyConfig):
    """The settings; their values stand in experiment_configs/lcde_toy.yaml."""

    flags: ClassVar[Mapping[str, str]] = {"-s": "seed", "-i": "input_dims"}
    not_identity: ClassVar[frozenset[str]] = frozenset({"results_dir", "runs", "input_dims"})

    solver: Literal["tsit5", "scan"]
    rtol: PositiveFloat
    atol: PositiveFloat
    dt0: PositiveFloat
    share_flows: bool
    matmul_precision: Literal["float32", "tf32"]
    batch_size: PositiveInt
    flow_batch_size: PositiveInt

    @model_validator(mode="after")
    def _check_precision(self) -> Self:
        if self.matmul_precision == "tf32" and self.share_flows:
            raise ValueError(
                "matmul_precision: tf32 rounds inside every stage of every path's solve, so it "
                "needs share_flows: false (allowed with share_flows: true: float32)"
            )
        return self


def plan(config: Config, results_dir: Path) -> list[Run]:
    """One run for each path dimension d and run number."""
    return [
        Run(
            label=f"{input_dim}D run {run}",
            files=ToyScoreKey(input_dim, run).paths(results_dir / TOY_RESULTS),
            config={**config.identity(), "input_dim": input_dim, "run": run},
        )
        for input_dim in config.input_dims
        for run in range(config.runs)
    ]


@jax_numbers()
def run(config: Config, runs: Iterable[Run], data_dir: Path, device: str) -> None:
    """Do the runs, those of one dimension after each other: an MSE on the validation paths each.

    Raises: UnavailableError, DataError, OSError, and, when all is done, FloatingPointError that
    names the runs that diverged, which leave nothing.
    """
    origin = origin_of_jax_runs(PACKAGES, device)
    solve = solver_of(config)
    errors: dict[int, list[float]] = {}
    diverged, loaded = {}, None
    for run in runs:
        input_dim = run.config["input_dim"]
        if loaded != input_dim:
            dataset = config.data(data_dir, input_dim)
            shared, how = choose_sharing(config, dataset.paths)
            print(f"{input_dim}D: {len(dataset.paths):,} paths, {config.solver}, {how}", flush=True)
            loaded = input_dim
        try:
            mse, seconds = do_run(config, run, dataset, shared, solve)
        except FloatingPointError as error:
            diverged[run.label] = f"diverged: {error}"
            continue
        run.context.show(0, {"mse": mse})
        details = {"mse": mse, **seconds, "solver": f"{config.solver}, {how}"}
        save_run(run, [np.asarray(mse)], details, {**origin, "data": dataset.digests})
        print(f"{run.label}: MSE {mse:.6e} in {seconds['wall_time_s']:.1f} s", flush=True)
        errors.setdefault(input_dim, []).append(mse)
    print_spread(errors)
    report_divergence(diverged)


def do_run(
    config: Config,
    run: Run,
    dataset: ToyDataset,
    shared: SharedIncrements | None,
    solve: Solver,
) -> tuple[float, dict[str, float]]:
    """Draw the run's model, compute its features, fit the readout: the MSE, and what it took."""
    from linear_cde import LinearCDE, train_linear

    started = time.monotonic()
    key = model_key(config.seed, run.config["run"])
    model = LinearCDE(config.hidden_dim, run.config["input_dim"], key=key, block_size=config.blocks)
    features = features_of(model, dataset.paths, shared, config, solve, run.label)
    features_s = time.monotonic() - started
    mse = train_linear(features, dataset.labels, dataset.num_train)
    wall_time_s = time.monotonic() - started
    return mse, {"features_s": round(features_s, 2), "wall_time_s": round(wall_time_s, 2)}


def model_key(seed: int, run: int) -> PRNGKeyArray:
    """The model key of a run: the released runs' chain of splits, the same for every d."""
    import jax

    with jax.default_prng_impl("threefry2x32"), jax.threefry_partitionable(False):
        key = jax.random.PRNGKey(seed)
        for _ in range(run + 1):
            model_key, _, key = jax.random.split(key, 3)
    return model_key


def choose_sharing(
    config: Config, paths: Float[np.ndarray, "N n d"]
) -> tuple[SharedIncrements | None, str]:
    """The increments whose flows are shared, or None for path by path, and why in words."""
    from kernels.shared_flows import find_shared_increments

    if not config.share_flows:
        return None, "path by path (share_flows: false)"
    shared, reason = find_shared_increments(sample_times(paths), paths, config.hidden_dim)
    if shared is None:
        return None, f"path by path, though share_flows is true: {reason}"
    return shared, f"shared flows: {reason}"


def features_of(
    model: LinearCDE,
    paths: Float[np.ndarray, "N n d"],
    shared: SharedIncrements | None,
    config: Config,
    solve: Solver,
    description: str = "features",
) -> Float[np.ndarray, "N H"]:
    """The state Z at t = 1 of every path, (N, H) float32.

    shared: the paths' increments, to compose shared flows (in groups on a CPU, in blocks on a GPU);
    None to solve path by path, `batch_size` at a time, as the paper did.
    Raises: FloatingPointError, where the adaptive solver gives up, or as `check_features`.
    """
    import jax
    from equinox import EquinoxRuntimeError

    from kernels.shared_flows import compose_by_block, compose_by_group, interval_flows
    from linear_cde import most_steps, solve_paths

    ts = sample_times(paths)
    intervals = len(paths) * (len(ts) - 1)
    try:
        with progress_bar(description, intervals, "interval") as bar:
            if shared is None:
                parts = []
                for i in range(0, len(paths), config.batch_size):
                    batch = paths[i : i + config.batch_size]
                    parts.append(np.asarray(solve_paths(model, ts, batch, solve)))
                    bar.update(len(batch) * (len(ts) - 1))
                return np.concatenate(parts)
            flows = interval_flows(model.A, model.B, ts[:2], shared.values, solve)
            start = np.asarray(jax.vmap(model.initial_state)(paths[:, 0]))
            size = config.flow_batch_size
            if jax.default_backend() == "gpu":
                features = compose_by_block(flows, start, shared.ids, size, bar.update)
            else:
                threads = available_cores()
                features = compose_by_group(flows, start, shared.ids, size, threads, bar.update)
            check_features(model, paths, features, solve)
    except EquinoxRuntimeError:
        raise FloatingPointError(
            f"the solver failed: within {most_steps(len(ts))} steps it found no solution that "
            "meets rtol and atol"
        ) from None
    return features


def check_features(
    model: LinearCDE,
    paths: Float[np.ndarray, "N n d"],
    features: Float[np.ndarray, "N H"],
    solve: Solver,
) -> None:
    """Solve a few paths by themselves too: the largest one, and some of all.

    Raises: FloatingPointError, where composed flows are not the solution of a path.
    """
    from linear_cde import solve_paths

    largest = int(np.argmax(np.max(np.abs(paths), axis=(1, 2))))
    rows = np.unique([largest, *np.linspace(0, len(paths) - 1, NUM_CHECKED - 1, dtype=int)])
    path_by_path = np.asarray(solve_paths(model, sample_times(paths), paths[rows], solve))
    sizes = np.linalg.norm(path_by_path, axis=1)
    differences = np.linalg.norm(features[rows] - path_by_path, axis=1)
    # What is not finite path by path either is no fault of sharing: `train_linear` refuses it.
    if not np.all((differences <= CHECK_TOLERANCE * sizes) | ~np.isfinite(sizes)):
        raise FloatingPointError(
            "the features composed of shared flows are not those of the paths solved one by one: "
            "use share_flows: false, and please report these data"
        )


def solver_of(config: Config) -> Solver:
    """The solver a config names."""
    from linear_cde import adaptive_cde_solve, scan_cde_solve

    # `sample_times` increases.
    settings = {"matmul_precision": config.matmul_precision, "check_times": False}
    if config.solver == "scan":
        return partial(scan_cde_solve, **settings)
    tolerances = {"rtol": config.rtol, "atol": config.atol, "dt0": config.dt0}
    return partial(adaptive_cde_solve, **tolerances, **settings)


def sample_times(paths: Float[np.ndarray, "N n d"]) -> Float[np.ndarray, " n"]:
    """The times of a path's points: n equally spaced from 0 to 1."""
    return np.linspace(0, 1, paths.shape[1], dtype=np.float32)


def print_spread(errors: Mapping[int, list[float]]) -> None:
    """A line for each dimension: mean, least and greatest MSE over its runs."""
    for input_dim, found in sorted(errors.items()):
        spread = f"mean {np.mean(found):.4e}, least {min(found):.4e}, greatest {max(found):.4e}"
        print(f"{input_dim}D: validation MSE over {len(found)} runs: {spread}")
