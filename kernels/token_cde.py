"""The Linear CDE driven by the embeddings of tokens, its fields contracted once for each token.

Letters: V tokens, K distinct controls (at most V), E embedding width, H hidden width, b sequences,
L tokens of a sequence. The control is (t, x_t) by value, as in the paper's word problem:

    y_i = y_{i-1} + (F_k y_{i-1} + t_i A_0 y_{i-1} + B x_k + t_i B_0) / L,    F_k = sum_e A_e x_k^e

with k the control at place i. A block-diagonal A is held by its blocks, (G, k, k, E) with
H = G k. The divisor is L, or the `step_length` that a model keeps at every length, and then t goes
on past 1. The fields F_k are one matrix product; a scan over sequences and
places that contracts A anew at every place, as the equation reads, is in `linear_cde`. Training
differentiates `states_by_token`; evaluation, with NumPy, puts all sequences in the order of their
tokens at every position, so that each token's step is one matrix product.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer
from threadpoolctl import threadpool_limits

from kernels.shared_flows import Flows, in_panels, states_in_order

# So few outer products join the optimizer's pass over A; a matrix product is written out first.
FEW_CONTROLS = 4


def token_times(length: int, step_length: int | None) -> Float[Array, " L"]:
    """The time of each token: equally spaced from 0, 1 at token `step_length`, or at the last."""
    if step_length is None:
        return jnp.linspace(0, 1, length)
    return jnp.arange(length, dtype=jnp.float32) / max(1, step_length - 1)


def states_by_token(
    A: Float[Array, "H H E"] | Float[Array, "G k k E"],
    A_time: Float[Array, "H H"] | Float[Array, "G k k"],
    B: Float[Array, "H E"],
    B_time: Float[Array, " H"],
    init_matrix: Float[Array, "H E"],
    init_bias: Float[Array, " H"],
    embedding: Float[Array, "V E"],
    tokens: Integer[Array, "b L"],
    step_length: int | None = None,
) -> Float[Array, "b L H"]:
    """States at every position; A is contracted for each token, or place if those are fewer.

    The parameters as `linear_cde.LinearCDEByChannel` stores them. Equal to
    `linear_cde.A5LinearCDE.states`.
    """
    num_sequences, length = tokens.shape
    places = num_sequences * (length - 1)
    if places < len(embedding):
        controls = embedding[tokens[:, 1:].reshape(-1)]
        rows = jnp.arange(places).reshape(num_sequences, length - 1).T
    else:
        controls, rows = embedding, tokens[:, 1:].T
    fields, drifts = contract(A, controls), matmul(controls, B.T)
    start = matmul(embedding[tokens[:, 0]], init_matrix.T) + init_bias
    times = token_times(length, step_length)[1:]
    forcing = drifts[rows] + times[:, None, None] * B_time
    if step_length is not None:  # the scans divide by the length
        stretch = length / step_length
        fields, A_time, forcing = stretch * fields, stretch * A_time, stretch * forcing
    scan = euler_scan if A_time.ndim == 2 else block_scan
    return jnp.swapaxes(scan(fields, A_time, forcing, start, times, rows), 0, 1)


def matmul(left: Float[Array, "*a b"], right: Float[Array, "b c"]) -> Float[Array, "*a c"]:
    """float32 on a GPU too, where JAX's default rounds to TF32."""
    return jnp.matmul(left, right, precision="highest")


@jax.custom_vjp
def contract(
    A: Float[Array, "*field E"], controls: Float[Array, "K E"]
) -> Float[Array, "K *field"]:
    """The fields F_k = sum_e A_e x_k^e."""
    *field, width = A.shape
    return matmul(controls, A.reshape(-1, width).T).reshape(-1, *field)


def _contract_forward(A, controls):
    return contract(A, controls), (A, controls)


def _contract_backward(saved, d_fields):
    A, controls = saved
    d_flat = d_fields.reshape(len(controls), -1)
    d_controls = matmul(d_flat, A.reshape(-1, A.shape[-1]))
    if len(controls) <= FEW_CONTROLS:
        pairs = zip(d_fields, controls, strict=True)
        return sum(field[..., None] * control for field, control in pairs), d_controls
    return matmul(d_flat.T, controls).reshape(A.shape), d_controls


