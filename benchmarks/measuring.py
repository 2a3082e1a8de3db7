"""What the benchmarks of the PyTorch part share: calls timed in turn, and the command line."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from harness.machine import available_cores, describe_machine, package_versions
from kernels.selective_scan import choose_backend

S = TypeVar("S")


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, one of each in turn, after a warm-up."""
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[name].append(seconds(run))
    return taken


def medians(taken: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each call's times."""
    return {name: statistics.median(values) for name, values in taken.items()}


def rounded(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")


def measured_alone(size: str) -> object:
    """What this command prints for one size in a process of its own.

    Tensors that another size has freed would be memory that this one need not ask the kernel for.
    """
    command = [sys.executable, *sys.argv, "--sizes", size]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])[size]


def run_benchmark(
    description: str,
    name: str,
    sizes: Mapping[str, S],
    tiny_sizes: Mapping[str, S],
    measure: Callable[[S, int], Mapping[str, object]],
) -> None:
    """Read the command line, measure the sizes it names, print one JSON object."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(sizes), default=list(sizes))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    arguments = parser.parse_args()
    if arguments.repeats < 1 or arguments.threads < 1:
        parser.error("--repeats and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    choose_backend("cpu", "cpp")
    chosen = tiny_sizes if arguments.tiny else sizes
    if len(arguments.sizes) == 1:
        (size,) = arguments.sizes
        measured = {size: measure(chosen[size], arguments.repeats)}
    else:
        measured = {size: measured_alone(size) for size in arguments.sizes}
    result = {
        "benchmark": name,
        **measured,
        "threads": arguments.threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": {**describe_machine(), "packages": package_versions(["torch"])},
    }
    print(json.dumps(result))
