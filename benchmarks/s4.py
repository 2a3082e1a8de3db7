"""The S4 layer on a CPU: a causal convolution against the two ways to scan it step by step.

Forward and backward of the layer's operation, float32: complex A, B and C constant in time, the
same step for every position of a channel. In one process a size, in turn, medians. *usual*: the
form of mamba-ssm's own fallback for complex A, which discretises all positions into complex (B, D,
L, N) tensors and then loops over them, differentiated by PyTorch; at a smaller batch and scaled
linearly, as the result says. *lean*: the reference backend of the selective scan, a loop that
discretises each position when its turn comes; at a smaller batch too. Also, at the full batch: the
C++ scan (`s4_mode: scan`), and, in turns of their own, the Toeplitz product and the convolution by
FFT with the same kernel. Run it on an otherwise idle machine. The last line is one JSON object.

    python benchmarks/s4.py [--sizes toy a5] [--repeats 3] [--tiny]
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import alternate, medians, rounded, run_benchmark
from kernels.s4_convolution import causal_convolution, s4_kernel
from kernels.selective_scan import selective_scan


@dataclass(frozen=True)
class Size:
    """Batch, channels, positions, states; and the batches at which the step-by-step forms run."""

    B: int
    D: int
    L: int
    N: int
    usual_batch: int
    lean_batch: int


SIZES = {"toy": Size(32, 256, 100, 256, 4, 8), "a5": Size(32, 1024, 20, 64, 4, 32)}
TINY_SIZES = {"toy": Size(2, 8, 10, 16, 1, 1), "a5": Size(2, 16, 5, 8, 1, 2)}

Layer = Callable[[Mapping[str, Tensor]], Tensor]

CONVOLUTION_REPEATS = 41


def draw_arguments(size: Size) -> dict[str, Tensor]:
    """Arguments with the values of a freshly initialised S4 layer, all to be differentiated."""
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=dtype)

    B, D, L, N, *_ = astuple(size)
    std = math.sqrt(2 / (D + N))
    arguments = {
        "u": normal(B, D, L),
        "step": torch.full((D,), 0.7),
        "A": torch.complex(torch.tensor(-0.5), math.pi * torch.arange(1.0, N + 1)).repeat(D, 1),
        "B": std * normal(D, N, dtype=torch.complex64),
        "C": std * normal(D, N, dtype=torch.complex64),
        "D": torch.ones(D),
    }
    return {name: tensor.requires_grad_() for name, tensor in arguments.items()}


def with_kernel(
    arguments: Mapping[str, Tensor], convolve: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The layer as a convolution with its kernel."""
    u, step, A, B, C, D = arguments.values()
    return convolve(u, s4_kernel(step, A, B * C, u.shape[2])) + D[:, None] * u


def ours(arguments: Mapping[str, Tensor]) -> Tensor:
    """The Toeplitz product."""
    return with_kernel(arguments, causal_convolution)


def fft(arguments: Mapping[str, Tensor]) -> Tensor:
    """The same convolution by Fourier transforms of twice the length."""
    return with_kernel(arguments, fft_convolution)


def fft_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """y_l = sum_{j <= l} k_{l-j} u_j."""
    length = u.shape[2]
    product = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    return torch.fft.irfft(product, n=2 * length)[..., :length]


def scan(arguments: Mapping[str, Tensor], backend: str) -> Tensor:
    """The layer by the selective scan."""
    u, step, A, B, C, D = arguments.values()
    return selective_scan(u, step[:, None].expand_as(u), A, B, C, D, backend=backend)


def usual(arguments: Mapping[str, Tensor]) -> Tensor:
    """All positions discretised first, then a loop that picks each of them by its index."""
    u, step, A, B, C, D = arguments.values()
    delta = step[:, None].expand_as(u)
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta.to(A.dtype), A))
    inputs = torch.einsum("bdl,dn->bdln", (delta * u).to(A.dtype), B)
    x = A.new_zeros((u.shape[0], *A.shape))
    ys = []
    for t in range(u.shape[2]):
        x = decay[:, :, t] * x + inputs[:, :, t]
        ys.append(torch.einsum("bdn,dn->bd", x, C))
    return 2 * torch.stack(ys, dim=2).real + u * D[:, None]


LAYERS: dict[str, Layer] = {
    "ours": ours,
    "usual": usual,
    "lean": lambda arguments: scan(arguments, "reference"),
    "fft": fft,
    "cpp_scan": lambda arguments: scan(arguments, "cpp"),
}


def gradients(layer: Layer, arguments: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Forward and backward, for the sum of the outputs."""
    y = layer(arguments)
    return torch.autograd.grad(y, list(arguments.values()), torch.ones_like(y))


def measure(size: Size, repeats: int) -> dict[str, object]:
    """All figures of one size."""
    batches = {"usual": size.usual_batch, "lean": size.lean_batch}
    runs = {
        name: partial(gradients, layer, draw_arguments(replace(size, B=batches.get(name, size.B))))
        for name, layer in LAYERS.items()
    }
    fft_run = runs.pop("fft")
    taken = alternate(runs, repeats)
    # Apart from the scans, whose freed tensors and page faults weigh more than the difference here.
    convolutions = alternate({"toeplitz": runs["ours"], "fft": fft_run}, CONVOLUTION_REPEATS)
    whole_batch = {
        name: median * size.B / batches.get(name, size.B) for name, median in medians(taken).items()
    }
    ours_s, convolution_s = whole_batch["ours"], medians(convolutions)
    return {
        "shape": {"B": size.B, "D": size.D, "L": size.L, "N": size.N},
        **{f"{name}_s": rounded(value) for name, value in whole_batch.items()},
        "speedup": rounded(whole_batch["usual"] / ours_s),
        "lean_speedup": rounded(whole_batch["lean"] / ours_s),
        **{f"{name}_alone_s": rounded(value) for name, value in convolution_s.items()},
        "fft_speedup": rounded(convolution_s["fft"] / convolution_s["toeplitz"]),
        "cpp_scan_speedup": rounded(whole_batch["cpp_scan"] / ours_s),
        "scaled": {name: f"batch {b}, times {size.B / b:g}" for name, b in batches.items()},
        "all_s": {name: [rounded(s) for s in values] for name, values in taken.items()},
        "largest_relative_difference": largest_relative_difference(
            replace(size, B=size.usual_batch)
        ),
    }


def largest_relative_difference(size: Size) -> dict[str, float]:
    """How far gradients are from those of `usual`: the largest over arguments, for each way."""
    arguments = draw_arguments(size)
    expected = gradients(usual, arguments)
    return {
        name: float(f"{max(map(_relative_error, gradients(layer, arguments), expected)):.1e}")
        for name, layer in LAYERS.items()
        if name != "usual"
    }


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    run_benchmark(__doc__, "S4 layer, forward and backward, float32", SIZES, TINY_SIZES, measure)