contract.defvjp(_contract_forward, _contract_backward)


@jax.custom_vjp
def euler_scan(
    fields: Float[Array, "K H H"],
    A_time: Float[Array, "H H"],
    forcing: Float[Array, "steps b H"],
    start: Float[Array, "b H"],
    times: Float[Array, " steps"],
    rows: Integer[Array, "steps b"],
) -> Float[Array, "L b H"]:
    """y_i = y_{i-1} + (F_{rows_i} y_{i-1} + t_i A_0 y_{i-1} + forcing_i) / L; all y, start first.

    Not differentiable in `times`. Its reverse pass adds each place's outer product to the gradient
    of that place's field, in place; differentiating the scan itself would move all K fields'
    gradients at every step.
    """
    length = len(times) + 1

    def step(y, inputs):
        t, row, force = inputs
        moved = jnp.einsum("bhj,bj->bh", fields[row], y, precision="highest")
        y = y + (moved + t * matmul(y, A_time.T) + force) / length
        return y, y

    _, states = jax.lax.scan(step, start, (times, rows, forcing))
    return jnp.concatenate([start[None], states])


def _scan_forward(fields, A_time, forcing, start, times, rows):
    states = euler_scan(fields, A_time, forcing, start, times, rows)
    return states, (fields, A_time, times, rows, states)


def _scan_backward(saved, d_states):
    fields, A_time, times, rows, states = saved
    length = len(states)

    def step(adjoint, inputs):
        t, row, d_state = inputs
        pulled = jnp.einsum("bhj,bh->bj", fields[row], adjoint, precision="highest")
        pulled = pulled + t * matmul(adjoint, A_time)
        return adjoint + pulled / length + d_state, adjoint / length

    d_start, d_forcing = jax.lax.scan(
        step, d_states[-1], (times, rows, d_states[:-1]), reverse=True
    )
    before = states[:-1]
    d_A_time = jnp.einsum("i,ibh,ibj->hj", times, d_forcing, before, precision="highest")
    d_fields = _sum_outer_products(d_forcing, before, rows, len(fields))
    return d_fields, d_A_time, d_forcing, d_start, None, None


def _sum_outer_products(
    left: Float[Array, "steps b H"],
    right: Float[Array, "steps b H"],
    rows: Integer[Array, "steps b"],
    num_controls: int,
) -> Float[Array, "K H H"]:
    hidden_dim = left.shape[-1]
    left, right = left.reshape(-1, hidden_dim), right.reshape(-1, hidden_dim)
    rows = rows.reshape(-1)

    def add(place, sums):
        return sums.at[rows[place]].add(left[place][:, None] * right[place][None, :])

    zeros = jnp.zeros((num_controls, hidden_dim, hidden_dim), left.dtype)
    return jax.lax.fori_loop(0, len(rows), add, zeros)


euler_scan.defvjp(_scan_forward, _scan_backward)


def block_scan(
    fields: Float[Array, "K G k k"],
    A_time: Float[Array, "G k k"],
    forcing: Float[Array, "steps b H"],
    start: Float[Array, "b H"],
    times: Float[Array, " steps"],
    rows: Integer[Array, "steps b"],
) -> Float[Array, "L b H"]:
    """`euler_scan` of block-diagonal fields, which are small: JAX's own gradient is no slower."""
    length = len(times) + 1

    def step(y, inputs):
        t, row, force = inputs
        blocks = y.reshape(len(y), *A_time.shape[:2])
        field = fields[row] + t * A_time
        moved = jnp.einsum("bghj,bgj->bgh", field, blocks, precision="highest")
        y = y + (moved.reshape(y.shape) + force) / length
        return y, y

    _, states = jax.lax.scan(step, start, (times, rows, forcing))
    return jnp.concatenate([start[None], states])


