"""The selective scan on a CPU: the C++ against the two ways to do without it.

Forward and backward of the layer's operation, float32, real A, B and C that follow the input, step
bias and softplus, as the Mamba layer calls it. In one process a size, in turn, medians. *usual*:
the form of mamba-ssm's own fallback, which discretises all positions into (b, d, l, n) tensors and
then loops over them, differentiated by PyTorch; at toy size a minute each time, and 7 GiB. *lean*:
the reference backend, a loop that discretises each position when its turn comes. *mambapy*: that
package's parallel scan on the same tensors as *usual*, where it is installed
(`pip install -e '.[benchmarks]'`). Also: *usual*
where the process keeps freed memory, without whose page faults it is up to 3 times faster; the
forward pass against torch.exp alone over b d l n numbers; and the cost at twice each of b, d, l and
n. Run it on an otherwise idle machine; about 10 minutes. The last line is one JSON object.

    python benchmarks/selective_scan.py [--sizes toy a5] [--repeats 3] [--tiny]
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import softplus

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import alternate, medians, rounded, run_benchmark
from kernels.allocator import keep_freed_memory
from kernels.selective_scan import selective_scan


@dataclass(frozen=True)
class Size:
    """Batch, channels, positions, states."""

    B: int
    D: int
    L: int
    N: int


SIZES = {"toy": Size(32, 256, 100, 256), "a5": Size(32, 1024, 20, 64)}
TINY_SIZES = {"toy": Size(2, 8, 10, 16), "a5": Size(2, 16, 5, 8)}

Scan = Callable[[Mapping[str, Tensor]], Tensor]


def draw_arguments(size: Size) -> dict[str, Tensor]:
    """Arguments with the values of a freshly initialised Mamba layer, all to be differentiated."""
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    B, D, L, N = astuple(size)
    arguments = {
        "u": normal(B, D, L),
        "delta": 0.1 * normal(B, D, L),
        "A": -torch.arange(1.0, N + 1).repeat(D, 1),
        "B": normal(B, N, L),
        "C": normal(B, N, L),
        "D": torch.ones(D),
        "delta_bias": torch.full((D,), -4.6),
    }
    return {name: tensor.requires_grad_() for name, tensor in arguments.items()}


def ours(arguments: Mapping[str, Tensor]) -> Tensor:
    """The C++."""
    return selective_scan(**arguments, delta_softplus=True, backend="cpp")


def lean(arguments: Mapping[str, Tensor]) -> Tensor:
    """The reference backend."""
    return selective_scan(**arguments, delta_softplus=True, backend="reference")


def usual(arguments: Mapping[str, Tensor]) -> Tensor:
    """All positions discretised first, then a loop that picks each of them by its index."""
    u, A, B, C, D = (arguments[name] for name in ("u", "A", "B", "C", "D"))
    delta = softplus(arguments["delta"] + arguments["delta_bias"][:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    inputs = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    x = A.new_zeros((u.shape[0], *A.shape))
    ys = []
    for t in range(u.shape[2]):
        x = decay[:, :, t] * x + inputs[:, :, t]
        ys.append(torch.einsum("bdn,bn->bd", x, C[:, :, t]))
    return torch.stack(ys, dim=2) + u * D[:, None]


def mambapy_scan() -> Callable[..., Tensor] | None:
    """Mambapy's parallel scan; None, and a line that says so, where it is not installed."""
    try:
        from mambapy.pscan import pscan
    except ModuleNotFoundError:
        words = "mambapy is not installed and left out: pip install -e '.[benchmarks]'"
        print(words, file=sys.stderr)
        return None
    return pscan


