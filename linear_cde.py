"""The Linear CDE of the paper (section 4), its solvers, and its experiment on the toy task.

    dZ_t = sum_i A_i Z_t d omega^i_t + B d xi_t,    Z_0 = init_matrix X_0 + init_bias

Letters: H hidden width, d path dimension, n points of a path, N paths, omega and xi the controls
(here both are (t, X_t): d + 1 channels, channel 0 is time).
"""

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from sklearn.linear_model import LinearRegression

from data_dir.datasets import ToyDataset, load_toy_dataset
from experiments.schema import LCDEToyConfig
from harness.errors import UnavailableError
from harness.progress import progress_bar
from harness.records import Run, provenance, save_run
from kernels.shared_flows import (
    Flows,
    SharedIncrements,
    compose_by_gather,
    compose_by_group,
    find_shared_increments,
)

Precision = Literal["float32", "tf32"]
# solve(A, B, y0, ts, omega, xi) -> the state at ts[-1], (H,)
Solver = Callable[..., Float[Array, " H"]]
PACKAGES = ("jax", "jaxlib", "diffrax", "equinox", "numpy", "scikit-learn", "scipy", "signax")


class LinearCDE(eqx.Module):
    """A Linear CDE with random, untrained vector fields (paper, section 4.1 and appendix F).

    init_matrix (H, d) and init_bias (H,) ~ N(0, 1); A (H, d + 1, H) ~ N(0, 1) / sqrt(H);
    B (H, d + 1) ~ N(0, 1). All float32, drawn with the Threefry layout of the released runs.
    """

    init_matrix: Float[Array, "H d"]
    init_bias: Float[Array, " H"]
    A: Float[Array, "H omega H"]
    B: Float[Array, "H xi"]

    def __init__(self, hidden_dim: int, input_dim: int, *, key: PRNGKeyArray):
        """Draw the parameters for paths in `input_dim` dimensions."""
        control_dim = input_dim + 1
        with jax.default_prng_impl("threefry2x32"), jax.threefry_partitionable(False):
            matrix_key, bias_key, A_key, B_key = jr.split(key, 4)
            self.init_matrix = jr.normal(matrix_key, (hidden_dim, input_dim), jnp.float32)
            self.init_bias = jr.normal(bias_key, (hidden_dim,), jnp.float32)
            field = jr.normal(A_key, (hidden_dim, control_dim, hidden_dim), jnp.float32)
            self.A = field / math.sqrt(hidden_dim)
            self.B = jr.normal(B_key, (hidden_dim, control_dim), jnp.float32)

    def initial_state(self, x0: Float[Array, " d"]) -> Float[Array, " H"]:
        """Z_0 of a path that starts at x0."""
        return jnp.matmul(self.init_matrix, x0, precision="highest") + self.init_bias

    def __call__(
        self,
        ts: Float[Array, " n"],
        path: Float[Array, "n d"],
        solve: Solver,
    ) -> Float[Array, " H"]:
        """Z at the last time, by one of the solvers."""
        control = control_path(ts, path)
        return solve(self.A, self.B, self.initial_state(path[0]), ts, control, control)


def control_path(ts: Float[Array, " n"], path: Float[Array, "n d"]) -> Float[Array, "n omega"]:
    """The control (t, X_t), (n, d + 1). Without time as a channel the CDE could not tell speed."""
    return jnp.concatenate([ts[:, None], path], axis=1)


def apply_field(
    A: Float[Array, "H omega H"],
    y: Float[Array, " H"],
    control: Float[Array, " omega"],
    matmul_precision: Precision = "float32",
) -> Float[Array, " H"]:
    """sum_i A_i y control^i, (H,).

    "tf32" rounds A and y to TF32's 10 mantissa bits, as an NVIDIA GPU's matrix product does by
    default, on any hardware; "float32" is full float32 on a GPU too.
    """
    if matmul_precision == "tf32":
        A, y = (jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10) for x in (A, y))
    hidden_dim, control_dim, _ = A.shape
    field = jnp.matmul(A.reshape(hidden_dim * control_dim, hidden_dim), y, precision="highest")
    return jnp.matmul(field.reshape(hidden_dim, control_dim), control, precision="highest")