class BlockWeights(NamedTuple):
    """The parameters of an `A5LinearCDE` as NumPy arrays, named by their place in it."""

    embedding: Float[np.ndarray, "V E"]
    init_matrix: Float[np.ndarray, "H E"]
    init_bias: Float[np.ndarray, " H"]
    A_time: Float[np.ndarray, "H H"] | Float[np.ndarray, "G k k"]
    A: Float[np.ndarray, "H H E"] | Float[np.ndarray, "G k k E"]
    B_time: Float[np.ndarray, " H"]
    B: Float[np.ndarray, "H E"]
    mix_weight: Float[np.ndarray, "E H"]
    mix_bias: Float[np.ndarray, " E"]
    norm_weight: Float[np.ndarray, " E"]
    norm_bias: Float[np.ndarray, " E"]
    norm_eps: float
    out_weight: Float[np.ndarray, "V E"]
    out_bias: Float[np.ndarray, " V"]
    step_length: int | None


def correct_by_position(
    weights: BlockWeights,
    tokens: Integer[np.ndarray, "N L"],
    targets: Integer[np.ndarray, "N L"],
    batch_size: int,
    threads: int,
) -> Integer[np.ndarray, " L"]:
    """At each position the number of sequences whose token is right there, without dropout.

    Equal to the argmax of `linear_cde.A5LinearCDE`'s logits, but for ties within rounding; memory
    does not grow with the number of sequences.
    """
    flows_at = token_flows(weights, tokens.shape[1])

    def correct(first: int) -> np.ndarray:
        rows = slice(first, first + batch_size)
        return _count_correct(weights, flows_at, tokens[rows], targets[rows])

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(correct, range(0, len(tokens), batch_size)))


def token_flows(weights: BlockWeights, length: int) -> Callable[[int], Flows]:
    """The Euler step of each token as an affine map, by step."""
    steps = weights.step_length or length
    times, divisor = (np.arange(length) / max(1, steps - 1)).astype(np.float32), np.float32(steps)
    fields = np.tensordot(weights.embedding, weights.A, axes=(1, -1))
    by_token = np.ascontiguousarray(fields.swapaxes(-1, -2)) / divisor
    drifts = weights.embedding @ weights.B.T / divisor
    by_time = weights.A_time.swapaxes(-1, -2) / divisor
    if by_time.ndim == 3:
        by_token, by_time = in_panels(by_token), in_panels(by_time[None])[0]
    time_drift = weights.B_time / divisor

    def flows_at(step: int) -> Flows:
        t = times[step + 1]
        return Flows(by_token + t * by_time, drifts + t * time_drift)

    return flows_at


def _count_correct(
    weights: BlockWeights,
    flows_at: Callable[[int], Flows],
    tokens: Integer[np.ndarray, "N L"],
    targets: Integer[np.ndarray, "N L"],
) -> Integer[np.ndarray, " L"]:
    embedded = weights.embedding[tokens[:, 0]]
    start = embedded @ weights.init_matrix.T + weights.init_bias
    correct = np.zeros(tokens.shape[1], np.int64)
    correct[0] = np.sum(_predict(weights, start, embedded) == targets[:, 0])
    # Far beyond the trained length states may overflow: predictions of chance, and no fault here.
    with np.errstate(over="ignore", invalid="ignore"):
        for step, (rows, states) in enumerate(states_in_order(start, tokens[:, 1:], flows_at), 1):
            predicted = _predict(weights, states, weights.embedding[tokens[rows, step]])
            correct[step] = np.sum(predicted == targets[rows, step])
    return correct


def _predict(
    weights: BlockWeights, states: Float[np.ndarray, "N H"], embedded: Float[np.ndarray, "N E"]
) -> Integer[np.ndarray, " N"]:
    hidden = states @ weights.mix_weight.T
    hidden += weights.mix_bias
    np.maximum(hidden, 0, out=hidden)
    hidden += embedded
    hidden -= hidden.mean(axis=1, keepdims=True)
    variance = np.einsum("nh,nh->n", hidden, hidden)[:, None] / hidden.shape[1]
    hidden /= np.sqrt(variance + weights.norm_eps)
    # The norm's scale and shift go into the output layer, once instead of once for each row.
    out = weights.out_weight * weights.norm_weight
    bias = weights.out_bias + weights.out_weight @ weights.norm_bias
    return np.argmax(hidden @ out.T + bias, axis=1)
