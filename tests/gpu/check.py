"""For whoever has a GPU for twelve minutes: is all of it right there, and how fast is it?

In this order: the scan's backends against the reference in double precision on the CPU; JAX's
composition of flows; for each kind of model captured steps again, resumed, and against plain ones;
milliseconds of a layer's scan, and of a step of each configuration of both figures; then the toy
runs themselves, run 0 of each, side by side, until the time is up. What was not reached is said. It
prints a table and leaves check.json and results.tar.gz, the runs' results with their records, in
--output.

    python tests/gpu/check.py [--minutes 12] [--workers 18] [--output DIR] [--parts scan training]
    TRITON_INTERPRET=1 python tests/gpu/check.py --tiny       # all of it on a CPU, at tiny sizes

It needs PyTorch for CUDA, and JAX to make the toy data. Where a machine reaches no registry, the
other packages come along in tests/gpu/wheels, fetched beforehand with

    pip download --no-deps --python-version 3.12 --only-binary=:all: \\
        --platform manylinux2014_x86_64 -c requirements-lock.txt -d tests/gpu/wheels \\
        pydantic pydantic-core annotated-types typing-inspection filelock signax s5-pytorch \\
        jaxtyping wadler-lindig
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
RESERVE_S = 20.0  # in which no other part begins
ENDING_S = 45.0  # for workers to save their state, and to write
TOLERANCE, FLOW_TOLERANCE = 5e-6, 1e-5
SCAN_MS = 200  # of each measurement of a scan
TINY_TOY = {"hidden_dim": 8, "state_dim": 3, "num_paths": 60, "paper_data": False}
TINY_TOY |= {"eval_interval": 2, "max_steps": 4, "batch_size": 4, "scan_backend": "reference"}
TINY_A5 = {"hidden_dim": 8, "state_dim": 3, "num_heads": 2, "feed_forward_dim": 16}


@dataclass
class Check:
    """What is checked where, how long it may take, and what came of it so far."""

    device: str
    tiny: bool
    output: Path
    deadline: float
    workers: int
    found: dict[str, Any] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds to the end."""
        return self.deadline - time.monotonic()

    def part(self, name: str, work: Callable[[], Any]) -> None:
        """Do a part if there is time, and keep what it gives or how it failed; write all so far."""
        if self.left() < RESERVE_S:
            self.found[name] = "not reached: out of time"
        else:
            try:
                self.found[name] = work()
            except Exception as error:
                self.found[name] = {"failed": f"{type(error).__name__}: {error}"}
        print(f"{name}: {json.dumps(self.found[name])}", flush=True)
        (self.output / "check.json").write_text(json.dumps(self.found, indent=1) + "\n")


