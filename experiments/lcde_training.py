"""How the Linear CDE is trained on words: one AdamW update, one evaluation, what a resume needs.

The only file of the experiments that imports JAX at once; `lcde_a5.run` imports it when a run is
to be done. Letters: V tokens, E embedding width, H hidden width, b sequences, L tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from experiments.training_loop import DataOrder
from harness.machine import available_cores
from kernels.token_cde import BlockWeights, correct_by_position, states_by_token
from linear_cde import A5LinearCDE

T = TypeVar("T")


def fast_states(model: A5LinearCDE, tokens: UInt8[Array, "b L"]) -> Float[Array, "b L H"]:
    """`A5LinearCDE.states`, with A contracted once for each token."""
    cde = model.cde
    A_time, B_time = cde.time_fields()
    fields = cde.A, A_time, cde.B, B_time, cde.init_matrix, cde.init_bias
    return states_by_token(*fields, model.embedding, tokens, model.step_length)


def mean_cross_entropy(
    model: A5LinearCDE,
    tokens: UInt8[Array, "b L"],
    targets: UInt8[Array, "b L"],
    dropout: float,
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """Cross-entropy over all positions of all sequences, from log-softmax."""
    logits = model.logits(fast_states(model, tokens), model.embedding[tokens], dropout, key)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets.astype(jnp.int32))
    return jnp.mean(losses)


class TrainState(NamedTuple):
    """What an update changes: the model and AdamW's moments."""

    model: A5LinearCDE
    moments: optax.OptState


class Batch(NamedTuple):
    """Sequences and their running products, uint8 (b, L)."""

    tokens: UInt8[np.ndarray, "b L"]
    targets: UInt8[np.ndarray, "b L"]

    def take(self, rows: np.ndarray) -> "Batch":
        """Some of the sequences."""
        return Batch(self.tokens[rows], self.targets[rows])


@eqx.filter_jit(donate="all")
def train_step(
    state: TrainState,
    batches: Sequence[Batch],
    key: PRNGKeyArray,
    optimizer: optax.GradientTransformation,
    dropout: float,
) -> tuple[TrainState, Float[Array, ""]]:
    """One update for each batch, in order; returns the state and the first batch's loss.

    The arguments' buffers are donated: the state passed in is gone afterwards.
    """
    losses = []
    for batch, batch_key in zip(batches, jr.split(key, len(batches)), strict=True):
        loss, gradients = eqx.filter_value_and_grad(mean_cross_entropy)(
            state.model, batch.tokens, batch.targets, dropout, batch_key
        )
        updates, moments = optimizer.update(gradients, state.moments, state.model)
        state = TrainState(eqx.apply_updates(state.model, updates), moments)
        losses.append(loss)
    return state, losses[0]


def accuracy(model: A5LinearCDE, data: Batch, batch_size: int) -> float:
    """Fraction of correct tokens over all positions of all sequences, without dropout."""
    weights, threads = block_weights(model), available_cores()
    return int(np.sum(correct_by_position(weights, *data, batch_size, threads))) / data.targets.size


def accuracy_by_position(
    model: A5LinearCDE, data: Batch, batch_size: int
) -> Float[np.ndarray, " L"]:
    """Fraction of correct sequences at each position, without dropout; the last is [-1]."""
    weights, threads = block_weights(model), available_cores()
    return correct_by_position(weights, *data, batch_size, threads) / len(data.tokens)


def block_weights(model: A5LinearCDE) -> BlockWeights:
    """A model's parameters as the evaluation by token takes them: by their place in the model."""
    arrays = {
        name.removeprefix("cde.").replace(".", "_"): x for name, x in named_leaves(model).items()
    }
    A_time, B_time = map(np.asarray, model.cde.time_fields())
    arrays |= {"A_time": A_time, "B_time": B_time}  # zeros where the model has none
    return BlockWeights(**arrays, norm_eps=model.norm.eps, step_length=model.step_length)


class Training:
    """A model, its AdamW state and its data, as the training loop wants them."""

    def __init__(
        self,
        model: A5LinearCDE,
        orders: Sequence[tuple[Batch, DataOrder]],
        optimizer: optax.GradientTransformation,
        dropout: float,
        metric: Callable[..., float],
        validation: Sequence[np.ndarray],
        key: PRNGKeyArray,
    ):
        """orders: for each update of a step its data and their order; a step folds `key`.

        metric: of the model and the arrays of `validation`.
        """
        self.optimizer, self.dropout, self.metric = optimizer, dropout, metric
        self.state = TrainState(model, optimizer.init(eqx.filter(model, eqx.is_array)))
        self.orders, self.validation, self.key = orders, validation, key

    def update(self, step: int) -> Float[Array, ""]:
        """One update for each order; returns the first one's loss."""
        batches = [data.take(order.rows(step)) for data, order in self.orders]
        key = jr.fold_in(self.key, step)
        self.state, loss = train_step(self.state, batches, key, self.optimizer, self.dropout)
        return loss

    def evaluate(self) -> float:
        """The metric of the model as it is."""
        return self.metric(self.state.model, *self.validation)

    def arrays(self) -> dict[str, np.ndarray]:
        """Parameters and moments, by their place in the state."""
        return named_leaves(self.state)

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Back to parameters and moments that `arrays` gave."""
        self.state = with_leaves(self.state, arrays)


def named_leaves(tree: T) -> dict[str, np.ndarray]:
    """The arrays of a model or a state, by their place in it."""
    leaves, _ = jax.tree.flatten_with_path(eqx.filter(tree, eqx.is_array))
    return {jax.tree_util.keystr(p, simple=True, separator="."): np.asarray(x) for p, x in leaves}


def with_leaves(tree: T, arrays: Mapping[str, np.ndarray]) -> T:
    """The same with other arrays in their places. Raises: ValueError, where they do not fit."""
    here = named_leaves(tree)
    for name in here.keys() | arrays.keys():
        found, expected = (x[name].shape if name in x else "nothing" for x in (arrays, here))
        if found != expected:
            raise ValueError(f"{found} as {name}, where the model has {expected}")
    current, rest = eqx.partition(tree, eqx.is_array)
    leaves = [jnp.asarray(arrays[name]) for name in here]
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(current), leaves), rest)
