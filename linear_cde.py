"""The Linear CDE of the paper (section 4), its solvers, its readout, and its block for words.

    dZ_t = sum_i A_i Z_t d omega^i_t + B d xi_t,    Z_0 = init_matrix X_0 + init_bias

Letters: H hidden width, d path dimension, n points of a path, N paths, omega and xi the controls
(here both are (t, X_t): d + 1 channels, channel 0 is time). For the word problem: V tokens, E
embedding width, L tokens of a sequence, b sequences. A block-diagonal A is G = H / k blocks of
size k, (G, k, omega, k): G systems that do not see each other; k = 1 is a diagonal A.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray, Real

from kernels.token_cde import matmul, token_times

Precision = Literal["float32", "tf32"]
# A, dense or by its blocks.
Fields = Float[Array, "H omega H"] | Float[Array, "G k omega k"]
# solve(A, B, y0, ts, omega, xi) -> the state at ts[-1], (H,)
Solver = Callable[..., Float[Array, " H"]]


class LinearCDE(eqx.Module):
    """A Linear CDE with random, untrained vector fields (paper, section 4.1 and appendix F).

    init_matrix (H, d) and init_bias (H,) ~ N(0, 1); A (H, d + 1, H) ~ N(0, 1) / sqrt(H), or, with
    blocks of size k, (H / k, k, d + 1, k) ~ N(0, 1) / sqrt(k); B (H, d + 1) ~ N(0, 1). All float32,
    drawn with the Threefry layout of the released runs. The released class of this name (commit
    18a0a8d), with the solver as an argument of the call.
    """

    init_matrix: Float[Array, "H d"]
    init_bias: Float[Array, " H"]
    A: Fields
    B: Float[Array, "H xi"]

    def __init__(
        self,
        hidden_dim: int,
        input_dim: int,
        *,
        key: PRNGKeyArray,
        block_size: int | None = None,
    ):
        """Draw the parameters for paths in `input_dim` dimensions; block_size: None for a dense A.

        Raises: ValueError, where block_size does not divide hidden_dim.
        """
        if block_size is not None and hidden_dim % block_size:
            raise ValueError(f"block_size {block_size} does not divide hidden_dim {hidden_dim}")
        control_dim = input_dim + 1
        k = hidden_dim if block_size is None else block_size
        blocks = (hidden_dim,) if block_size is None else (hidden_dim // k, k)
        with jax.default_prng_impl("threefry2x32"), jax.threefry_partitionable(False):
            matrix_key, bias_key, A_key, B_key = jr.split(key, 4)
            self.init_matrix = jr.normal(matrix_key, (hidden_dim, input_dim), jnp.float32)
            self.init_bias = jr.normal(bias_key, (hidden_dim,), jnp.float32)
            self.A = jr.normal(A_key, (*blocks, control_dim, k), jnp.float32) / math.sqrt(k)
            self.B = jr.normal(B_key, (hidden_dim, control_dim), jnp.float32)

    def initial_state(self, x0: Float[Array, " d"]) -> Float[Array, " H"]:
        """Z_0 of a path that starts at x0."""
        return jnp.matmul(self.init_matrix, x0, precision="highest") + self.init_bias

    def __call__(
        self,
        ts: Real[Array, " n"],
        path: Float[Array, "n d"],
        solve: Solver,
    ) -> Float[Array, " H"]:
        """Z at the last time, by one of the solvers."""
        control = control_path(ts, path)
        return solve(self.A, self.B, self.initial_state(control[0, 1:]), ts, control, control)


def control_path(ts: Real[Array, " n"], path: Float[Array, "n d"]) -> Float[Array, "n omega"]:
    """The control (t, X_t), (n, d + 1). Without time as a channel the CDE could not tell speed."""
    return jnp.concatenate([ts[:, None], path], axis=1)


def apply_field(
    A: Fields,
    y: Float[Array, " H"],
    control: Float[Array, " omega"],
    matmul_precision: Precision = "float32",
) -> Float[Array, " H"]:
    """sum_i A_i y control^i, (H,), of a dense or a block-diagonal A.

    "tf32" rounds A and y to TF32's 10 mantissa bits, as an NVIDIA GPU's matrix product does by
    default, on any hardware; "float32" is full float32 on a GPU too. Raises: ValueError, for
    another precision.
    """
    if matmul_precision not in (known := get_args(Precision)):
        raise ValueError(f"matmul_precision must be one of {known}, not {matmul_precision!r}")
    if matmul_precision == "tf32":
        A, y = (jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10) for x in (A, y))
    *blocks, k = A.shape[:-2]
    rows = A.reshape(*blocks, k * A.shape[-2], A.shape[-1])
    if blocks:
        field = jnp.einsum("gij,gj->gi", rows, y.reshape(*blocks, k), precision="highest")
    else:
        field = jnp.matmul(rows, y, precision="highest")
    return jnp.matmul(field.reshape(len(y), len(control)), control, precision="highest")


def adaptive_cde_solve(
    A: Fields,
    B: Float[Array, "H xi"],
    y0: Float[Array, " H"],
    ts: Real[Array, " n"],
    omega: Float[Array, "n omega"],
    xi: Float[Array, "n xi"],
    *,
    rtol: float = 1e-2,
    atol: float = 1e-2,
    dt0: float = 0.01,
    matmul_precision: Precision = "float32",
    check_times: bool = True,
) -> Float[Array, " H"]:
    """Solve dZ = A Z d omega + B d xi from ts[0] to ts[-1] by adaptive Tsit5; returns Z_{ts[-1]}.

    The controls are interpolated linearly, so their derivatives jump at the sample times, where
    the solver is told to start a step. dt0 is the first step, in the unit of ts. The defaults are
    the paper's; the released function of this name (commit 18a0a8d) has them as constants.
    check_times: false where the caller knows that ts increases. Raises: ValueError, or an Equinox
    error under jit, where it does not; an Equinox error when the solver needs more than
    `most_steps(n)` steps.
    """
    ts = if_increasing(ts, ts) if check_times else ts
    ts = solver_times(ts)
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
        max_steps=most_steps(len(ts)),
    )
    return solution.ys[-1]


def solver_times(ts: Real[Array, " n"]) -> Float[Array, " n"]:
    """Times from 0 for diffrax, which passes over two units in the last place at every point.

    A CDE sees its controls, not the clock. So times start at 0, and are spread evenly where some
    interval is shorter than half the mean one, and would lose more.
    """
    ts = jnp.asarray(ts - ts[0])
    if not jnp.issubdtype(ts.dtype, jnp.floating):
        ts = ts.astype(float)  # diffrax has none that count in whole numbers
    short = jnp.any(jnp.diff(ts) < ts[-1] / (2 * max(1, len(ts) - 1)))
    return jnp.where(short, jnp.linspace(0, ts[-1], len(ts), dtype=ts.dtype), ts)


def most_steps(points: int) -> int:
    """How many steps the adaptive solver may take: diffrax's own limit, or 16 an interval."""
    return max(4096, 16 * (points - 1))


