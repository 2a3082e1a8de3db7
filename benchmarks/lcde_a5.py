"""A5 at the paper's size: a training step and an evaluation, ours and the equation as it reads.

The plain side is a direct transcription: every sequence is scanned with A contracted anew at every
place, each of a step's two updates is a jitted call of its own without donated buffers, and freed
memory goes back to the kernel as glibc does by default. Both sides start from the same parameters,
see the same batches, and alternate in one process after a warm-up that compiles both. The plain
evaluation runs on a subset and is scaled linearly. Peak memory is that of ours, measured in a
process of its own with random tokens. Run it on an otherwise idle machine; about 10 minutes. The
last line of standard output is one JSON object.

    python benchmarks/lcde_a5.py [--lengths 3 20] [--repeats 7]
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

from benchmarks.memory import peak_memory_gib
from data_dir.finite_groups import group
from experiments.lcde_a5 import PACKAGES, Config
from experiments.lcde_training import Batch, TrainState, accuracy, train_step
from experiments.schema import load_config
from harness.machine import describe_machine, package_versions
from harness.paths import CONFIG_FOLDER
from kernels.allocator import M_MMAP_MAX, M_TRIM_THRESHOLD, keep_freed_memory
from linear_cde import A5LinearCDE, LinearCDE, control_path, euler_scan

EVALUATED, PLAIN_EVALUATED, PLAIN_BATCH = 20_000, 1_200, 400
MEMORY_SEQUENCES = (20_000, 200_000)
A5 = group("A5")


class PlainA5(eqx.Module):
    """The model of one sequence, with the parameters of an `A5LinearCDE`."""

    embedding: jax.Array
    cde: LinearCDE
    mix: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    out: eqx.nn.Linear

    def __init__(self, model: A5LinearCDE):
        """Copy the parameters; those of the CDE in the equation's layout."""
        A, B = model.cde.matrices()
        cde = LinearCDE(len(A), model.embedding.shape[1], key=jr.key(0))
        values = (model.cde.init_matrix, model.cde.init_bias, A, B)
        self.cde = eqx.tree_at(lambda c: (c.init_matrix, c.init_bias, c.A, c.B), cde, values)
        self.embedding, self.mix, self.norm = model.embedding, model.mix, model.norm
        self.out = model.out

    def __call__(self, tokens: jax.Array, dropout: float, key: jax.Array) -> jax.Array:
        """Logits of each position, (L, V)."""
        embedded = self.embedding[tokens]
        control = control_path(jnp.linspace(0, 1, len(tokens)), embedded)
        start = self.cde.initial_state(embedded[0])
        states = euler_scan(self.cde.A, self.cde.B, start, control, control)
        return A5LinearCDE.logits(self, states[None], embedded[None], dropout, key)[0]


def plain_loss(model: PlainA5, batch: Batch, dropout: float, key: jax.Array) -> jax.Array:
    """Cross-entropy over all positions of all sequences."""
    keys = jr.split(key, len(batch.tokens))
    logits = jax.vmap(model, in_axes=(0, None, 0))(batch.tokens, dropout, keys)
    labels = batch.targets.astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@eqx.filter_jit
def plain_update(
    model: PlainA5,
    moments: optax.OptState,
    batch: Batch,
    key: jax.Array,
    optimizer: optax.GradientTransformation,
    dropout: float,
) -> tuple[PlainA5, optax.OptState, jax.Array]:
    """One update on one batch."""
    loss, gradients = eqx.filter_value_and_grad(plain_loss)(model, batch, dropout, key)
    updates, moments = optimizer.update(gradients, moments, model)
    return eqx.apply_updates(model, updates), moments, loss


@eqx.filter_jit
def plain_correct(model: PlainA5, batch: Batch) -> jax.Array:
    """Number of correct tokens."""
    logits = jax.vmap(lambda tokens: model(tokens, 0.0, jr.key(0)))(batch.tokens)
    return jnp.sum(jnp.argmax(logits, axis=-1) == batch.targets)


