"""A run without a framework: a random walk that is trained and resumed like a model."""

import os
import time
from pathlib import Path

import numpy as np

from experiments.training_loop import Prepared, Schedule, do_runs
from harness.errors import DataError
from harness.records import provenance

STEP_S = 0.002
# A step before which it waits, and a file: made when it does, until it is gone.
HOLD_STEP, _, HOLD_FILE = os.environ.get("HOLD", "").partition(":")


class Walk:
    """`width` numbers that every step moves, by what its number alone decides."""

    def __init__(self, seed, width):
        self.seed, self.place = seed, np.zeros(width)

    def update(self, step):
        time.sleep(STEP_S)
        if str(step) == HOLD_STEP:
            Path(HOLD_FILE).touch()
            while Path(HOLD_FILE).exists():
                time.sleep(STEP_S)
        move = np.random.default_rng([*self.seed, step]).normal(size=len(self.place))
        self.place = 0.9 * self.place + move
        return float(np.mean(move**2))

    def evaluate(self):
        return float(np.mean(self.place > 0))

    def arrays(self):
        return {"place": self.place}

    def restore(self, arrays):
        self.place = arrays["place"]


def run(config, runs, data_dir, device):
    if (data_dir / "broken").exists():
        raise DataError(f"{data_dir / 'broken'}: these data are broken")
    schedule = Schedule(
        config.epochs, config.eval_interval, config.checkpoint_interval, config.stop_accuracy
    )
    origin = provenance(("numpy",), device)

    def prepare(run):
        seed = [config.seed, run.config["length"], run.config["depth"]]
        return Prepared(Walk(seed, config.hidden_dim), schedule, "accuracy", {})

    do_runs(runs, prepare, origin)
