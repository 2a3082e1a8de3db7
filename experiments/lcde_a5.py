"""The Linear CDE on the word problem of a finite group (paper, section 5.2 and Figure 2).

Letters: V tokens (elements of the group), E embedding width, H hidden width, B sequences, L tokens
of a sequence, P = B (L - 1) places where the scan takes a step.

The vocabulary is finite, so the fields A x_v are contracted once for each token v in an update, not
once for each place (`states_by_token`); `states_by_scan` is the same scan written out plainly.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8
from threadpoolctl import threadpool_limits

from data_dir.a5_dataset import load_word_problem, split
from data_dir.finite_groups import group
from experiments.schema import LCDEA5Config
from experiments.training_loop import DataOrder, Schedule, report_divergence, train_run
from harness.machine import available_cores
from harness.paths import WORD_DATA
from harness.records import Run, provenance
from kernels.allocator import keep_freed_memory
from kernels.shared_flows import Flows, states_in_order
from kernels.token_cde import TokenCDE
from linear_cde import control_path, scan_cde_solve, select_device

PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy")
# What a run draws with NumPy, after seed and length. Never 0: NumPy pads short seeds with zeros.
SPLIT, ORDER, SHORT_ORDER = 1, 2, 3


class A5LinearCDE(eqx.Module):
    """Embedding, Linear CDE, ReLU layer, residual, layer norm, linear output (one block).

    embedding (V, E) ~ N(0, 1), E = H for the residual; `cde` is driven by (t, x_t) as values. The
    paper's parameters; every one from a key of its own (the released code shares one key).
    """

    embedding: Float[Array, "V E"]
    cde: TokenCDE
    mix: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    out: eqx.nn.Linear

    def __init__(self, vocabulary: int, hidden_dim: int, *, key: PRNGKeyArray):
        """Draw the parameters for `vocabulary` tokens."""
        embedding_key, cde_key, mix_key, out_key = jr.split(key, 4)
        self.embedding = jr.normal(embedding_key, (vocabulary, hidden_dim))
        self.cde = TokenCDE(hidden_dim, hidden_dim, key=cde_key)
        self.mix = eqx.nn.Linear(hidden_dim, hidden_dim, key=mix_key)
        self.norm = eqx.nn.LayerNorm(hidden_dim)
        self.out = eqx.nn.Linear(hidden_dim, vocabulary, key=out_key)

    def logits(
        self,
        states: Float[Array, "B L H"],
        embedded: Float[Array, "B L E"],
        dropout: float,
        key: PRNGKeyArray,
    ) -> Float[Array, "B L V"]:
        """Logits of each position from the CDE's states; dropout after the CDE and the ReLU."""
        first_key, second_key = jr.split(key)
        hidden = drop(states, dropout, first_key)
        hidden = jax.nn.relu(hidden @ self.mix.weight.T + self.mix.bias)
        hidden = drop(hidden, dropout, second_key) + embedded
        hidden = jax.vmap(jax.vmap(self.norm))(hidden)
        return hidden @ self.out.weight.T + self.out.bias


def drop(x: Float[Array, "..."], rate: float, key: PRNGKeyArray) -> Float[Array, "..."]:
    """Dropout: each value 0 with probability `rate`, else divided by 1 - rate."""
    if rate == 0:
        return x
    kept = jr.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


def states_by_scan(model: A5LinearCDE, tokens: UInt8[Array, "B L"]) -> Float[Array, "B L H"]:
    """The CDE's states at every position, as the equation says: the Euler scan of each sequence."""
    times = jnp.linspace(0, 1, tokens.shape[1])
    A, B = model.cde.matrices()

    def one(sequence):
        path = model.embedding[sequence]
        start = jnp.matmul(model.cde.init_matrix, path[0], precision="highest")
        control = control_path(times, path)
        return scan_cde_solve(A, B, start + model.cde.init_bias, control, control)

    return jax.vmap(one)(tokens)


def states_by_token(model: A5LinearCDE, tokens: UInt8[Array, "B L"]) -> Float[Array, "B L H"]:
    """The same states, with A contracted once for each token (see `token_cde`)."""
    return model.cde.states(model.embedding, tokens)