def adaptive_cde_solve(
    A: Float[Array, "H omega H"],
    B: Float[Array, "H xi"],
    y0: Float[Array, " H"],
    ts: Float[Array, " n"],
    omega: Float[Array, "n omega"],
    xi: Float[Array, "n xi"],
    *,
    rtol: float,
    atol: float,
    dt0: float,
    matmul_precision: Precision = "float32",
) -> Float[Array, " H"]:
    """Solve dZ = A Z d omega + B d xi from ts[0] to ts[-1] by adaptive Tsit5; returns Z_{ts[-1]}.

    The controls are interpolated linearly, so their derivatives jump at the sample times, where
    the solver is told to start a step. dt0 is the first step, in the unit of ts.
    Raises: an Equinox error when the solver needs more than 4096 steps.
    """
    omega_path = diffrax.LinearInterpolation(ts, omega)
    xi_path = diffrax.LinearInterpolation(ts, xi)

    def field(t, y, args):
        del args
        drift = jnp.matmul(B, xi_path.derivative(t), precision="highest")
        return apply_field(A, y, omega_path.derivative(t), matmul_precision) + drift

    controller = diffrax.PIDController(rtol=rtol, atol=atol)
    if len(ts) > 2:
        controller = diffrax.ClipStepSizeController(controller, jump_ts=ts[1:-1])
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        t0=ts[0],
        t1=ts[-1],
        dt0=dt0,
        y0=y0,
        stepsize_controller=controller,
    )
    return solution.ys[-1]


def scan_cde_solve(
    A: Float[Array, "H omega H"],
    B: Float[Array, "H xi"],
    y0: Float[Array, " H"],
    omega: Float[Array, "L omega"],
    xi: Float[Array, "L xi"],
    *,
    matmul_precision: Precision = "float32",
) -> Float[Array, "L H"]:
    """The Euler scan y_i = y_{i-1} + (A y_{i-1} omega_i + B xi_i) / L, i = 1..L-1; returns all y.

    omega and xi enter as values: to first order in 1/L the scan solves dy = (A y omega_t + B xi_t)
    dt on [0, 1]. For an Euler step of the CDE itself pass the controls' velocities.
    """
    length = omega.shape[0]

    def step(y, controls):
        omega_i, xi_i = controls
        drift = jnp.matmul(B, xi_i, precision="highest")
        y = y + (apply_field(A, y, omega_i, matmul_precision) + drift) / length
        return y, y

    _, states = jax.lax.scan(step, y0, (omega[1:], xi[1:]))
    return jnp.concatenate([y0[None], states])


def euler_cde_solve(
    A: Float[Array, "H omega H"],
    B: Float[Array, "H xi"],
    y0: Float[Array, " H"],
    ts: Float[Array, " n"],
    omega: Float[Array, "n omega"],
    xi: Float[Array, "n xi"],
    *,
    matmul_precision: Precision = "float32",
) -> Float[Array, " H"]:
    """One Euler step of dZ = A Z d omega + B d xi for each interval; returns the last Z."""
    del ts  # a CDE's Euler step sees the increments of its controls, not the clock
    velocities = (length_times_increments(omega), length_times_increments(xi))
    return scan_cde_solve(A, B, y0, *velocities, matmul_precision=matmul_precision)[-1]


def length_times_increments(path: Float[Array, "n c"]) -> Float[Array, "n c"]:
    """N (X_i - X_{i-1}), with a row of zeros first: the velocity whose Euler scan sums to X."""
    return path.shape[0] * jnp.diff(path, axis=0, prepend=path[:1])


def solver_from_config(config: LCDEToyConfig) -> Solver:
    """The solver a config names."""
    if config.solver == "scan":
        return partial(euler_cde_solve, matmul_precision=config.matmul_precision)
    return partial(
        adaptive_cde_solve,
        rtol=config.rtol,
        atol=config.atol,
        dt0=config.dt0,
        matmul_precision=config.matmul_precision,
    )


