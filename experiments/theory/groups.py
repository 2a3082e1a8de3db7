"""Word problems solved without training: a Linear CDE whose blocks are a group's representation.

y_i = y_{i-1} + (ρ(x_i)ᵀ − I) y_{i-1} holds ρ(x_1 … x_i)ᵀ at any length. Letters: k block size,
H = Σ k² hidden width, V elements, L tokens of a sequence.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from data_dir.finite_groups import group
from data_dir.representations import representation
from harness.progress import progress_bar
from harness.records import Run

WORDS = 13  # after the seed: what tells these random numbers from others


def do_exact(run: Run) -> tuple[list[np.ndarray], dict[str, Any], dict[str, str]]:
    """Each sequence's accuracy and smallest margin over all its positions, (sequences, 2).

    The margin is the right element's logit less the largest other one. The record also says what
    it is for exact matrices.
    """
    config = run.config
    symbols, blocks = group(config["group"]), representation(config["group"])
    rng = np.random.default_rng([config["seed"], WORDS, symbols.order])
    found = []
    with progress_bar(run.label, config["sequences"], "sequence") as bar:
        for _ in range(config["sequences"]):
            tokens = rng.integers(symbols.order, size=config["length"])
            states = exact_states(blocks, tokens)
            right = symbols.running_products(tokens[None])[0]
            margins = smallest_margin(states, right, readout(blocks))
            found.append((float(np.mean(margins > 0)), float(margins.min())))
            bar.update()
    accuracy, margin = np.array(found).T
    details = {
        "accuracy": float(accuracy.mean()),
        "smallest_margin": float(margin.min()),
        "exact_margin": exact_margin(blocks),
        "block_size": max(len(block[0]) for block in blocks),
        "hidden_dim": sum(len(block[0]) ** 2 for block in blocks),
    }
    return [np.array(found)], details, {}


def exact_states(
    blocks: list[Float[np.ndarray, "V k k"]], tokens: Integer[np.ndarray, " L"]
) -> Float[np.ndarray, "L H"]:
    """The states of the model's own Euler scan, float32, driven by one-hot tokens.

    The state is the transposed product of the matrices so far, column by column, so that each new
    one acts from the left: a copy of the block for each column.
    """
    import jax
    import jax.numpy as jnp

    from linear_cde import euler_scan

    length, copies = len(tokens), [block for block in blocks for _ in block[0]]
    sizes = np.cumsum([0, *(len(block[0]) for block in copies)])
    fields = np.zeros((sizes[-1], len(blocks[0]), sizes[-1]), dtype=np.float32)
    for block, first, end in zip(copies, sizes[:-1], sizes[1:], strict=True):
        moves = np.swapaxes(block, 1, 2) - np.eye(end - first)
        # The scan divides by L.
        fields[first:end, :, first:end] = length * np.moveaxis(moves, 0, 1)
    start = readout(blocks)[tokens[0]]
    control = jax.nn.one_hot(jnp.asarray(tokens), len(blocks[0]), dtype=jnp.float32)
    no_drift = jnp.zeros((len(start), 1)), jnp.zeros((length, 1))
    scan = jax.jit(lambda A, y, omega: euler_scan(A, no_drift[0], y, omega, no_drift[1]))
    return np.asarray(scan(fields, start, control))


def readout(blocks: list[Float[np.ndarray, "V k k"]]) -> Float[np.ndarray, "V H"]:
    """The linear readout's weights, float32: tr(Y ρ(g)ᵀ) summed over the blocks, for each g.

    Row g is also the state that stands for g.
    """
    return np.concatenate([b.reshape(len(b), -1) for b in blocks], axis=1).astype(np.float32)


def smallest_margin(
    states: Float[np.ndarray, "L H"],
    right: Integer[np.ndarray, " L"],
    weights: Float[np.ndarray, "V H"],
) -> Float[np.ndarray, " L"]:
    """At each position the right element's logit less the largest of the others."""
    logits = states @ weights.T
    rows = np.arange(len(logits))
    of_right = logits[rows, right]
    logits[rows, right] = -np.inf
    return of_right - logits.max(axis=1)


def exact_margin(blocks: list[Float[np.ndarray, "V k k"]]) -> float:
    """The margin without rounding: the character's value at 1 less the largest elsewhere."""
    character = sum(np.trace(block, axis1=1, axis2=2) for block in blocks)
    greatest, second = np.sort(character)[[-1, -2]]
    return float(greatest - second)
