"""Linear CDE features when paths repeat increments: solve each interval's flow once, compose many.

Over one sampling interval the control is a straight line, so a Linear CDE is a linear ODE with
constant coefficients and its flow is an affine map, Z -> Phi Z + c, that depends on the increment
alone. Integer random walks have a few hundred distinct increments; the features of all paths are
products of those few maps (Chen's relation for the flow).
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer
from threadpoolctl import threadpool_limits

FLOW_MEMORY_LIMIT = 2 * 2**30
# Two float32 differences of equal increments part by at most 2 eps max|X|: one rounding of each
# of the four points. Twice that leaves room for the time channel's own rounding.
INCREMENT_TOLERANCE = 4 * float(np.finfo(np.float32).eps)
HARMLESS = 1e-6  # of a path's largest increment
BLOCK = 32  # rows
PANEL = 8  # columns of the least matrix that is worth a product of its own on a CPU


@dataclass(frozen=True)
class SharedIncrements:
    """Distinct increments of a set of control paths, and which one each path takes where.

    values: (K, omega) float32, the distinct increments; ids: (N, n - 1) int32, rows of `values`.
    """

    values: Float[np.ndarray, "K omega"]
    ids: Integer[np.ndarray, "N intervals"]


@dataclass(frozen=True)
class Flows:
    """Affine flows of K increments, for states as rows: Z -> Z + Z movements[i] + offsets[i].

    movements: (K, H, H) float32, the transposed Phi - I, kept without the identity since its
    float32 rounding would repeat at every step; or its G blocks of k = H / G, (K, G, k, k), where
    it is block-diagonal. offsets: (K, H) float32.
    """

    movements: Float[np.ndarray, "K H H"] | Float[np.ndarray, "K G k k"]
    offsets: Float[np.ndarray, "K H"]

    def move(
        self, i: int, states: Float[np.ndarray, "N H"], moved: Float[np.ndarray, "N H"]
    ) -> None:
        """Write the states after increment i to `moved`."""
        movement = self.movements[i]
        if movement.ndim == 2:
            np.matmul(states, movement, out=moved)
        else:
            np.matmul(by_block(states, movement), movement, out=by_block(moved, movement))
        moved += self.offsets[i]
        moved += states


def by_block(
    states: Float[np.ndarray, "N H"], blocks: Float[np.ndarray, "G k k"]
) -> Float[np.ndarray, "G N k"]:
    """A view of the states as a block-diagonal matrix takes them, a matrix for each block."""
    return states.reshape(len(states), *blocks.shape[:2]).swapaxes(0, 1)


def in_panels(blocks: Float[np.ndarray, "K G k k"]) -> Float[np.ndarray, "K panels m m"]:
    """The same block-diagonal matrices in fewer and larger blocks, the rest of which is zero.

    A matrix product costs a call, below `PANEL` columns more than its sums.
    """
    count, num_blocks, k, _ = blocks.shape
    joined = math.gcd(num_blocks, max(1, PANEL // k))
    panels = np.zeros((count, num_blocks // joined, joined, k, joined, k), blocks.dtype)
    for place in range(joined):
        panels[:, :, place, :, place] = blocks[:, place::joined]
    return panels.reshape(count, num_blocks // joined, joined * k, joined * k)


def find_shared_increments(
    ts: Float[np.ndarray, " n"], paths: Float[np.ndarray, "N n d"], hidden_dim: int
) -> tuple[SharedIncrements | None, str]:
    """Find the distinct increments of (t, X), if sharing their flows pays.

    The rule: equal up to float32 rounding, K distinct increments with
    K (H + 1) <= N (n - 1) / 2 (a flow costs as much as H + 1 paths over one interval) and flows
    of at most 2 GiB. Returns the increments, or None, and a sentence that says why.
    """
    num_paths, length, _ = paths.shape
    intervals = num_paths * (length - 1)
    most = min(
        intervals // (2 * (hidden_dim + 1)),
        FLOW_MEMORY_LIMIT // (4 * hidden_dim * (hidden_dim + 1)),
    )
    channels = [np.broadcast_to(ts, (1, length)), *np.moveaxis(paths, 2, 0)]
    code = np.zeros((1, 1), dtype=np.int64)
    levels: list[np.ndarray] = []
    for channel in channels:
        clustered = _cluster_increments(channel, most)
        if clustered is None:
            return None, f"the increments do not repeat, or more than {most} are distinct"
        values, ids = clustered
        code = code * len(values) + ids
        levels.append(values)
    present, ids = np.unique(code, return_inverse=True)
    if len(present) > most:
        return None, f"{len(present)} increments are distinct, at most {most} pay"
    columns = np.unravel_index(present, [len(values) for values in levels])
    values = np.stack([v[c] for v, c in zip(levels, columns, strict=True)], axis=1)
    shared = SharedIncrements(
        values.astype(np.float32), ids.reshape(num_paths, length - 1).astype(np.int32)
    )
    return shared, f"{len(present)} distinct increments in {intervals:,} intervals"


def _cluster_increments(
    channel: Float[np.ndarray, "N n"], most: int
) -> tuple[Float[np.ndarray, " k"], Integer[np.ndarray, "N intervals"]] | None:
    """Group one channel's increments that differ by float32 rounding only.

    Returns (values (k,) float64, ids (N, n - 1)), or None when k > most, when the increments are
    spread too evenly to fall into groups, or when a point is not finite. How much rounding there is
    follows from the size of the paths: first the largest one's, and where that would throw together
    what smaller paths keep apart, less.
    """
    increments = np.diff(channel.astype(np.float64), axis=1)
    sizes = np.max(np.abs(channel), axis=1).astype(np.float64)
    rounding = INCREMENT_TOLERANCE * sizes
    # Of a path whose points are small; others' rounding in the mean does no harm below this.
    harmless = HARMLESS * np.max(np.abs(increments), axis=1)
    allowed = np.maximum(rounding, harmless)[:, None]
    tolerance = float(np.max(rounding))
    while math.isfinite(tolerance):
        clustered = _cluster_within(increments, tolerance, most)
        if clustered is None:
            return None
        values, ids = clustered
        if np.all(np.abs(increments - values[ids]) <= allowed):
            return clustered
        tolerance = tolerance / 16 if tolerance > np.min(rounding) else 0.0
    return None


def _cluster_within(
    increments: Float[np.ndarray, "N intervals"], tolerance: float, most: int
) -> tuple[Float[np.ndarray, " k"], Integer[np.ndarray, "N intervals"]] | None:
    """Groups of increments no further apart than `tolerance`, as `_cluster_increments` has them."""
    ordered = np.sort(increments, axis=None)
    firsts = np.concatenate([[0], np.flatnonzero(np.diff(ordered) > tolerance) + 1])
    if len(firsts) > most:
        return None
    lasts = np.append(firsts[1:], len(ordered)) - 1
    if np.any(ordered[lasts] - ordered[firsts] > tolerance):
        return None
    # The mean, since it averages the rounding of the points away.
    means = np.add.reduceat(ordered, firsts) / (lasts - firsts + 1)
    borders = (ordered[lasts[:-1]] + ordered[firsts[1:]]) / 2
    return means, np.searchsorted(borders, increments)


def interval_flows(
    A: Float[Array, "H omega H"] | Float[Array, "G k omega k"],
    B: Float[Array, "H omega"],
    ts: Float[np.ndarray, "2"],
    increments: Float[np.ndarray, "K omega"],
    solve: Callable[..., Float[Array, " H"]],
) -> Flows:
    """Solve the flow of a `LinearCDE` from ts[0] to ts[1] for each of K increments of the control.

    From a unit vector e_j the state moves by W with dW = A W d omega + A e_j d omega, W = 0 at
    first: a solve from zero with A e_j in the place of B. So the rounding is relative to the
    movement, not to the state. The offset is the solve from zero with B itself.
    """
    hidden_dim, k = len(B), A.shape[-1]
    solved = np.empty((len(increments), k + 1, hidden_dim), dtype=np.float32)
    for i, increment in enumerate(increments):
        # Along one straight interval the control moves in one direction: contract with it.
        field = jnp.einsum("...hij,i->...hj", A, increment, precision="highest")
        drift = jnp.matmul(B, increment, precision="highest")
        # Blocks do not see each other: the unit vectors e_j of all of them move in one solve.
        drifts = jnp.column_stack([field.reshape(hidden_dim, k), drift])
        solved[i] = _solve_interval(field, drifts, ts, solve)
    movements, offsets = solved[:, :-1], solved[:, -1]
    if A.ndim == 3:
        return Flows(movements, offsets)
    by_block = movements.reshape(len(increments), k, hidden_dim // k, k).swapaxes(1, 2)
    return Flows(in_panels(by_block), offsets)


@eqx.filter_jit
def _solve_interval(field, drifts, ts, solve):
    control = jnp.array([[0.0], [1.0]], dtype=jnp.float32)
    zero = jnp.zeros_like(drifts[:, 0])

    def from_zero(drift):
        return solve(field[..., None, :], drift[:, None], zero, ts, control, control)

    return jax.vmap(from_zero, in_axes=1)(drifts)


def compose_by_group(
    flows: Flows,
    start: Float[np.ndarray, "N H"],
    ids: Integer[np.ndarray, "N intervals"],
    batch_size: int,
    threads: int,
    advance: Callable[[int], object] = lambda intervals: None,
) -> Float[np.ndarray, "N H"]:
    """Carry every state through its sequence of flows; the form for a CPU.

    At each interval the states are put in the order of their increments, so that each distinct
    flow is one matrix product. Each of the `threads` takes batches of paths; the batch size, not
    the number of threads, decides the result's last bits. `advance` is told the intervals done.
    """
    batches = range(0, len(start), batch_size)
    stop = Event()

    def compose(i: int) -> np.ndarray:
        batch = slice(i, i + batch_size)
        reached = states_in_order(start[batch], ids[batch], lambda interval: flows)
        for _ in range(ids.shape[1]):
            rows, states = next(reached)
            advance(len(start[batch]))
            if stop.is_set():
                raise InterruptedError("composition was stopped")
        return states[np.argsort(rows)]

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        try:
            return np.concatenate(list(pool.map(compose, batches)))
        finally:
            stop.set()


def states_in_order(
    start: Float[np.ndarray, "N H"],
    ids: Integer[np.ndarray, "N intervals"],
    flows_at: Callable[[int], Flows],
) -> Iterator[tuple[Integer[np.ndarray, " N"], Float[np.ndarray, "N H"]]]:
    """The states after each interval, grouped by the flow they just took.

    flows_at(interval) gives the flows whose rows `ids[:, interval]` names. Yields (rows, states):
    states[i] belongs to path rows[i]; both arrays are reused by the next interval.
    """
    states, ordered = start.copy(), np.empty_like(start)
    rows = np.arange(len(start))
    for interval in range(ids.shape[1]):
        flows = flows_at(interval)
        taken = ids[rows, interval]
        order = np.argsort(taken, kind="stable")
        bounds = np.searchsorted(taken[order], np.arange(len(flows.movements) + 1))
        np.take(states, order, axis=0, out=ordered, mode="clip")
        rows = rows[order]
        for k in np.flatnonzero(np.diff(bounds)).tolist():
            group = slice(bounds[k], bounds[k + 1])
            flows.move(k, ordered[group], states[group])
        yield rows, states


def compose_by_block(
    flows: Flows,
    start: Float[np.ndarray, "N H"],
    ids: Integer[np.ndarray, "N intervals"],
    batch_size: int,
    advance: Callable[[int], object] = lambda intervals: None,
) -> Float[np.ndarray, "N H"]:
    """The same as `compose_by_group`, in arrays of fixed shapes; the form for a GPU.

    At each interval the states of a flow fill blocks of `BLOCK` rows, the last one up with zeros,
    and each block is one matrix of a batched product. Holds (batch_size / BLOCK + K) H^2 floats on
    the device. Where flows are block-diagonal themselves, each state is multiplied by its own.
    """
    movements, offsets = jnp.asarray(flows.movements), jnp.asarray(flows.offsets)
    parts = []
    for i in range(0, len(start), batch_size):
        batch_ids = ids[i : i + batch_size]
        parts.append(np.asarray(_carry(movements, offsets, start[i : i + batch_size], batch_ids)))
        advance(batch_ids.size)
    return np.concatenate(parts)


@jax.jit
def _carry(
    movements: jax.Array, offsets: jax.Array, states: jax.Array, ids: jax.Array
) -> jax.Array:
    move = _move_each if movements.ndim == 4 else _move_in_blocks

    def interval(states, taken):
        return states + (move(movements, states, taken) + offsets[taken]), None

    return jax.lax.scan(interval, states, ids.T)[0]


def _move_in_blocks(movements: jax.Array, states: jax.Array, taken: jax.Array) -> jax.Array:
    rows, flow_of_block = _blocks(taken, len(movements))
    blocks = jnp.zeros((len(flow_of_block) * BLOCK, states.shape[1]), states.dtype)
    blocks = blocks.at[rows].set(states, unique_indices=True)
    blocks = blocks.reshape(-1, BLOCK, states.shape[1])
    moved = jnp.matmul(blocks, movements[flow_of_block], precision="highest")
    return moved.reshape(-1, states.shape[1])[rows]


def _move_each(movements: jax.Array, states: jax.Array, taken: jax.Array) -> jax.Array:
    blocks = states.reshape(len(states), *movements.shape[1:3])
    moved = jnp.einsum("ngj,ngji->ngi", blocks, movements[taken], precision="highest")
    return moved.reshape(states.shape)


def _blocks(taken: jax.Array, flows: int) -> tuple[jax.Array, jax.Array]:
    """Where states go that take these flows: the row of each, and the flow of each block of rows.

    Groups that end within a block leave fewer than one for each flow beside the full ones.
    """
    count = len(taken) // BLOCK + min(flows, len(taken))
    sizes = jnp.bincount(taken, length=flows)
    filled = -(-sizes // BLOCK)
    flow_of_block = jnp.repeat(jnp.arange(flows), filled, total_repeat_length=count)
    order = jnp.argsort(taken, stable=True)
    ordered = taken[order]
    place = jnp.arange(len(taken)) - (jnp.cumsum(sizes) - sizes)[ordered]
    rows = BLOCK * (jnp.cumsum(filled) - filled)[ordered] + place
    return jnp.zeros_like(rows).at[order].set(rows, unique_indices=True), flow_of_block