def if_increasing(ts: Real[Array, " n"], value: Array) -> Array:
    """The value, if times increase. Raises: ValueError; under jit, an Equinox error."""
    rule = "the times of a path must increase, each greater than the one before"
    if isinstance(ts, jax.core.Tracer):
        return eqx.error_if(value, ~jnp.all(jnp.diff(ts) > 0), rule)
    if not np.all(np.diff(ts) > 0):
        raise ValueError(f"{rule}, found {np.asarray(ts).tolist()}")
    return value


def scan_cde_solve(
    A: Fields,
    B: Float[Array, "H xi"],
    y0: Float[Array, " H"],
    ts: Real[Array, " n"],
    omega: Float[Array, "n omega"],
    xi: Float[Array, "n xi"],
    *,
    matmul_precision: Precision = "float32",
    check_times: bool = True,
) -> Float[Array, " H"]:
    """One Euler step of dZ = A Z d omega + B d xi for each interval; returns Z_{ts[-1]}.

    A CDE's Euler step sees the increments of its controls, not the clock; check_times and errors
    as of `adaptive_cde_solve`.
    """
    y0 = if_increasing(ts, y0) if check_times else y0
    velocities = (length_times_increments(omega), length_times_increments(xi))
    return euler_scan(A, B, y0, *velocities, matmul_precision=matmul_precision)[-1]


