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
from experiments.training_loop import PROCESS, Schedule, train
from harness.checkpoints import Checkpoints, checkpoint_folder
from harness.records import Run, save_run, steps_to_keep

if TYPE_CHECKING:
    from experiments.lcde_training import Batch
    from linear_cde import A5LinearCDE

# After the seed: what tells these random numbers from others.
TRAINING, VALIDATION, TEST = 23, 29, 31
EVAL_BATCH_SIZE = 2048
# What `lcde_a5` reads of a config beside a run's own settings, and needs for nothing here.
UNUSED = {"results_dir": "unused", "data_seed": 0, "train_fraction": 0.5, "checkpoint_interval": 1}


def do_training(run: Run, origin: Mapping[str, Any]) -> str:
    """Train until the last position is right often enough, then test; returns the outcome.

    Leaves the steps and the accuracies at the last position (evaluations,), and the accuracy by
    position (test length,) of the trained model. Resumes by itself.
    Raises: ResultsError, LockLostError, OSError, KeyboardInterrupt.
    """
    from experiments.lcde_training import accuracy_by_position

    config, context = run.config, run.context
    symbols = group(config["group"])
    words = partial(random_words, symbols, seed=(config["seed"], config["run"]))
    test = words(config["test_samples"], config["test_length"], TEST)

    def by_position(model: A5LinearCDE, data: Batch) -> np.ndarray:
        return accuracy_by_position(model, data, EVAL_BATCH_SIZE)

    data = lcde_a5.WordData(
        training=words(config["samples"], config["length"], TRAINING),
        validation=words(config["validation_samples"], config["length"], VALIDATION),
        pairs=all_pairs(symbols),
        digests={},
    )
    trainable = lcde_a5.training_of(
        a5_config(config),
        config["length"],
        data,
        lambda model, batch: float(by_position(model, batch)[-1]),
    )
    process = {key: origin[key] for key in PROCESS if key in origin} | {"started": context.started}
    checkpoints = Checkpoints(checkpoint_folder(run), config, context.confirm, process)
    with context.stop.deferred():
        history, outcome = train(
            trainable,
            schedule_of(config),
            checkpoints,
            "accuracy",
            run.label,
            evaluated=lambda history: context.show(history.steps[-1], history.latest("accuracy")),
            stop=context.stop,
            goes_on=steps_to_keep(run) >= 0,
        )
        accuracies = by_position(trainable.state.model, test)
        details = {"outcome": outcome, "history": history.named("accuracy")}
        details |= {"accuracy": float(accuracies[-1]), "order": symbols.order}
        arrays = [np.asarray(history.steps), np.asarray(history.metric), accuracies]
        done_by = checkpoints.processes
        made = {**origin, "started": done_by[0]["started"], "processes": done_by}
        save_run(run, arrays if history.steps else [], details, made)
        checkpoints.keep(1)
    last = f"{accuracies[-1]:.4f} at position {len(accuracies)} of {len(test.tokens):,} sequences"
    print(", ".join([f"{run.label}: {outcome}", *history.in_words("accuracy"), last]), flush=True)
    return outcome


def a5_config(config: Mapping[str, Any]) -> lcde_a5.Config:
    """A run's settings as the experiment on A5 has them; each run has a seed of its own."""
    names = lcde_a5.Config.model_fields.keys()
    settings = {key: value for key, value in config.items() if key in names}
    dense = config["block_size"] == "dense"
    settings |= UNUSED | {
        "seed": config["seed"] + config["run"],
        "lengths": [config["length"]],
        "structure": "dense" if dense else "block_diagonal",
        "block_size": 1 if dense else config["block_size"],
        "eval_batch_size": EVAL_BATCH_SIZE,
        "stop_accuracy": 1.0,  # when to stop is for `schedule_of` to say
    }
    return lcde_a5.Config(**settings)


def schedule_of(config: Mapping[str, Any]) -> Schedule:
    """Evaluations and checkpoints at the same steps."""
    interval = config["eval_interval"]
    return Schedule(config["max_steps"], interval, interval, config["stop_accuracy"])


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