StatesForm = Callable[[A5LinearCDE, UInt8[Array, "B L"]], Float[Array, "B L H"]]


def mean_cross_entropy(
    model: A5LinearCDE,
    tokens: UInt8[Array, "B L"],
    targets: UInt8[Array, "B L"],
    dropout: float,
    key: PRNGKeyArray,
    states: StatesForm = states_by_token,
) -> Float[Array, ""]:
    """Cross-entropy over all positions of all sequences, from log-softmax."""
    logits = model.logits(states(model, tokens), model.embedding[tokens], dropout, key)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets.astype(jnp.int32))
    return jnp.mean(losses)


class TrainState(NamedTuple):
    """What an update changes: the model and AdamW's moments."""

    model: A5LinearCDE
    moments: optax.OptState


class Batch(NamedTuple):
    """Sequences and their running products, uint8 (B, L)."""

    tokens: UInt8[np.ndarray, "B L"]
    targets: UInt8[np.ndarray, "B L"]

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
    states: StatesForm = states_by_token,
) -> tuple[TrainState, Float[Array, ""]]:
    """One update for each batch, in order; returns the state and the first batch's loss.

    The arguments' buffers are donated: the state passed in is gone afterwards.
    """
    losses = []
    for batch, batch_key in zip(batches, jr.split(key, len(batches)), strict=True):
        loss, gradients = eqx.filter_value_and_grad(mean_cross_entropy)(
            state.model, batch.tokens, batch.targets, dropout, batch_key, states
        )
        updates, moments = optimizer.update(gradients, state.moments, state.model)
        state = TrainState(eqx.apply_updates(state.model, updates), moments)
        losses.append(loss)
    return state, losses[0]


def evaluate(model: A5LinearCDE, data: Batch, batch_size: int) -> float:
    """Fraction of correct tokens over all positions of all sequences, without dropout.

    Sequences are grouped by token at every position, so that each token's step is one matrix
    product; memory does not grow with the number of sequences.
    """
    weights = jax.tree.map(np.asarray, eqx.filter(model, eqx.is_array))
    flows_at = token_flows(weights, data.tokens.shape[1])

    def correct(first: int) -> int:
        rows = slice(first, first + batch_size)
        return _count_correct(weights, flows_at, data.tokens[rows], data.targets[rows])

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(available_cores()) as pool:
        counts = pool.map(correct, range(0, len(data.tokens), batch_size))
        return sum(counts) / data.targets.size


def token_flows(model: A5LinearCDE, length: int) -> Callable[[int], Flows]:
    """The Euler step of each token as an affine map, by step; model: with NumPy arrays."""
    cde, times = model.cde, np.linspace(0, 1, length, dtype=np.float32)
    fields = np.tensordot(model.embedding, cde.A, axes=(1, 2))
    by_token = np.ascontiguousarray(fields.swapaxes(1, 2)) / np.float32(length)
    drifts = model.embedding @ cde.B.T / np.float32(length)
    by_time, time_drift = cde.A_time.T / np.float32(length), cde.B_time / np.float32(length)

    def flows_at(step: int) -> Flows:
        t = times[step + 1]
        return Flows(by_token + t * by_time, drifts + t * time_drift)

    return flows_at


def _count_correct(
    model: A5LinearCDE, flows_at: Callable[[int], Flows], tokens: np.ndarray, targets: np.ndarray
) -> int:
    embedded = model.embedding[tokens[:, 0]]
    start = embedded @ model.cde.init_matrix.T + model.cde.init_bias
    correct = int(np.sum(_predict(model, start, embedded) == targets[:, 0]))
    for step, (rows, states) in enumerate(states_in_order(start, tokens[:, 1:], flows_at), 1):
        predicted = _predict(model, states, model.embedding[tokens[rows, step]])
        correct += int(np.sum(predicted == targets[rows, step]))
    return correct