def install_wheels(folder: Path) -> None:
    """Install what is in a folder, without a registry. Raises: CalledProcessError."""
    wheels = [str(path) for path in sorted(folder.glob("*.whl"))]
    if wheels:
        target = tempfile.mkdtemp(prefix="wheels_")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*pip, "--target", target, *wheels], check=True)
        sys.path.insert(0, target)
        paths = [target, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def backends(check: Check) -> list[str]:
    """The scan's backends that there are on the device."""
    from harness.errors import UnavailableError
    from kernels.selective_scan import choose_backend

    names = ("triton", "reference") if check.tiny else ("triton", "mamba_ssm", "reference")
    usable = []
    for name in names:
        try:
            usable.append(choose_backend(check.device, name))
        except (UnavailableError, ValueError) as error:
            print(f"without {name}: {error}", flush=True)
    return usable


def scan_errors(check: Check) -> dict[str, Any]:
    """Each backend's worst relative error of outputs and gradients, and whether bits repeat."""
    import torch

    from scan_cases import CASES, draw, exact, relative_differences, scan_with_gradients, tensors_of

    sizes = [(2, 3, 5, 4)] if check.tiny else [(2, 3, 5, 4), (3, 70, 33, 21), (4, 64, 100, 256)]
    found: dict[str, Any] = {}
    for backend in backends(check):
        worst, same = 0.0, True
        for case in CASES:
            for size in sizes:
                given = draw(1, case, size, torch.float32)
                expected = scan_with_gradients(exact(given), "reference")
                there = {**given, **{n: x.to(check.device) for n, x in tensors_of(given).items()}}
                once, again = (scan_with_gradients(there, backend) for _ in range(2))
                same &= all(torch.equal(once[name], again[name]) for name in once)
                results = {name: x.cpu() for name, x in once.items()}
                worst = max(worst, *relative_differences(results, expected).values())
        right = worst < TOLERANCE
        found[backend] = {"worst_relative_error": worst, "right": right, "same_bits": same}
    return found


def config_of(check: Check, experiment: Any, **changes: Any) -> Any:
    """An experiment's config as the paper has it, or tiny."""
    from experiments.schema import load_config

    name = experiment.__name__.rpartition(".")[2]
    small = {"ssm_toy": TINY_TOY, "ssm_a5": TINY_A5}[name] if check.tiny else {}
    overrides = {key: (value, "check") for key, value in {**small, **changes}.items()}
    return load_config(experiment.Config, ROOT / "experiment_configs" / f"{name}.yaml", overrides)


def training_of(check: Check, experiment: str, run: dict[str, Any], backend: str) -> Any:
    """A training of random data on the device, as an experiment makes it."""
    import torch

    from experiments import ssm_a5, ssm_toy
    from experiments import ssm_training as training
    from experiments.training_loop import DataOrder
    from torch_layers import Dropout

    generator = torch.Generator().manual_seed(0)
    if experiment == "toy":
        config = config_of(check, ssm_toy)
        length = 3 if check.tiny else 100
        inputs = torch.randn(1000, length, run["input_dim"], generator=generator)
        sources = [(inputs, torch.randn(1000, generator=generator), config.batch_size)]
        settings = {**config.identity(), "seed": 0, "run": 0, **run}
        model = ssm_toy.model_of(settings, backend).to(check.device)
        adam = torch.optim.Adam(training.parameter_groups(model), lr=config.learning_rate)
        loss, dropout = training.squared_error, None
    else:
        config, size = config_of(check, ssm_a5), 2 if check.tiny else 32
        sources = [
            (*torch.randint(60, (2, 1000, length), generator=generator, dtype=torch.int32), size)
            for length in (run["length"], 2)
        ]
        draws = training.generator_of([0], check.device)
        dropped = Dropout(config.dropout, draws)
        settings = {**config.identity(), "seed": 0, **run}
        model = ssm_a5.model_of(settings, backend, dropped).to(check.device)
        adam = torch.optim.AdamW(training.parameter_groups(model), lr=1e-4, weight_decay=0.01)
        loss, dropout = training.mean_cross_entropy, (draws, [0])
    there = [
        (x.to(check.device), y.to(check.device), DataOrder(1000, size, [i + 1]))
        for i, (x, y, size) in enumerate(sources)
    ]
    return training.Training(model, adam, there, loss, lambda m: 0.0, (), dropout)


def configurations(check: Check) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those of both figures: experiment and run."""
    for input_dim in (2, 3):
        for model in ("Mamba", "S4", "S5"):
            for depth, nonlinear in ((1, False), (2, False), (2, True)):
                run = {"model": model, "depth": depth, "nonlinear": nonlinear}
                if not check.tiny or (input_dim, nonlinear) == (2, False):
                    yield "toy", {**run, "input_dim": input_dim}
    for length in (4,) if check.tiny else (20, 3):
        for model in ("RNN", "Transformer", "S4", "Mamba"):
            for depth in (1,) if check.tiny else (1, 4):
                yield "A5", {"model": model, "depth": depth, "length": length}


def after(training: Any, steps: range) -> tuple[list[float], dict[str, Any]]:
    """Losses of these steps, and all that they leave."""
    return [float(training.update(step)) for step in steps], training.arrays()


def same(left: tuple, right: tuple) -> bool:
    """Whether losses and arrays have the same bits."""
    import numpy as np

    arrays = all(np.array_equal(left[1][name], right[1][name]) for name in left[1])
    return left[0] == right[0] and arrays


def determinism(check: Check) -> dict[str, Any]:
    """For each kind of model: captured steps again, resumed, and against plain ones."""
    backend, found = backends(check)[-1 if check.tiny else 0], {}  # interpreting takes minutes
    for experiment, run in configurations(check):
        name = f"{experiment} {run['model']}"
        if name in found or check.left() < RESERVE_S:
            continue

        def fresh(experiment: str = experiment, run: dict = run) -> Any:
            return training_of(check, experiment, run, backend)

        whole, again, plain = fresh(), fresh(), fresh()
        plain.captured = None
        expected, resumed, first = after(whole, range(6)), fresh(), fresh()
        _, state = after(first, range(3))
        resumed.restore(state)
        rest = after(resumed, range(3, 6))
        found[name] = {
            "same_bits": same(expected, after(again, range(6))),
            "resumed_bits": same((expected[0][3:], expected[1]), rest),
            "plain_bits": same(expected, after(plain, range(6))),
        }
    return found


def scan_times(check: Check) -> dict[str, Any]:
    """Milliseconds of a Mamba layer's scan at the paper's sizes, backend by backend."""
    if check.tiny:
        return {"toy": "not measured: no GPU"}
    from benchmarks.triton_scan import SIZES, measured

    return {name: measured(size, SCAN_MS) for name, size in SIZES.items()}


def step_times(check: Check) -> list[dict[str, Any]]:
    """Milliseconds of a step of each configuration, backend by backend."""
    rows, usable = [], backends(check)
    for experiment, run in configurations(check):
        scans = usable if run["model"] == "Mamba" else usable[:1]
        for backend in scans:
            if check.left() < RESERVE_S or (backend == "reference" and run["depth"] > 1):
                continue
            training = training_of(check, experiment, run, backend)
            row = {"experiment": experiment, **run, "backend": backend}
            rows.append({**row, "ms": milliseconds_of_a_step(check, training)})
    return rows


def milliseconds_of_a_step(check: Check, training: Any) -> float:
    """The mean over steps one after another, the first ones left out."""
    steps = 1 if check.tiny else 100
    for step in range(steps):
        loss = training.update(step)
    float(loss)
    since = time.perf_counter()
    for step in range(steps, 2 * steps):
        loss = training.update(step)
    float(loss)
    return round(1e3 * (time.perf_counter() - since) / steps, 4)


FLOWS = """
import numpy as np
from kernels.shared_flows import Flows, compose_by_block, compose_by_group
rng = np.random.default_rng(0)
movements = rng.normal(size=(K, H, H)).astype(np.float32) / (40 * H**0.5)
flows = Flows(movements, rng.normal(size=(K, H)).astype(np.float32))
start = rng.normal(size=(N, H)).astype(np.float32)
ids = rng.integers(0, K, (N, 20)).astype(np.int32)
expected = compose_by_group(flows, start, ids, 1000, 2)
found = compose_by_block(flows, start, ids, 1000)
print(float(np.max(np.abs(found - expected)) / np.max(np.abs(expected))))
"""


def flows_error(check: Check) -> dict[str, Any]:
    """The relative difference of JAX's composition for a GPU from that for a CPU."""
    sizes = "K, H, N = 9, 8, 100\n" if check.tiny else "K, H, N = 100, 256, 4000\n"
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", sizes + FLOWS],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    error = float(done.stdout)
    return {"relative_difference": error, "right": error < FLOW_TOLERANCE}


def evidence(check: Check) -> dict[str, Any]:
    """Run 0 of the toy configurations side by side, until the time is up; how far each came."""
    with tempfile.TemporaryDirectory() as folder:
        data, results = Path(folder, "data"), Path(folder, "results")
        make_data(check, data)
        words = ["-m", "SequenceModel", "-e", "toy", "--set", "runs=1", "--device", check.device]
        words += ["--data-dir", str(data), "--results-dir", str(results)]
        words += ["--launcher", "local", "--workers", str(check.workers)]
        small = {**TINY_TOY, "models": ["S4", "Mamba"], "input_dims": [2], "nonlinear": [False]}
        for key, value in small.items() if check.tiny else ():
            words += ["--set", f"{key}={json.dumps(value)}"]
        since = time.monotonic()
        process = subprocess.Popen([sys.executable, str(ROOT / "run_experiment.py"), *words])
        try:
            code = process.wait(timeout=max(check.left() - ENDING_S, 1))
        except subprocess.TimeoutExpired:
            process.terminate()  # its workers save checkpoints
            code = process.wait()
        seconds = round(time.monotonic() - since, 1)
        with tarfile.open(check.output / "results.tar.gz", "w:gz") as archive:
            for part in ("outputs_toy", "logs"):
                archive.add(results / part, part)
        records = [json.loads(p.read_text()) for p in sorted(results.glob("outputs_toy/*.json"))]
    return {"exit_code": code, "seconds": seconds, "runs": [how_far(r) for r in records]}


def how_far(record: dict[str, Any]) -> dict[str, Any]:
    """A run by its record."""
    names = ("model", "depth", "nonlinear", "input_dim")
    last = {name: values[-1] for name, values in record["history"].items()}
    return {**{n: record["config"][n] for n in names}, "outcome": record["outcome"], **last}


def make_data(check: Check, folder: Path) -> None:
    """Toy data in a folder: the paper's, or random walks."""
    import numpy as np

    folder = folder / "toy_data"
    folder.mkdir(parents=True)
    if check.tiny:
        rng = np.random.default_rng(0)
        np.save(folder / "data_2.npy", rng.random((60, 6, 2), dtype=np.float32))
        np.save(folder / "labels_2.npy", rng.random(60, dtype=np.float32))
    else:
        make = ["data_dir/generate_toy_dataset.py", "--output", str(folder)]
        on_cpu = {**os.environ, "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, *make], check=True, cwd=ROOT, env=on_cpu)


def table(found: dict[str, Any]) -> str:
    """The step times as text."""
    rows = found.get("step times")
    if not isinstance(rows, list):
        return ""
    lines = [f"{'':<4} {'model':<12} {'blocks':>6} {'size':>8} {'backend':<10} {'ms a step':>9}"]
    for row in rows:
        size = f"{row['input_dim']}D" if "input_dim" in row else f"L = {row['length']}"
        name = row["model"] + (" (GELU)" if row.get("nonlinear") else "")
        lines.append(
            f"{row['experiment']:<4} {name:<12} {row['depth']:>6} {size:>8} "
            f"{row['backend']:<10} {row['ms']:>9.3f}"
        )
    return "\n".join(lines)


def failures(value: Any, name: str = "") -> list[str]:
    """The checks that came out false or not at all."""
    if isinstance(value, dict):
        if "failed" in value:
            return [f"{name}: {value['failed']}"]
        return [line for key, part in value.items() for line in failures(part, f"{name} {key}")]
    return [name] if value is False and name.split()[-1] in CHECKED else []


PARTS: dict[str, Callable[[Check], Any]] = {
    "scan": scan_errors,
    "flows": flows_error,
    "training": determinism,
    "scan times": scan_times,
    "step times": step_times,
    "evidence": evidence,
}
CHECKED = ("right", "same_bits", "resumed_bits", "plain_bits")


def describe(check: Check) -> dict[str, Any]:
    """The machine, for the record."""
    import torch

    from harness.records import provenance

    name = torch.cuda.get_device_name() if check.device == "cuda" else "cpu"
    return provenance(("torch", "triton", "jax", "mamba-ssm", "s5-pytorch", "numpy"), name)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--workers", type=int, default=18, help="runs on the GPU at a time")
    default = Path(os.environ.get("OUT") or ROOT / "results/local/gpu_check")
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--wheels", type=Path, default=Path(__file__).parent / "wheels")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="on a CPU, to try the script")
    return parser.parse_args()


def main() -> int:
    """Check, measure, print. Returns the exit code: 1 if a check failed."""
    started, arguments = time.monotonic(), parse()
    install_wheels(arguments.wheels)
    from experiments.devices import torch_numbers

    torch_numbers("float32")
    import torch

    device = "cuda" if torch.cuda.is_available() and not arguments.tiny else "cpu"
    if device == "cpu" and not arguments.tiny:
        print(
            "no CUDA device: TRITON_INTERPRET=1 python tests/gpu/check.py --tiny", file=sys.stderr
        )
        return 2
    output = arguments.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    deadline = started + 60 * arguments.minutes
    check = Check(device, arguments.tiny, output, deadline, arguments.workers)
    check.part("machine", lambda: describe(check))
    for name in arguments.parts:
        check.part(name, lambda name=name: PARTS[name](check))
    print(table(check.found))
    failed = failures(check.found)
    print("\n".join(["failed:", *failed]) if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