def euler_scan(
    A: Fields,
    B: Float[Array, "H xi"],
    y0: Float[Array, " H"],
    omega: Float[Array, "L omega"],
    xi: Float[Array, "L xi"],
    *,
    matmul_precision: Precision = "float32",
    step_length: int | None = None,
) -> Float[Array, "L H"]:
    """The paper's scan y_i = y_{i-1} + (A y_{i-1} omega_i + B xi_i) / L, i = 1..L-1; all y.

    omega and xi enter as values, not as increments: to first order in 1/L the scan solves
    dy = (A y omega_t + B xi_t) dt on [0, 1]. The released `scan_cde_solve` (commit 18a0a8d).
    step_length: divides in the place of L.
    """
    length = omega.shape[0] if step_length is None else step_length

    def step(y, controls):
        omega_i, xi_i = controls
        drift = jnp.matmul(B, xi_i, precision="highest")
        y = y + (apply_field(A, y, omega_i, matmul_precision) + drift) / length
        return y, y

    _, states = jax.lax.scan(step, y0, (omega[1:], xi[1:]))
    return jnp.concatenate([y0[None], states])


def length_times_increments(path: Float[Array, "n c"]) -> Float[Array, "n c"]:
    """N (X_i - X_{i-1}), with a row of zeros first: the velocity whose Euler scan sums to X."""
    return path.shape[0] * jnp.diff(path, axis=0, prepend=path[:1])


@eqx.filter_jit
def solve_paths(
    model: LinearCDE, ts: Real[Array, " n"], paths: Float[Array, "N n d"], solve: Solver
) -> Float[Array, "N H"]:
    """Z at the last time of every path, each solved by itself."""
    return jax.vmap(lambda path: model(ts, path, solve))(paths)


def train_linear(
    features: Float[np.ndarray, "N H"], labels: Float[np.ndarray, " N"], num_train: int
) -> float:
    """Fit the readout by ordinary least squares with an intercept; MSE on the validation paths.

    The released function of this name (commit 18a0a8d), given features. The first `num_train` rows
    train. Fitted in float64: a float32 least-squares solve alone moves the 2D MSE by 0.2 %, more
    than the choice of solver does.
    Raises: FloatingPointError, when a feature is not finite.
    """
    # Here, because it costs as much as JAX to import, and training on words does not need it.
    from sklearn.linear_model import LinearRegression

    if not np.isfinite(features).all():
        raise FloatingPointError("the Linear CDE's features are not finite: its solve diverged")
    features = features.astype(np.float64)
    readout = LinearRegression().fit(features[:num_train], labels[:num_train])
    residuals = readout.predict(features[num_train:]) - labels[num_train:]
    return float(np.mean(residuals**2))


class LinearCDEByChannel(eqx.Module):
    """A Linear CDE driven by embeddings, its parameters stored by channel of the control.

    A[h, j, e] and B[h, e] are the paper's A^e[h, j] and B[h, e] for channel e of the embedding,
    `A_time` and `B_time` those of time, None where time is no channel; with blocks of size k, A is
    (G, k, k, E). init_matrix and init_bias as in `LinearCDE`. Stored so, all fields A x_v are one
    matrix product of A and the embeddings (`kernels/token_cde.py`).
    """

    init_matrix: Float[Array, "H E"]
    init_bias: Float[Array, " H"]
    A_time: Float[Array, "H H"] | Float[Array, "G k k"] | None
    A: Float[Array, "H H E"] | Float[Array, "G k k E"]
    B_time: Float[Array, " H"] | None
    B: Float[Array, "H E"]

    def __init__(self, cde: LinearCDE, time_channel: bool):
        """The parameters of `cde`; time_channel: whether its first channel, time, is kept."""
        self.init_matrix, self.init_bias = cde.init_matrix, cde.init_bias
        self.A, self.B = jnp.swapaxes(cde.A[..., 1:, :], -1, -2), cde.B[:, 1:]
        self.A_time = cde.A[..., 0, :] if time_channel else None
        self.B_time = cde.B[:, 0] if time_channel else None

    def time_fields(self) -> tuple[Float[Array, "..."], Float[Array, " H"]]:
        """A and B of time, zeros where time is no channel."""
        if self.A_time is None:
            return jnp.zeros_like(self.A[..., 0]), jnp.zeros_like(self.B[:, 0])
        return self.A_time, self.B_time

    def matrices(self) -> tuple[Fields, Float[Array, "H xi"]]:
        """A and B as `LinearCDE` has them, time first."""
        A_time, B_time = self.time_fields()
        A = jnp.concatenate([A_time[..., None, :], jnp.swapaxes(self.A, -1, -2)], axis=-2)
        return A, jnp.concatenate([B_time[:, None], self.B], axis=1)


