"""What periodic checkpoints cost, as a share of training time at the configs' own interval.

Real runs, one process each, at the paper's size but for few steps, on few sequences (a step costs
the same). The time of a step is the median over steps, that of a checkpoint, from the copy of the
parameters to the bytes on the disk, the median over checkpoints; the share is that of one
checkpoint in the time of one interval. The bar is 2 %. Run it on an otherwise idle machine, with
--folder on the disk that is to hold results. The last line is one JSON object.

    python benchmarks/checkpoints.py [--cases lcde_a5 rnn_a5 mamba_toy] [--folder DIR] [--tiny]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import ModuleType

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments import lcde_a5, ssm_a5, ssm_toy, training_loop
from experiments.schema import load_config
from harness.checkpoints import Checkpoints
from harness.machine import describe_machine, package_versions
from harness.paths import CONFIG_FOLDER, ROOT

# For each case: the experiment, its settings, those of --tiny.
CASES: Mapping[str, tuple[ModuleType, dict[str, object], dict[str, object]]] = {
    "lcde_a5": (lcde_a5, {"lengths": [20], "samples": 5000, "max_steps": 50}, {"hidden_dim": 8}),
    "rnn_a5": (
        ssm_a5,
        {"models": ["RNN"], "lengths": [3], "depths": [1], "samples": 5000, "epochs": 1},
        {"hidden_dim": 64},
    ),
    "mamba_toy": (
        ssm_toy,
        {"models": ["Mamba"], "depths": [1], "nonlinear": [False], "input_dims": [2]}
        | {"runs": 1, "num_paths": 1000, "max_steps": 50},
        {"hidden_dim": 16, "state_dim": 8},
    ),
}
MEASURED_INTERVAL = 10  # steps between the checkpoints of a case


class TimedProgress(training_loop.Progress):
    """Progress that notes when steps end and how long checkpoints take."""

    ends: list[float] = []  # noqa: RUF012
    saves: list[float] = []  # noqa: RUF012

    def add_loss(self, loss: float) -> None:
        """Note the time."""
        super().add_loss(loss)
        self.ends.append(time.perf_counter())

    def save(self, trainable: training_loop.Trainable, checkpoints: Checkpoints) -> None:
        """Note how long it takes."""
        started = time.perf_counter()
        super().save(trainable, checkpoints)
        self.saves.append(time.perf_counter() - started)


def measure(name: str, folder: Path, tiny: bool) -> dict[str, object]:
    """One case, in this process."""
    experiment, settings, small = CASES[name]
    path = CONFIG_FOLDER / f"{experiment.__name__.rpartition('.')[2]}.yaml"
    interval = load_config(experiment.Config, path, {}).checkpoint_interval
    settings = {**settings, **(small if tiny else {}), "checkpoint_interval": MEASURED_INTERVAL}
    config = load_config(experiment.Config, path, {k: (v, name) for k, v in settings.items()})
    training_loop.Progress = TimedProgress
    runs = experiment.plan(config, folder / name)
    experiment.run(config, runs, folder / "data", "auto")
    ends = TimedProgress.ends
    step = statistics.median(later - sooner for sooner, later in pairwise(ends))
    save = statistics.median(TimedProgress.saves)
    return {
        "case": name,
        "step_s": round(step, 5),
        "checkpoint_s": round(save, 5),
        "checkpoints_measured": len(TimedProgress.saves),
        "interval_steps": interval,
        "share": round(save / (interval * step + save), 6),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure each case in a process of its own and print JSON. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--folder", type=Path, default=ROOT, metavar="DIR")
    parser.add_argument("--tiny", action="store_true", help="see that it works")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.in_process:
        print(json.dumps(measure(arguments.cases[0], arguments.folder, arguments.tiny)))
        return 0
    found = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for case in arguments.cases:
            command = [sys.executable, __file__, "--in-process", "--cases", case]
            command += ["--folder", folder, *(["--tiny"] if arguments.tiny else [])]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            share = found[-1]["share"]
            print(f"{case}: {share:.3%} of training time at the default interval", flush=True)
    versions = package_versions(("jax", "torch", "numpy"))
    result = {"tiny": arguments.tiny, "machine": describe_machine(), "packages": versions}
    print(json.dumps({**result, "cases": found}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