def plain_evaluate(model: PlainA5, data: Batch) -> float:
    """Fraction of correct tokens, a few hundred sequences at a time."""
    starts = range(0, len(data.tokens), PLAIN_BATCH)
    batches = (Batch(*(part[i : i + PLAIN_BATCH] for part in data)) for i in starts)
    return sum(int(plain_correct(model, batch)) for batch in batches) / data.targets.size


def return_freed_memory() -> None:
    """Freed blocks of 32 MiB and more go back to the kernel: glibc's own steady state."""
    libc = ctypes.CDLL(None)
    m_mmap_threshold = -3
    settings = ((M_MMAP_MAX, 65536), (m_mmap_threshold, 2**25), (M_TRIM_THRESHOLD, 2**26))
    for parameter, value in settings:
        libc.mallopt(parameter, value)
    libc.malloc_trim(0)


def random_batch(count: int, length: int, seed: int) -> Batch:
    """Random sequences with their running products."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, A5.order, (count, length), dtype=np.uint8)
    return Batch(tokens, A5.running_products(tokens))


class Sides:
    """Both models on their way, and one call for each thing that is timed."""

    def __init__(self, config: Config, length: int):
        """Same parameters on both sides."""
        self.config, self.length, self.step = config, length, 0
        self.optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
        model = A5LinearCDE(A5.order, config.hidden_dim, key=jr.key(config.seed))
        self.plain = PlainA5(model)
        self.plain_moments = self.optimizer.init(eqx.filter(self.plain, eqx.is_array))
        # Ours gives its buffers away at every step, those the plain model shares included.
        model = jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, model)
        self.ours = TrainState(model, self.optimizer.init(eqx.filter(model, eqx.is_array)))

    def batches(self) -> list[Batch]:
        """The two batches of the next step."""
        self.step += 1
        short = random_batch(self.config.short_batch_size, 2, seed=2 * self.step + 1)
        return [random_batch(self.config.batch_size, self.length, seed=2 * self.step), short]

    def our_step(self, batches: list[Batch], dropout: float) -> float:
        """Ours; returns the loss of the first batch."""
        self.ours, loss = train_step(self.ours, batches, jr.key(self.step), self.optimizer, dropout)
        jax.block_until_ready(self.ours.model.cde.A)
        return float(loss)

    def plain_step(self, batches: list[Batch], dropout: float) -> float:
        """The plain side; returns the loss of the first batch."""
        losses = []
        for batch, key in zip(batches, jr.split(jr.key(self.step), len(batches)), strict=True):
            self.plain, self.plain_moments, loss = plain_update(
                self.plain, self.plain_moments, batch, key, self.optimizer, dropout
            )
            losses.append(loss)
        jax.block_until_ready(self.plain.cde.A)
        return float(losses[0])


def timed(call: Callable[..., float], *arguments: object) -> tuple[float, float]:
    """Seconds a call took, and what it returned."""
    start = time.perf_counter()
    value = call(*arguments)
    return time.perf_counter() - start, value


def compare_steps(sides: Sides, repeats: int) -> dict[str, object]:
    """Training steps, alternating; the plain one under either allocator."""
    losses = []
    for _ in range(3):
        batches = sides.batches()
        losses.append((sides.our_step(batches, 0.0), sides.plain_step(batches, 0.0)))
    sides_of = {
        "ours": (keep_freed_memory, sides.our_step),
        "plain": (return_freed_memory, sides.plain_step),
        "plain, memory kept": (keep_freed_memory, sides.plain_step),
    }
    seconds = {name: [] for name in sides_of}
    for repeat in range(repeats + 1):
        for name, (set_allocator, step) in sides_of.items():
            batches, dropout = sides.batches(), sides.config.dropout
            set_allocator()
            # Untimed: the first step after a switch pays for pages that later ones find there.
            step(batches, dropout)
            taken = timed(step, batches, dropout)[0]
            # The first round compiles the form with dropout.
            if repeat:
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "train_step_speedup": round(medians["plain"] / medians["ours"], 2),
        "train_step_speedup_plain_keeps_memory": round(
            medians["plain, memory kept"] / medians["ours"], 2
        ),
        "train_step_ms": {k: round(1e3 * v, 1) for k, v in medians.items()},
        "train_step_all_ms": {k: [round(1e3 * x) for x in v] for k, v in seconds.items()},
        "loss_relative_difference": max(abs(ours / plain - 1) for ours, plain in losses),
    }


def compare_evaluations(sides: Sides, repeats: int) -> dict[str, object]:
    """Evaluations, alternating, of the parameters that ours has reached."""
    data = random_batch(EVALUATED, sides.length, seed=1)
    subset = Batch(*(part[:PLAIN_EVALUATED] for part in data))
    model, plain_model = sides.ours.model, PlainA5(sides.ours.model)
    batch_size = sides.config.eval_batch_size
    plain_evaluate(plain_model, subset)
    ours_s, plain_s = [], []
    for _ in range(repeats):
        ours_s.append(timed(accuracy, model, data, batch_size)[0])
        seconds, expected = timed(plain_evaluate, plain_model, subset)
        plain_s.append(seconds * EVALUATED / PLAIN_EVALUATED)
    ours, plain = statistics.median(ours_s), statistics.median(plain_s)
    return {
        "eval_speedup": round(plain / ours, 1),
        "eval_s": {"ours": round(ours, 2), "plain": round(plain, 1)},
        "eval_plain": f"{PLAIN_EVALUATED} sequences, times {EVALUATED / PLAIN_EVALUATED:.3g}",
        "accuracy_difference": accuracy(model, subset, batch_size) - expected,
    }


def own_memory(config: Config, length: int) -> dict[str, object]:
    """Peak memory of this process after training steps, then after each evaluation."""
    keep_freed_memory()
    optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
    model = A5LinearCDE(A5.order, config.hidden_dim, key=jr.key(config.seed))
    state = TrainState(model, optimizer.init(eqx.filter(model, eqx.is_array)))
    for step in range(5):
        batches = [
            random_batch(config.batch_size, length, seed=step),
            random_batch(config.short_batch_size, 2, seed=step),
        ]
        state, _ = train_step(state, batches, jr.key(step), optimizer, config.dropout)
    jax.block_until_ready(state.model.cde.A)
    peaks = {"training": peak_memory_gib()}
    for count in MEMORY_SEQUENCES:
        accuracy(state.model, random_batch(count, length, seed=0), config.eval_batch_size)
        peaks[f"then evaluating {count:,} sequences"] = peak_memory_gib()
    return peaks


def peak_memory(arguments: argparse.Namespace, length: int) -> dict[str, object]:
    """`own_memory` of a new process."""
    words = ["--memory-only", str(length), "--hidden-dim", str(arguments.hidden_dim)]
    done = subprocess.run(
        [sys.executable, os.fspath(Path(__file__)), *words],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    """Measure and print one JSON object."""
    config = load_config(Config, CONFIG_FOLDER / "lcde_a5.yaml", {})
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[3, 20])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--hidden-dim", type=int, default=config.hidden_dim)
    parser.add_argument(
        "--memory-only", type=int, metavar="LENGTH", help="only peak memory of ours"
    )
    arguments = parser.parse_args()
    if arguments.repeats < 1 or min(arguments.lengths) < 2 or arguments.hidden_dim < 1:
        parser.error("--repeats and --hidden-dim must be at least 1, --lengths at least 2")
    config = config.model_copy(update={"hidden_dim": arguments.hidden_dim})
    if arguments.memory_only:
        print(json.dumps(own_memory(config, arguments.memory_only)))
        return
    keep_freed_memory()
    lengths = {}
    for length in arguments.lengths:
        sides = Sides(config, length)
        figures = {
            **compare_steps(sides, arguments.repeats),
            **compare_evaluations(sides, arguments.repeats),
        }
        lengths[str(length)] = {**figures, "peak_memory_gib": peak_memory(arguments, length)}
    result = {
        "benchmark": "Linear CDE on A5, one training step and one evaluation of 20,000 sequences",
        "hidden_dim": config.hidden_dim,
        "lengths": lengths,
        "machine": {**describe_machine(), "packages": package_versions(PACKAGES)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