class A5LinearCDE(eqx.Module):
    """The paper's one block for word problems (section 5.2): logits of the running products.

    An embedding (V, E) ~ N(0, 1), E = H for the residual; the Linear CDE driven by (t, x_t) as
    values; dropout, a ReLU layer, dropout, the residual, layer norm, a linear output. The released
    class of this name (commit 18a0a8d); every parameter from a key of its own, where that one
    gives one key to four layers.
    """

    embedding: Float[Array, "V E"]
    cde: LinearCDEByChannel
    mix: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    out: eqx.nn.Linear
    step_length: int | None = eqx.field(static=True)

    def __init__(
        self,
        vocabulary: int,
        hidden_dim: int,
        *,
        key: PRNGKeyArray,
        block_size: int | None = None,
        time_channel: bool = True,
        step_length: int | None = None,
    ):
        """Draw the parameters for `vocabulary` tokens.

        block_size: None for a dense A; time_channel: whether t is a control; step_length: the L
        whose 1/L is the Euler step at any length; None, the paper's, for that of each sequence,
        which makes another equation of every length.
        """
        embedding_key, cde_key, mix_key, out_key = jr.split(key, 4)
        self.embedding = jr.normal(embedding_key, (vocabulary, hidden_dim), jnp.float32)
        cde = LinearCDE(hidden_dim, hidden_dim, key=cde_key, block_size=block_size)
        self.cde = LinearCDEByChannel(cde, time_channel)
        self.mix = eqx.nn.Linear(hidden_dim, hidden_dim, key=mix_key)
        self.norm = eqx.nn.LayerNorm(hidden_dim)
        self.out = eqx.nn.Linear(hidden_dim, vocabulary, key=out_key)
        self.step_length = step_length

    def __call__(
        self, tokens: Integer[Array, "b L"], dropout: float = 0.0, key: PRNGKeyArray | None = None
    ) -> Float[Array, "b L V"]:
        """Logits of each position; a `key` where there is dropout."""
        return self.logits(self.states(tokens), self.embedding[tokens], dropout, key)

    def states(self, tokens: Integer[Array, "b L"]) -> Float[Array, "b L H"]:
        """The CDE's states at every position: the paper's scan of each sequence.

        Training contracts A once for each token instead: `kernels.token_cde.states_by_token`.
        """
        A, B = self.cde.matrices()
        times = token_times(tokens.shape[1], self.step_length)
        paths = self.embedding[tokens]

        def scan(path, start):
            control = control_path(times, path)
            return euler_scan(A, B, start, control, control, step_length=self.step_length)

        starts = matmul(paths[:, 0], self.cde.init_matrix.T) + self.cde.init_bias
        return jax.vmap(scan)(paths, starts)

    def logits(
        self,
        states: Float[Array, "b L H"],
        embedded: Float[Array, "b L E"],
        dropout: float,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "b L V"]:
        """What stands behind the CDE: from its states to the logits of each position."""
        first_key, second_key = (None, None) if key is None else jr.split(key)
        hidden = drop(states, dropout, first_key)
        hidden = jax.nn.relu(matmul(hidden, self.mix.weight.T) + self.mix.bias)
        hidden = drop(hidden, dropout, second_key) + embedded
        hidden = jax.vmap(jax.vmap(self.norm))(hidden)
        return matmul(hidden, self.out.weight.T) + self.out.bias


def drop(x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "..."]:
    """Dropout: each value 0 with probability `rate`, else divided by 1 - rate."""
    if rate == 0:
        return x
    kept = jr.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)
