"""The selective scan's Triton kernels: what they cost on a GPU, counted without one or measured.

Counted, for each size and architecture: the kernels are compiled for the GPU, which needs none, and
their machine code is read. The instructions of each loop over positions are counted by kind, and
the time of a pass is the longest of what the H100's limits allow for its instructions, its
exponentials, its shuffles and shared memory, and its traffic to memory and to the L2 cache, as if
each ran at its limit and all of them together: a lower bound, which waiting for memory and barriers
and the last, part-filled round of programs lengthen. Small kernels around them (softplus, sums over
parts) are counted by their traffic alone. Measured, on a GPU: a Mamba layer's scan, forward and
backward, beside the reference loop and mamba-ssm where that is installed. The last line is JSON.

    python benchmarks/triton_scan.py [--sizes toy a5] [--repeats 20] [--tiny]
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

try:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
except ModuleNotFoundError:
    sys.exit("Triton is missing: pip install -c requirements-lock.txt -e '.[triton]'")

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import rounded
from harness.errors import UnavailableError
from harness.machine import describe_machine, package_versions
from kernels.selective_scan import choose_backend, selective_scan
from kernels.triton_kernels import gradient_kernel, scan_kernel
from kernels.triton_scan import CHANNELS, constants, kept_every, tile_states

Direction = Literal["forward", "backward"]
KERNELS = {"forward": scan_kernel, "backward": gradient_kernel}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
INTEGERS = ("length", "d", "interval")

# Warps and registers that a multiprocessor holds.
WARPS = {80: 64, 90: 64, 120: 48}
REGISTERS = 65536
# An H100 (SXM): multiprocessors, clock, and for each multiprocessor and clock warps' instructions
# issued, and results of exponentials, of shuffles and of loads and stores of 32 lanes.
PROCESSORS, CLOCK = 132, 1.7e9
ISSUED, SPECIAL, SHUFFLED, ACCESSED = 4, 16 / 32, 32 / 32, 32 / 32
MEMORY, L2 = 3.3e12, 5.5e12  # bytes a second


@dataclass(frozen=True)
class Size:
    """Sequences, channels, positions, states."""

    b: int
    d: int
    l: int  # noqa: E741 - the paper's letter
    n: int


SIZES = {"toy": Size(32, 256, 100, 256), "a5": Size(32, 1024, 20, 64)}
TINY_SIZES = {"toy": Size(2, 16, 5, 16), "a5": Size(2, 32, 3, 8)}


# Counted


@dataclass(frozen=True)
class Loop:
    """A loop over positions: its instructions by kind, for each number of a state and position."""

    instructions: Counter[str]
    positions: int  # of one round


@dataclass(frozen=True)
class Compiled:
    """What the machine code of a kernel says."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    warps: int
    instructions: Counter[str]
    loops: list[Loop]


