"""The S4 layer's convolution: its kernel from A, B, C, and the causal product with the input.

Both are operations with a gradient of their own, since what PyTorch would derive passes many more
times over the (d, sqrt(l), n) powers and the (d, l, l) products. Axes: b sequences, d channels,
l positions, n states of a channel. Once differentiable.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def s4_kernel(
    step: Float[Tensor, " d"],
    A: Complex[Tensor, "d n"],
    BC: Complex[Tensor, "d n"],
    length: int,
) -> Float[Tensor, "d l"]:
    """k_j = 2 Re sum_n B_n C_n Delta exp(Delta A_n j), j = 0..l-1, in A's precision always."""
    with torch.autocast(A.device.type, enabled=False):
        return _ExponentialSum.apply(step[:, None] * A, 2 * step[:, None] * BC, length)


def causal_convolution(
    u: Float[Tensor, "b d l"], kernel: Float[Tensor, "d l"]
) -> Float[Tensor, "b d l"]:
    """y_i = sum_{j <= i} k_{i-j} u_j, as a product with each channel's Toeplitz matrix.

    Computed in the kernel's dtype, under autocast too, and returned in u's. Holds d l^2 numbers: at
    the paper's lengths 1.7 times faster than FFTs (20) to as fast (100), by `benchmarks/s4.py`.
    """
    with torch.autocast(u.device.type, enabled=False):
        return _ToeplitzProduct.apply(u.to(kernel.dtype), kernel).to(u.dtype)


def _once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that computes in its tensors' dtypes, where it is called under autocast.

    PyTorch's decorator of this name lets `torch.autograd.grad` take further derivatives for zero.
    """

    @functools.wraps(backward)
    def once(ctx: Any, gradient: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "the S4 convolution differentiates once; for higher derivatives use S4's mode "
                "'scan' and the scan's backend 'reference'"
            )
        with torch.autocast(gradient.device.type, enabled=False):
            return backward(ctx, gradient)

    return once


class _ExponentialSum(torch.autograd.Function):
    """k_j = Re sum_n w_n exp(r_n j), the powers of exp(r) as products of two factors.

    j = K i + h with K near sqrt(length): about 2 sqrt(length) exponentials for each state, and
    one batched matrix product, of real numbers: complex ones count as pairs.
    """

    @staticmethod
    def forward(ctx: Any, rates: Tensor, weights: Tensor, length: int) -> Tensor:
        stride = math.ceil(math.sqrt(length))
        near = _powers(rates, stride, 1)
        far = _powers(rates, -(-length // stride), stride)
        ctx.save_for_backward(weights, near, far)
        weighted = _as_pairs((weights[:, None] * far).conj())
        return (weighted @ _as_pairs(near).transpose(1, 2)).flatten(1)[:, :length]

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, near, far = ctx.saved_tensors
        grid = far.shape[1], near.shape[1]
        gradient = torch.nn.functional.pad(gradient, (0, math.prod(grid) - gradient.shape[1]))
        lags = torch.arange(gradient.shape[1], device=gradient.device)
        # sum_j g_j exp(r j), and the same with g_j j, which is its derivative by r.
        both = torch.stack([gradient, gradient * lags], dim=1).unflatten(2, grid)
        rows = (both.flatten(1, 2) @ _as_pairs(near)).unflatten(2, (-1, 2))
        sums = (torch.view_as_complex(rows).unflatten(1, (2, -1)) * far[:, None]).sum(dim=2)
        return (weights * sums[:, 1]).conj(), sums[:, 0].conj(), None


def _powers(rates: Tensor, count: int, stride: int) -> Tensor:
    """exp(r stride i), i = 0..count-1: (d, count, n). Complex exp is not vectorised on a CPU."""
    exponents = stride * torch.arange(count, device=rates.device)[:, None]
    sizes = torch.exp(rates.real[:, None] * exponents)
    angles = rates.imag[:, None] * exponents
    return torch.complex(sizes * torch.cos(angles), sizes * torch.sin(angles))


def _as_pairs(x: Tensor) -> Tensor:
    """(..., N) complex as (..., 2 N) real."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2)


class _ToeplitzProduct(torch.autograd.Function):
    """y = T u for every channel, T_ij = k_{i-j} where j <= i, else 0."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor) -> Tensor:
        # Channels first and contiguous: else the batched product goes matrix by matrix.
        u = u.transpose(0, 1).contiguous()
        ctx.save_for_backward(u, kernel)
        return (u @ _toeplitz(kernel).transpose(1, 2)).transpose(0, 1)

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        u, kernel = ctx.saved_tensors
        length = kernel.shape[1]
        gradient = gradient.transpose(0, 1).contiguous()
        # (d, j, i), each for the lag i - j, and a row of zeros. Rows of l read at l + 1: row j
        # starts at its lag 0, and past its last come the zeros below the next row's diagonal.
        later = torch.nn.functional.pad(u, (0, 1)).transpose(1, 2)
        products = (later @ gradient).triu_()
        shape, strides = (len(u), length, length), (products.stride(0), length + 1, 1)
        by_lag = products.as_strided(shape, strides)
        return (gradient @ _toeplitz(kernel)).transpose(0, 1), by_lag.sum(dim=1)


def _toeplitz(kernel: Tensor) -> Tensor:
    """(d, l, l)."""
    length = kernel.shape[1]
    lags = torch.nn.functional.pad(kernel.flip(1), (0, length - 1))
    return lags.unfold(1, length, 1).flip(1)
