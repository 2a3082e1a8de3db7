"""A training step of the toy sequence models on a CPU, at the paper's size, and its peak memory.

*ours*: the C++ scan, and S4 as a convolution. *lean*: the same model and update by the plain loop
of the reference backend, S4 as a scan too; at a smaller batch and scaled linearly, as the result
says. In one process that keeps freed memory, as the experiments do, in turn, medians. Peak memory
is of a new process that trains and then evaluates on 1,000 paths, PyTorch itself included. Run it
on an otherwise idle machine. The last line is one JSON object.

    python benchmarks/sequence_models.py [--models Mamba S4] [--depths 1 2] [--repeats 5]
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import alternate, medians, rounded
from benchmarks.memory import peak_memory_gib
from experiments.schema import load_config
from experiments.ssm_toy import Config, model_of
from experiments.ssm_training import (
    Training,
    parameter_groups,
    root_mean_square_error,
    squared_error,
)
from experiments.training_loop import DataOrder
from harness.machine import available_cores, describe_machine, package_versions
from harness.paths import CONFIG_FOLDER
from kernels.allocator import keep_freed_memory

PATHS, LENGTH, EVALUATED = 1000, 100, 1000
LEAN_BATCH = 4


def toy_training(config: Config, name: str, depth: int, backend: str) -> Training:
    """A model, its optimizer and random paths; nonlinear where there is more than one block."""
    run = {"model": name, "depth": depth, "nonlinear": depth > 1, "input_dim": 2}
    model = model_of({**config.identity(), **run, "run": 0}, backend)
    generator = torch.Generator().manual_seed(0)
    paths = torch.randn(PATHS, LENGTH, 2, generator=generator)
    labels = torch.randn(PATHS, generator=generator)
    order = DataOrder(PATHS, config.batch_size, [0])
    return Training(
        model,
        torch.optim.Adam(parameter_groups(model), lr=config.learning_rate),
        [(paths, labels, order)],
        squared_error,
        lambda m, *rows: root_mean_square_error(m, *rows, config.eval_batch_size),
        (paths[:EVALUATED], labels[:EVALUATED]),
    )


def steps_of(training: Training) -> Callable[[], float]:
    """A call that makes the next update."""
    steps = iter(range(10**9))
    return lambda: training.update(next(steps))


def compare_steps(config: Config, name: str, depth: int, repeats: int) -> dict[str, object]:
    """Seconds of a step, ours and lean."""
    small = config.model_copy(update={"batch_size": LEAN_BATCH, "s4_mode": "scan"})
    taken = alternate(
        {
            "ours": steps_of(toy_training(config, name, depth, "cpp")),
            "lean": steps_of(toy_training(small, name, depth, "reference")),
        },
        repeats,
    )
    scale = config.batch_size / LEAN_BATCH
    ours_s, lean_s = medians(taken)["ours"], medians(taken)["lean"] * scale
    return {
        "step_s": rounded(ours_s),
        "lean_step_s": rounded(lean_s),
        "lean": f"batch {LEAN_BATCH}, times {scale:g}",
        "lean_speedup": rounded(lean_s / ours_s),
        "all_s": {side: [rounded(s) for s in values] for side, values in taken.items()},
    }


def own_memory(config: Config, name: str, depth: int) -> dict[str, float]:
    """Peak memory in GiB of this process after training steps, then after an evaluation."""
    training = toy_training(config, name, depth, "cpp")
    for step in range(5):
        training.update(step)
    peaks = {"training": peak_memory_gib()}
    training.evaluate()
    return {**peaks, "then_evaluation": peak_memory_gib()}


def peak_memory(name: str, depth: int, threads: int) -> dict[str, float]:
    """`own_memory` of a new process."""
    options = ["--models", name, "--depths", str(depth), "--threads", str(threads)]
    done = subprocess.run(
        [sys.executable, os.fspath(Path(__file__)), "--memory-only", *options],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    """Measure and print one JSON object."""
    config = load_config(Config, CONFIG_FOLDER / "ssm_toy.yaml", {})
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=["Mamba", "S4"], default=["Mamba", "S4"])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--memory-only", action="store_true", help="peak memory of ours alone")
    arguments = parser.parse_args()
    if min(arguments.repeats, arguments.threads, *arguments.depths) < 1:
        parser.error("--depths, --repeats and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    if arguments.memory_only:
        print(json.dumps(own_memory(config, arguments.models[0], arguments.depths[0])))
        return
    configurations = [(name, depth) for name in arguments.models for depth in arguments.depths]
    result = {
        "benchmark": "toy sequence models, one training step, float32",
        "batch_size": config.batch_size,
        "configurations": {
            f"{name}, depth {depth}{', nonlinear' if depth > 1 else ''}": {
                **compare_steps(config, name, depth, arguments.repeats),
                "peak_memory_gib": peak_memory(name, depth, arguments.threads),
            }
            for name, depth in configurations
        },
        "threads": arguments.threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": {**describe_machine(), "packages": package_versions(["torch"])},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