def mambapy(arguments: Mapping[str, Tensor], pscan: Callable[..., Tensor]) -> Tensor:
    """All positions discretised first, then scanned in parallel."""
    u, A, B, C, D = (arguments[name] for name in ("u", "A", "B", "C", "D"))
    delta = softplus(arguments["delta"] + arguments["delta_bias"][:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bldn", delta, A))
    inputs = torch.einsum("bdl,bnl,bdl->bldn", delta, B, u)
    return torch.einsum("bldn,bnl->bdl", pscan(decay, inputs), C) + u * D[:, None]


def forward_backward(scan: Scan, size: Size) -> Callable[[], None]:
    """A call that runs a scan and its derivative; the arguments are made beforehand."""
    arguments = draw_arguments(size)
    dy = torch.ones_like(arguments["u"])

    def run() -> None:
        torch.autograd.grad(scan(arguments), list(arguments.values()), dy)

    return run


def forward_only(size: Size) -> Callable[[], Tensor]:
    """A call that runs our scan without preparing its derivative."""
    arguments = {name: tensor.detach() for name, tensor in draw_arguments(size).items()}
    return lambda: ours(arguments)


def measure(size: Size, repeats: int) -> dict[str, object]:
    """All figures of one size."""
    exponents = -torch.rand(size.B * size.D * size.L * size.N)
    runs = {
        "ours": forward_backward(ours, size),
        "usual": forward_backward(usual, size),
        "lean": forward_backward(lean, size),
        "forward": forward_only(size),
        "torch_exp": lambda: torch.exp(exponents),
    }
    if pscan := mambapy_scan():
        runs["mambapy"] = forward_backward(partial(mambapy, pscan=pscan), size)
    taken = alternate(runs, repeats)
    difference = largest_relative_difference(size, usual)
    points = linearity(size, repeats)
    # Last: there is no way back to what the process was before.
    keep_freed_memory()
    taken |= alternate({"usual_memory_kept": runs["usual"]}, repeats)
    median = medians(taken)
    return {
        "shape": {"B": size.B, "D": size.D, "L": size.L, "N": size.N},
        "ours_s": rounded(median["ours"]),
        "usual_s": rounded(median["usual"]),
        "speedup": rounded(median["usual"] / median["ours"]),
        "usual_memory_kept_s": rounded(median["usual_memory_kept"]),
        "speedup_memory_kept": rounded(median["usual_memory_kept"] / median["ours"]),
        "lean_s": rounded(median["lean"]),
        "lean_speedup": rounded(median["lean"] / median["ours"]),
        **mambapy_figures(median, size, pscan),
        "forward_s": rounded(median["forward"]),
        "torch_exp_s": rounded(median["torch_exp"]),
        "backward_over_forward": rounded(median["ours"] / median["forward"] - 1),
        "all_s": {name: [rounded(s) for s in values] for name, values in taken.items()},
        "largest_relative_difference": difference,
        "linearity": points,
    }


def mambapy_figures(
    median: Mapping[str, float], size: Size, pscan: Callable[..., Tensor] | None
) -> dict[str, float]:
    """The figures of that side; none where it is left out."""
    if pscan is None:
        return {}
    return {
        "mambapy_s": rounded(median["mambapy"]),
        "mambapy_speedup": rounded(median["mambapy"] / median["ours"]),
        "mambapy_relative_difference": largest_relative_difference(
            size, partial(mambapy, pscan=pscan)
        ),
    }


def largest_relative_difference(size: Size, other: Scan) -> float:
    """How far our gradients are from those of another form: the largest over arguments."""
    arguments = draw_arguments(size)
    dy = torch.ones_like(arguments["u"])
    both = [
        torch.autograd.grad(scan(arguments), list(arguments.values()), dy) for scan in (ours, other)
    ]
    errors = [
        float((found - expected).abs().max() / expected.abs().max())
        for found, expected in zip(*both, strict=True)
    ]
    return float(f"{max(errors):.1e}")


def linearity(size: Size, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of ours at half of B, D, L and N each, and at the size itself."""
    points = {letter: max(getattr(size, letter) // 2, 1) for letter in "BDLN"}
    runs = {
        letter: forward_backward(ours, replace(size, **{letter: half}))
        for letter, half in points.items()
    }
    taken = alternate({"whole": forward_backward(ours, size), **runs}, repeats)
    median = medians(taken)
    return {
        letter: {
            str(half): rounded(median[letter]),
            str(getattr(size, letter)): rounded(median["whole"]),
        }
        for letter, half in points.items()
    }


if __name__ == "__main__":
    run_benchmark(
        __doc__, "selective scan, forward and backward, float32", SIZES, TINY_SIZES, measure
    )