@eqx.filter_jit
def _solve_paths(model, ts, paths, solve):
    return jax.vmap(lambda path: model(ts, path, solve))(paths)


@eqx.filter_jit
def _solve_interval(A, drifts, ts, solve):
    control = jnp.array([[0.0], [1.0]], dtype=jnp.float32)
    zero = jnp.zeros_like(drifts[:, 0])

    def from_zero(drift):
        return solve(A[:, None, :], drift[:, None], zero, ts, control, control)

    return jax.vmap(from_zero, in_axes=1)(drifts)


def interval_flows(
    model: LinearCDE,
    ts: Float[np.ndarray, "2"],
    increments: Float[np.ndarray, "K omega"],
    solve: Solver,
) -> Flows:
    """Solve the flow from ts[0] to ts[1] for each increment of the control.

    From a unit vector e_j the state moves by W with dW = A W d omega + A e_j d omega, W = 0 at
    first: a solve from zero with A e_j in the place of B. So the rounding is relative to the
    movement, not to the state. The offset is the solve from zero with B itself.
    """
    hidden_dim = len(model.init_bias)
    solved = np.empty((len(increments), hidden_dim + 1, hidden_dim), dtype=np.float32)
    for k, increment in enumerate(increments):
        # Along one straight interval the control moves in one direction: contract with it.
        A = jnp.einsum("hij,i->hj", model.A, increment, precision="highest")
        drift = jnp.matmul(model.B, increment, precision="highest")
        solved[k] = _solve_interval(A, jnp.column_stack([A, drift]), ts, solve)
    return Flows(solved[:, :-1], solved[:, -1])


def obtain_features_from_model(
    model: LinearCDE,
    paths: Float[np.ndarray, "N n d"],
    shared: SharedIncrements | None,
    config: LCDEToyConfig,
    solve: Solver,
    description: str = "features",
) -> Float[np.ndarray, "N H"]:
    """The state Z at t = 1 of every path, (N, H) float32.

    shared: the paths' increments, to compose shared flows (grouped on a CPU, gathered on a GPU);
    None to solve path by path, `batch_size` at a time, as the paper did.
    """
    ts = sample_times(paths)
    with progress_bar(description, len(paths) * (len(ts) - 1), "interval") as bar:
        if shared is None:
            parts = []
            for i in range(0, len(paths), config.batch_size):
                batch = paths[i : i + config.batch_size]
                parts.append(np.asarray(_solve_paths(model, ts, batch, solve)))
                bar.update(len(batch) * (len(ts) - 1))
            return np.concatenate(parts)
        flows = interval_flows(model, ts[:2], shared.values, solve)
        start = np.asarray(jax.vmap(model.initial_state)(paths[:, 0]))
        if jax.default_backend() == "gpu":
            return compose_by_gather(flows, start, shared.ids, config.batch_size, bar.update)
        return compose_by_group(flows, start, shared.ids, config.flow_batch_size, bar.update)


def sample_times(paths: Float[np.ndarray, "N n d"]) -> Float[np.ndarray, " n"]:
    """The times of a path's points: n equally spaced from 0 to 1."""
    return np.linspace(0, 1, paths.shape[1], dtype=np.float32)


def train_linear(
    features: Float[np.ndarray, "N H"], labels: Float[np.ndarray, " N"], num_train: int
) -> float:
    """Fit the readout by ordinary least squares with an intercept; MSE on the validation paths.

    The first `num_train` rows train. Fitted in float64: a float32 least-squares solve alone moves
    the 2D MSE by 0.2 %, more than the choice of solver does.
    Raises: FloatingPointError, when a feature is not finite.
    """
    if not np.isfinite(features).all():
        raise FloatingPointError("the Linear CDE's features are not finite: its solve diverged")
    features = features.astype(np.float64)
    readout = LinearRegression().fit(features[:num_train], labels[:num_train])
    residuals = readout.predict(features[num_train:]) - labels[num_train:]
    return float(np.mean(residuals**2))


