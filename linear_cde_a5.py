"""The Linear CDE on the word problem of a finite group (paper, section 5.2 and Figure 2).

Letters: V tokens (elements of the group), E embedding width, H hidden width, B sequences, L tokens
of a sequence, P = B (L - 1) places where the scan takes a step.

The vocabulary is finite, so the fields A x_v are contracted once for each token v in an update, not
once for each place (`states_by_token`); `states_by_scan` is the same scan written out plainly.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
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

from allocator import keep_freed_memory
from checkpoints import Checkpoints, checkpoint_folder
from data_dir.a5_dataset import load_word_problem, split
from data_dir.finite_groups import group
from experiment_config import LCDEA5Config
from experiment_results import Run, provenance, save_run
from linear_cde import control_path, scan_cde_solve, select_device
from machine import available_cores
from progress import progress_bar
from shared_flows import Flows, states_in_order
from token_cde import TokenCDE

PACKAGES = ("jax", "jaxlib", "equinox", "optax", "numpy")
DATA_FOLDER = "illusion"
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


class DataOrder:
    """Endless batches of rows: every epoch a new order, any step without those before it."""

    def __init__(self, data: Batch, batch_size: int, seed: Sequence[int]):
        """seed: integers that no other order of the run shares. A short last batch is left out."""
        self.data = data
        self.batch_size = min(batch_size, len(data.tokens))
        self.seed = tuple(seed)
        self.batches = len(data.tokens) // self.batch_size
        self.epoch, self.order = -1, np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        epoch, place = divmod(step, self.batches)
        if epoch != self.epoch:
            rng = np.random.default_rng([*self.seed, epoch])
            self.epoch, self.order = epoch, rng.permutation(len(self.data.tokens))
        rows = self.order[place * self.batch_size : (place + 1) * self.batch_size]
        return Batch(self.data.tokens[rows], self.data.targets[rows])


@dataclass
class History:
    """What a training run leaves: one entry an evaluation."""

    steps: list[int] = field(default_factory=list)
    val_accs: list[float] = field(default_factory=list)
    train_loss: list[float | None] = field(default_factory=list)  # mean since the one before
    seconds: list[float] = field(default_factory=list)  # since the start, resumed or not


@dataclass
class Progress:
    """Where a training run stands; all of it is in a checkpoint."""

    state: TrainState
    history: History
    step: int = 0
    loss_sum: float = 0.0
    losses: int = 0
    seconds: float = 0.0

    def save(self, checkpoints: Checkpoints) -> None:
        """Write a checkpoint."""
        arrays = [np.asarray(x) for x in jax.tree.leaves(eqx.filter(self.state, eqx.is_array))]
        numbers = {name: getattr(self, name) for name in ("step", "loss_sum", "losses", "seconds")}
        checkpoints.save(self.step, arrays, {**numbers, "history": asdict(self.history)})

    def resume(self, checkpoints: Checkpoints) -> None:
        """Go to the newest checkpoint, if there is one."""
        checkpoint = checkpoints.load()
        if checkpoint is None:
            return
        arrays, rest = eqx.partition(self.state, eqx.is_array)
        arrays = jax.tree.unflatten(jax.tree.structure(arrays), map(jnp.asarray, checkpoint.arrays))
        self.state = eqx.combine(arrays, rest)
        numbers = dict(checkpoint.state)
        self.history = History(**numbers.pop("history"))
        for name, value in numbers.items():
            setattr(self, name, value)

    def add_loss(self, loss: float) -> None:
        """Count a step and its loss."""
        self.step += 1
        self.loss_sum += loss
        self.losses += 1

    def record(self, accuracy: float) -> None:
        """Add an evaluation to the history."""
        self.history.steps.append(self.step)
        self.history.val_accs.append(accuracy)
        self.history.train_loss.append(self.loss_sum / self.losses if self.losses else None)
        self.history.seconds.append(round(self.seconds, 1))
        self.loss_sum, self.losses = 0.0, 0


def train_model(
    model: A5LinearCDE,
    step_batches: Callable[[int], Sequence[Batch]],
    validation: Batch,
    config: LCDEA5Config,
    key: PRNGKeyArray,
    checkpoints: Checkpoints,
    description: str = "training",
) -> tuple[A5LinearCDE, History, str]:
    """Train until the accuracy exceeds `stop_accuracy` or for `max_steps`; resumes by itself.

    step_batches(step) gives the batches of a step, an update each. Evaluations come every
    `eval_interval` steps, the first before any update; a step's dropout key is folded from `key`.
    Returns the model, the history and the outcome: "solved", "not solved", or "diverged ...".
    """
    optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
    moments = optimizer.init(eqx.filter(model, eqx.is_array))
    progress = Progress(TrainState(model, moments), History())
    progress.resume(checkpoints)
    since = time.monotonic() - progress.seconds
    with progress_bar(description, config.max_steps, "step") as bar:
        bar.update(progress.step)
        while True:
            progress.seconds = time.monotonic() - since
            if progress.step % config.eval_interval == 0 or progress.step == config.max_steps:
                accuracy = evaluate(progress.state.model, validation, config.eval_batch_size)
                progress.record(accuracy)
                bar.set_postfix_str(f"accuracy {accuracy:.4f}")
                if accuracy > config.stop_accuracy:
                    return progress.state.model, progress.history, "solved"
                if progress.step == config.max_steps:
                    return progress.state.model, progress.history, "not solved"
            step_key = jr.fold_in(key, progress.step)
            batches = step_batches(progress.step)
            progress.state, loss = train_step(
                progress.state, batches, step_key, optimizer, config.dropout
            )
            if not math.isfinite(loss):
                outcome = f"diverged: the loss was {loss} at step {progress.step}"
                return progress.state.model, progress.history, outcome
            progress.add_loss(float(loss))
            bar.update()
            if progress.step % config.checkpoint_interval == 0:
                progress.seconds = time.monotonic() - since
                progress.save(checkpoints)


def run_lcde_A5_experiment(  # noqa: N802
    config: LCDEA5Config, runs: Sequence[Run], data_dir: Path, device: str
) -> None:
    """Train the Linear CDE on every length, one run each: paper, section 5.2 and Figure 2.

    runs: those to do, from `plan_lcde_a5`. A diverged run leaves a record that says so, and the
    others go on. Raises: UnavailableError, DataError, OSError, and, when all is done,
    FloatingPointError that names the runs that diverged.
    """
    keep_freed_memory()
    origin = provenance(PACKAGES, select_device(device))
    outcomes = {
        run.label: train_length(config, run, data_dir / DATA_FOLDER, origin) for run in runs
    }
    diverged = [
        f"{label} {text}" for label, text in outcomes.items() if text.startswith("diverged")
    ]
    if diverged:
        raise FloatingPointError("; ".join(diverged))


def train_length(config: LCDEA5Config, run: Run, folder: Path, origin: Mapping[str, Any]) -> str:
    """One run: data, model, training, the result with its record. Returns the outcome."""
    length, symbols = run.config["length"], group(config.group)
    source = {"seed": config.data_seed, "samples": config.samples}
    rng = np.random.default_rng([config.seed, length, SPLIT])
    rows = load_word_problem(folder, symbols, length, **source)
    train, validation = (Batch(*part) for part in split(*rows, config.train_fraction, rng))
    orders = [DataOrder(train, config.batch_size, (config.seed, length, ORDER))]
    if config.short_batch_size:
        pairs = Batch(*load_word_problem(folder, symbols, 2, **source))
        orders.append(DataOrder(pairs, config.short_batch_size, (config.seed, length, SHORT_ORDER)))
    model_key, train_key = jr.split(jr.fold_in(jr.key(config.seed), length))
    model = A5LinearCDE(symbols.order, config.hidden_dim, key=model_key)
    checkpoints = Checkpoints(checkpoint_folder(run), run.config)
    _, history, outcome = train_model(
        model,
        lambda step: [order.batch(step) for order in orders],
        validation,
        config,
        train_key,
        checkpoints,
        run.label,
    )
    arrays = [np.asarray(history.steps), np.asarray(history.val_accs)]
    save_run(run, arrays, {"outcome": outcome, "history": asdict(history)}, origin)
    checkpoints.remove()
    accuracy, step, seconds = history.val_accs[-1], history.steps[-1], history.seconds[-1]
    print(f"{run.label}: {outcome}, accuracy {accuracy:.4f}, step {step:,}, {seconds:,.0f} s")
    return outcome