def _predict(model: A5LinearCDE, states: np.ndarray, embedded: np.ndarray) -> np.ndarray:
    hidden = states @ model.mix.weight.T
    hidden += model.mix.bias
    np.maximum(hidden, 0, out=hidden)
    hidden += embedded
    hidden -= hidden.mean(axis=1, keepdims=True)
    variance = np.einsum("nh,nh->n", hidden, hidden)[:, None] / hidden.shape[1]
    hidden /= np.sqrt(variance + model.norm.eps)
    # The norm's scale and shift go into the output layer, once instead of once for each row.
    weight = model.out.weight * model.norm.weight
    bias = model.out.bias + model.out.weight @ model.norm.bias
    return np.argmax(hidden @ weight.T + bias, axis=1)


class Training:
    """A model, its AdamW state and its data, as the training loop wants them."""

    def __init__(
        self,
        model: A5LinearCDE,
        orders: Sequence[tuple[Batch, DataOrder]],
        validation: Batch,
        config: LCDEA5Config,
        key: PRNGKeyArray,
    ):
        """orders: for each update of a step its data and their order; a step folds `key`."""
        self.optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
        moments = self.optimizer.init(eqx.filter(model, eqx.is_array))
        self.state = TrainState(model, moments)
        self.orders, self.validation, self.config, self.key = orders, validation, config, key

    def update(self, step: int) -> float:
        """One update for each order; returns the first one's loss."""
        batches = [data.take(order.rows(step)) for data, order in self.orders]
        key = jr.fold_in(self.key, step)
        self.state, loss = train_step(self.state, batches, key, self.optimizer, self.config.dropout)
        return float(loss)

    def evaluate(self) -> float:
        """Accuracy over all positions of the validation sequences."""
        return evaluate(self.state.model, self.validation, self.config.eval_batch_size)

    def arrays(self) -> list[np.ndarray]:
        """Parameters and moments."""
        return [np.asarray(x) for x in jax.tree.leaves(eqx.filter(self.state, eqx.is_array))]

    def restore(self, arrays: Sequence[np.ndarray]) -> None:
        """Back to parameters and moments that `arrays` gave."""
        current, rest = eqx.partition(self.state, eqx.is_array)
        restored = jax.tree.unflatten(jax.tree.structure(current), map(jnp.asarray, arrays))
        self.state = eqx.combine(restored, rest)


def run_lcde_A5_experiment(  # noqa: N802
    config: LCDEA5Config, runs: Iterable[Run], data_dir: Path, device: str
) -> None:
    """Train the Linear CDE on every length, one run each: paper, section 5.2 and Figure 2.

    runs: those to do, from `plan_lcde_a5`. A diverged run leaves a record that says so, and the
    others go on. Raises: UnavailableError, DataError, OSError, and, when all is done,
    FloatingPointError that names the runs that diverged.
    """
    keep_freed_memory()
    origin = provenance(PACKAGES, select_device(device))
    folder = data_dir / WORD_DATA
    report_divergence({run.label: train_length(config, run, folder, origin) for run in runs})


def train_length(config: LCDEA5Config, run: Run, folder: Path, origin: Mapping[str, Any]) -> str:
    """One run: data, model, training, the result with its record. Returns the outcome."""
    length, symbols = run.config["length"], group(config.group)
    source = {"seed": config.data_seed, "samples": config.samples}
    rng = np.random.default_rng([config.seed, length, SPLIT])
    rows = load_word_problem(folder, symbols, length, **source)
    training_rows, validation = (Batch(*part) for part in split(*rows, config.train_fraction, rng))
    sources = [(training_rows, config.batch_size, ORDER)]
    if config.short_batch_size:
        pairs = Batch(*load_word_problem(folder, symbols, 2, **source))
        sources.append((pairs, config.short_batch_size, SHORT_ORDER))
    orders = [
        (data, DataOrder(len(data.tokens), size, (config.seed, length, tag)))
        for data, size, tag in sources
    ]
    model_key, train_key = jr.split(jr.fold_in(jr.key(config.seed, impl="threefry2x32"), length))
    model = A5LinearCDE(symbols.order, config.hidden_dim, key=model_key)
    training = Training(model, orders, validation, config, train_key)
    schedule = Schedule(
        config.max_steps, config.eval_interval, config.checkpoint_interval, config.stop_accuracy
    )
    return train_run(run, training, schedule, "accuracy", origin)
