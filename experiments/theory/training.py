"""Word problems solved by training: Linear CDEs of each block size, by position of the sequence.

The model and its updates are those of `lcde_a5`. With a fixed step and without time as a channel,
what a model does at a position depends on the tokens before it alone, so one test on long sequences
is a test at every length. Letters: L tokens of a sequence, k block size.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from data_dir.finite_groups import Group, group
from experiments import lcde_a5
from experiments.training_loop import Prepared, Schedule, Tested
from harness.records import Run

if TYPE_CHECKING:
    from experiments.lcde_training import Batch

# After the seed: what tells these random numbers from others.
TRAINING, VALIDATION, TEST = 23, 29, 31
EVAL_BATCH_SIZE = 2048


def prepare(run: Run) -> Prepared:
    """Training to be right often enough at the last position, then a test of every position.

    The curve is of the accuracy at the last position of the validation sequences; the test leaves
    the accuracy by position (test length,) of the trained model.
    """
    from experiments.lcde_training import accuracy_by_position

    config, symbols = run.config, group(run.config["group"])
    words = partial(random_words, symbols, seed=(config["seed"], config["run"]))
    by_position = partial(accuracy_by_position, batch_size=EVAL_BATCH_SIZE)
    data = lcde_a5.WordData(
        training=words(config["samples"], config["length"], TRAINING),
        validation=words(config["validation_samples"], config["length"], VALIDATION),
        pairs=all_pairs(symbols),
        digests={},
    )
    trainable = lcde_a5.training_of(
        a5_settings(config), data, lambda model, batch: float(by_position(model, batch)[-1])
    )

    def test() -> Tested:
        sequences = words(config["test_samples"], config["test_length"], TEST)
        found = by_position(trainable.state.model, sequences)
        last = f"{found[-1]:.4f} at position {len(found)} of {len(sequences.tokens):,} sequences"
        return Tested([found], {"accuracy": float(found[-1]), "order": symbols.order}, [last])

    interval = config["eval_interval"]
    schedule = Schedule(config["max_steps"], interval, interval, config["stop_accuracy"])
    return Prepared(trainable, schedule, "accuracy", {}, test)


def a5_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings as the experiment on A5 has them; each run has a seed of its own."""
    settings = {**config, "seed": config["seed"] + config["run"]}
    if config["block_size"] == "dense":
        del settings["block_size"]
    return settings


def random_words(
    symbols: Group, samples: int, length: int, tag: int, seed: tuple[int, ...]
) -> Batch:
    """Uniform sequences with their running products, the same for the same seed and tag."""
    from experiments.lcde_training import Batch

    rng = np.random.default_rng([*seed, tag, symbols.order, length])
    tokens = rng.integers(symbols.order, size=(samples, length), dtype=np.uint8)
    return Batch(tokens, symbols.running_products(tokens))


def all_pairs(symbols: Group) -> Batch:
    """Every sequence of length 2, for a step's second update."""
    from experiments.lcde_training import Batch

    tokens = np.indices((symbols.order,) * 2, dtype=np.uint8).reshape(2, -1).T
    return Batch(tokens, symbols.running_products(tokens))
