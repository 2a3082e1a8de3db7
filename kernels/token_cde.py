"""The Linear CDE driven by the embeddings of tokens, its fields contracted once for each token.

Letters: V tokens, K distinct controls (at most V), E embedding width, H hidden width, B sequences,
L tokens of a sequence. The control is (t, x_t) by value, as in the paper's word problem:

    y_i = y_{i-1} + (F_k y_{i-1} + t_i A_0 y_{i-1} + B x_k + t_i B_0) / L,    F_k = sum_e A_e x_k^e

with k the control at place i. The fields F_k are one matrix product; a scan over sequences and
places that contracts A anew at every place, as the equation reads, is in `linear_cde`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from linear_cde import LinearCDE

# So few outer products join the optimizer's pass over A; a matrix product is written out first.
FEW_CONTROLS = 4


class TokenCDE(eqx.Module):
    """A Linear CDE whose parameters are stored by channel: time's apart, the embedding's last.

    A[h, j, e] and B[h, e] are the paper's A^e[h, j] and B[h, e] for channel e of the embedding,
    `A_time` and `B_time` those of time. init_matrix and init_bias as in `LinearCDE`.
    """

    init_matrix: Float[Array, "H E"]
    init_bias: Float[Array, " H"]
    A_time: Float[Array, "H H"]
    A: Float[Array, "H H E"]
    B_time: Float[Array, " H"]
    B: Float[Array, "H E"]

    def __init__(self, hidden_dim: int, input_dim: int, *, key: PRNGKeyArray):
        """Draw the parameters of a `LinearCDE` and store them by channel."""
        cde = LinearCDE(hidden_dim, input_dim, key=key)
        self.init_matrix, self.init_bias = cde.init_matrix, cde.init_bias
        self.A_time, self.A = cde.A[:, 0], jnp.swapaxes(cde.A[:, 1:], 1, 2)
        self.B_time, self.B = cde.B[:, 0], cde.B[:, 1:]

    def matrices(self) -> tuple[Float[Array, "H omega H"], Float[Array, "H xi"]]:
        """A and B as `LinearCDE` has them, time first."""
        A = jnp.concatenate([self.A_time[:, None], jnp.swapaxes(self.A, 1, 2)], axis=1)
        return A, jnp.concatenate([self.B_time[:, None], self.B], axis=1)

    def states(
        self, embedding: Float[Array, "V E"], tokens: Integer[Array, "B L"]
    ) -> Float[Array, "B L H"]:
        """States at every position; A is contracted for each token, or place if those are fewer."""
        num_sequences, length = tokens.shape
        places = num_sequences * (length - 1)
        if places < len(embedding):
            controls = embedding[tokens[:, 1:].reshape(-1)]
            rows = jnp.arange(places).reshape(num_sequences, length - 1).T
        else:
            controls, rows = embedding, tokens[:, 1:].T
        fields, drifts = contract(self.A, controls), _matmul(controls, self.B.T)
        start = _matmul(embedding[tokens[:, 0]], self.init_matrix.T) + self.init_bias
        times = jnp.linspace(0, 1, length)[1:]
        forcing = drifts[rows] + times[:, None, None] * self.B_time
        states = euler_scan(fields, self.A_time, forcing, start, times, rows)
        return jnp.swapaxes(states, 0, 1)


def _matmul(left: Float[Array, "a b"], right: Float[Array, "b c"]) -> Float[Array, "a c"]:
    return jnp.matmul(left, right, precision="highest")


@jax.custom_vjp
def contract(A: Float[Array, "H H E"], controls: Float[Array, "K E"]) -> Float[Array, "K H H"]:
    """The fields F_k = sum_e A_e x_k^e."""
    hidden_dim, _, width = A.shape
    return _matmul(controls, A.reshape(-1, width).T).reshape(-1, hidden_dim, hidden_dim)


def _contract_forward(A, controls):
    return contract(A, controls), (A, controls)


def _contract_backward(saved, d_fields):
    A, controls = saved
    d_flat = d_fields.reshape(len(controls), -1)
    d_controls = _matmul(d_flat, A.reshape(-1, A.shape[-1]))
    if len(controls) <= FEW_CONTROLS:
        pairs = zip(d_fields, controls, strict=True)
        return sum(field[:, :, None] * control for field, control in pairs), d_controls
    return _matmul(d_flat.T, controls).reshape(A.shape), d_controls


contract.defvjp(_contract_forward, _contract_backward)


@jax.custom_vjp
def euler_scan(
    fields: Float[Array, "K H H"],
    A_time: Float[Array, "H H"],
    forcing: Float[Array, "steps B H"],
    start: Float[Array, "B H"],
    times: Float[Array, " steps"],
    rows: Integer[Array, "steps B"],
) -> Float[Array, "L B H"]:
    """y_i = y_{i-1} + (F_{rows_i} y_{i-1} + t_i A_0 y_{i-1} + forcing_i) / L; all y, start first.

    Not differentiable in `times`. Its reverse pass adds each place's outer product to the gradient
    of that place's field, in place; differentiating the scan itself would move all K fields'
    gradients at every step.
    """
    length = len(times) + 1

    def step(y, inputs):
        t, row, force = inputs
        moved = jnp.einsum("bhj,bj->bh", fields[row], y, precision="highest")
        y = y + (moved + t * _matmul(y, A_time.T) + force) / length
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
        pulled = pulled + t * _matmul(adjoint, A_time)
        return adjoint + pulled / length + d_state, adjoint / length

    d_start, d_forcing = jax.lax.scan(
        step, d_states[-1], (times, rows, d_states[:-1]), reverse=True
    )
    before = states[:-1]
    d_A_time = jnp.einsum("i,ibh,ibj->hj", times, d_forcing, before, precision="highest")
    d_fields = _sum_outer_products(d_forcing, before, rows, len(fields))
    return d_fields, d_A_time, d_forcing, d_start, None, None


def _sum_outer_products(
    left: Float[Array, "steps B H"],
    right: Float[Array, "steps B H"],
    rows: Integer[Array, "steps B"],
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