def run_model_key(seed: int, run: int) -> PRNGKeyArray:
    """The model key of a run: the released runs' chain of splits, the same for every d."""
    with jax.default_prng_impl("threefry2x32"), jax.threefry_partitionable(False):
        key = jr.PRNGKey(seed)
        for _ in range(run + 1):
            model_key, _, key = jr.split(key, 3)
    return model_key


def select_device(name: str) -> str:
    """Choose where JAX computes: "auto", "cpu" or "cuda"; returns the device in words.

    Raises: UnavailableError, when CUDA is asked for and JAX has none.
    """
    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        device = jax.devices("cuda" if name == "cuda" else None)[0]
    except RuntimeError:
        raise UnavailableError(
            "--device cuda: this JAX finds no CUDA device; install JAX for CUDA with "
            "pip install 'jax[cuda12]' (see environment-jax.yml), or use --device cpu"
        ) from None
    return device.device_kind if device.platform == "gpu" else device.platform


def run_lcde_toy_experiment(
    config: LCDEToyConfig, runs: Iterable[Run], data_dir: Path, device: str
) -> None:
    """Random Linear CDE, trained readout: the MSE on the validation paths, saved run by run.

    Paper, section 5.1 and Figure 1. runs: those to do, from `plan_lcde_toy`.
    Raises: UnavailableError, DataError, OSError, FloatingPointError.
    """
    origin = provenance(PACKAGES, select_device(device))
    solve = solver_from_config(config)
    errors: dict[int, list[float]] = {}
    loaded = None
    for run in runs:
        input_dim = run.config["input_dim"]
        if loaded != input_dim:
            dataset = load_toy_dataset(
                data_dir,
                input_dim,
                num_paths=config.num_paths,
                train_fraction=config.train_fraction,
                paper_data=config.paper_data,
            )
            shared, how = choose_sharing(config, dataset.paths)
            print(f"{input_dim}D: {len(dataset.paths):,} paths, {config.solver}, {how}", flush=True)
            loaded = input_dim
        mse, details = _run_model(config, run, dataset, shared, solve)
        details["solver"] = f"{config.solver}, {how}"
        run.context.show(0, {"mse": mse})
        save_run(run, [np.asarray(mse)], {"mse": mse, **details}, origin)
        print(f"{run.label}: MSE {mse:.6e} in {details['wall_time_s']:.1f} s", flush=True)
        errors.setdefault(input_dim, []).append(mse)
    for input_dim, found in sorted(errors.items()):
        spread = f"mean {np.mean(found):.4e}, least {min(found):.4e}, greatest {max(found):.4e}"
        print(f"{input_dim}D: validation MSE over {len(found)} runs: {spread}")


def _run_model(
    config: LCDEToyConfig,
    run: Run,
    dataset: ToyDataset,
    shared: SharedIncrements | None,
    solve: Solver,
) -> tuple[float, dict[str, object]]:
    started = time.monotonic()
    model_key = run_model_key(config.seed, run.config["run"])
    model = LinearCDE(config.hidden_dim, run.config["input_dim"], key=model_key)
    try:
        features = obtain_features_from_model(
            model, dataset.paths, shared, config, solve, run.label
        )
    except eqx.EquinoxRuntimeError:
        raise FloatingPointError(
            f"{run.label}: the solver failed: within diffrax's 4096 steps it found no solution "
            f"that meets rtol {config.rtol} and atol {config.atol}"
        ) from None
    features_s = time.monotonic() - started
    mse = train_linear(features, dataset.labels, dataset.num_train)
    wall_time_s = time.monotonic() - started
    return mse, {"features_s": round(features_s, 2), "wall_time_s": round(wall_time_s, 2)}


def choose_sharing(
    config: LCDEToyConfig, paths: Float[np.ndarray, "N n d"]
) -> tuple[SharedIncrements | None, str]:
    """The increments whose flows are shared, or None for path by path, and why in words."""
    if not config.share_flows:
        return None, "path by path (share_flows: false)"
    shared, reason = find_shared_increments(sample_times(paths), paths, config.hidden_dim)
    if shared is None:
        return None, f"path by path, though share_flows is true: {reason}"
    return shared, f"shared flows: {reason}"