def compile_pass(
    direction: Direction,
    size: Size,
    architecture: int,
    P: int = 1,
    following: tuple[bool, bool] = (True, True),
    dtype: torch.dtype = torch.float32,
) -> Compiled:
    """Compile a kernel as a launch at this size does, for compute capability 8.0 as 80."""
    A = torch.empty(size.d, P, size.n, dtype=dtype, device="meta")
    rows = [A.new_empty(size.b, size.l, P, size.n) if x else A for x in following]
    chosen = constants(A, *rows, direction)
    options = {name: chosen.pop(name) for name in ("num_warps", "maxnreg")}
    kernel = KERNELS[direction]
    pointer = {torch.float32: "*fp32", torch.float64: "*fp64"}[dtype]
    kinds = dict.fromkeys(kernel.arg_names, pointer) | dict.fromkeys(INTEGERS, "i32")
    places = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    aligned = [name for name in kernel.arg_names if name not in chosen]
    source = ASTSource(
        fn=kernel,
        signature=kinds | dict.fromkeys(chosen, "constexpr"),
        constexprs={places[name]: value for name, value in chosen.items()},
        attrs={
            places[name]: [["tt.divisibility", 16]]
            for name in aligned
            if name not in ("length", "interval")
        },
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    numbers = chosen["CHANNELS"] * chosen["STATES"] // (32 * options["num_warps"])
    return _read(compiled.asm["cubin"], options["num_warps"], numbers)


def _read(cubin: bytes, warps: int, numbers: int) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    found = {name: int(n) for name, n in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    lines = code.splitlines()
    bodies = [lines[start:end] for start, end in _innermost_loops(lines)]
    loops = [_loop(_count(body), numbers) for body in bodies]
    return Compiled(
        registers=found["REG"],
        spilled_bytes=found["STACK"] + found["LOCAL"],
        shared_bytes=found["SHARED"],
        warps=warps,
        instructions=_count(lines),
        loops=[loop for loop in loops if loop],
    )


def _tool(name: str, *arguments: str) -> str:
    command = [str(TOOLS / name), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _innermost_loops(lines: list[str]) -> list[tuple[int, int]]:
    labels: dict[str, int] = {}
    spans = []
    for i, line in enumerate(lines):
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = i
        branch = re.search(r"BRA\S* .*`\((\.L_x_\d+)\)", line)
        if branch and branch[1] in labels:
            spans.append((labels[branch[1]], i + 1))
    return [a for a in spans if not any(a[0] <= b[0] and b[1] <= a[1] and a != b for b in spans)]


def _count(lines: list[str]) -> Counter[str]:
    pattern = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_]*)")
    return Counter(match[1] for line in lines if (match := pattern.search(line)))


def _loop(instructions: Counter[str], numbers: int) -> Loop | None:
    """None if it has no exponentials: a loop over something else."""
    positions = instructions["MUFU"] // numbers
    return Loop(instructions, positions) if positions else None


def occupancy(compiled: Compiled, architecture: int) -> float:
    """Resident warps over those that a multiprocessor can hold, as far as registers decide."""
    of_a_warp = 32 * -(-compiled.registers // 8) * 8
    programs = REGISTERS // (of_a_warp * compiled.warps)
    return min(programs * compiled.warps, WARPS[architecture]) / WARPS[architecture]


KINDS = {
    "exponentials": ("MUFU",),
    "multiply-adds": ("FFMA", "FMUL", "FADD"),
    "loads": ("LDG",),
    "stores": ("STG",),
    "shuffles": ("SHFL",),
    "shared memory": ("LDS", "STS", "LDSM", "STSM"),
    "barriers": ("BAR",),
}


def by_kind(loop: Loop) -> dict[str, float]:
    """Instructions of a warp for one position."""
    counts = {kind: sum(loop.instructions[name] for name in names) for kind, names in KINDS.items()}
    counts["all"] = loop.instructions.total()
    return {kind: rounded(count / loop.positions) for kind, count in counts.items()}


def states_of_a_program(size: Size) -> int:
    """In float32, real."""
    return tile_states(torch.empty(size.d, 1, size.n, device="meta"))


def traffic(direction: Direction, size: Size) -> dict[str, float]:
    """Bytes that a pass moves: to memory, and within L2 to a program's scratch and back."""
    b, d, l, n = astuple(size)  # noqa: E741
    states = states_of_a_program(size)
    inputs, rows, state = b * d * l, b * l * n, b * d * n
    kept = state * math.ceil(l / kept_every(l))
    if direction == "forward":
        # u, delta, the parts of y and their sum; around it: bias, softplus and D.
        numbers = inputs * (2 + 2 * n / states + 1 + 8) + 2 * rows + kept + 2 * state
        return {"memory": 4 * numbers, "scratch": 0}
    parts = 2 * (2 * n / states + 1) * inputs + 2 * (2 * d / CHANNELS + 1) * rows + 2 * state
    numbers = 3 * inputs + 2 * rows + kept + 2 * state + parts + 12 * inputs
    return {"memory": 4 * numbers, "scratch": 4 * 2 * b * d * l * n}


def seconds_by_limit(direction: Direction, size: Size, compiled: Compiled) -> dict[str, float]:
    """What each of the H100's limits allows at best."""
    programs = size.b * size.d // CHANNELS * size.n // states_of_a_program(size)
    per_position = Counter()
    for loop in compiled.loops:
        per_position.update(by_kind(loop))
    rate = PROCESSORS * CLOCK / (programs * compiled.warps * size.l)
    moved = traffic(direction, size)
    memory_instructions = sum(per_position[k] for k in ("loads", "stores", "shared memory"))
    return {
        "instructions": per_position["all"] / (ISSUED * rate),
        "exponentials": per_position["exponentials"] / (SPECIAL * rate),
        "shuffles and accesses": (per_position["shuffles"] / SHUFFLED) / rate
        + memory_instructions / (ACCESSED * rate),
        "memory": moved["memory"] / MEMORY,
        "L2": moved["scratch"] / L2,
    }


def counted(size: Size) -> dict[str, object]:
    """All figures of one size, and the milliseconds that follow for an H100."""
    result: dict[str, object] = {"shape": asdict(size), "architectures": {}}
    for architecture in WARPS:
        passes = {}
        for direction in KERNELS:
            compiled = compile_pass(direction, size, architecture)
            passes[direction] = {
                "registers": compiled.registers,
                "spilled_bytes": compiled.spilled_bytes,
                "shared_bytes": compiled.shared_bytes,
                "warps": compiled.warps,
                "occupancy": occupancy(compiled, architecture),
                "instructions_of_a_warp_and_position": [by_kind(loop) for loop in compiled.loops],
            }
            if architecture == 90:
                limits = seconds_by_limit(direction, size, compiled)
                passes[direction]["h100_ms_by_limit"] = {
                    name: rounded(1e3 * value) for name, value in limits.items()
                }
        result["architectures"][f"sm_{architecture}"] = passes
    limits = [
        result["architectures"]["sm_90"][direction]["h100_ms_by_limit"] for direction in KERNELS
    ]
    result["h100_counted_ms_if_all_overlap"] = rounded(sum(max(x.values()) for x in limits))
    result["h100_counted_ms_if_none_overlaps"] = rounded(sum(sum(x.values()) for x in limits))
    return result


# Measured


def draw_arguments(size: Size) -> dict[str, Tensor]:
    """Arguments with the values of a freshly initialised Mamba layer, all to be differentiated."""
    generator = torch.Generator().manual_seed(0)
    b, d, l, n = astuple(size)  # noqa: E741

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    arguments = {
        "u": normal(b, l, d).transpose(1, 2),
        "delta": 0.1 * normal(b, l, d).transpose(1, 2),
        "A": -torch.arange(1.0, n + 1).repeat(d, 1),
        "B": normal(b, l, n).transpose(1, 2),
        "C": normal(b, l, n).transpose(1, 2),
        "D": torch.ones(d),
        "delta_bias": torch.full((d,), -4.6),
    }
    return {name: tensor.cuda().requires_grad_() for name, tensor in arguments.items()}


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """The median over calls, by the GPU's clock."""
    times = triton.testing.do_bench(run, rep=repeats, return_mode="median")
    return rounded(times)


def measured(size: Size, repeats: int) -> dict[str, object]:
    """Milliseconds of each backend that there is, forward, and forward and backward."""
    arguments = draw_arguments(size)
    leaves = list(arguments.values())
    result: dict[str, object] = {"device": torch.cuda.get_device_name()}
    for backend in ("triton", "mamba_ssm", "reference"):
        try:
            choose_backend("cuda", backend)
        except UnavailableError as error:
            result[backend] = str(error)
            continue

        def scan(backend: str = backend) -> Tensor:
            return selective_scan(**arguments, delta_softplus=True, backend=backend)

        def both(scan: Callable[[], Tensor] = scan) -> object:
            return torch.autograd.grad(scan().sum(), leaves)

        with torch.no_grad():
            forward = milliseconds(scan, repeats)
        result[backend] = {"forward_ms": forward, "both_ms": milliseconds(both, repeats)}
    return result


def main() -> None:
    """Count, measure where there is a GPU, print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=500, help="milliseconds of each measurement")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    arguments = parser.parse_args()
    sizes = TINY_SIZES if arguments.tiny else SIZES
    result: dict[str, object] = {"benchmark": "selective scan in Triton, float32"}
    for name in arguments.sizes:
        result[name] = counted(sizes[name])
        if torch.cuda.is_available():
            result[name]["measured"] = measured(sizes[name], arguments.repeats)
    packages = package_versions(["torch", "triton"])
    print(json.dumps({**result, "machine": {**describe_machine(), "packages": packages}}))


if __name__ == "__main__":
    main()
