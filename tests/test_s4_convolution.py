"""S4's kernel and its causal convolution against closed forms, SciPy and finite differences."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the sequence models need PyTorch")

import torch

from kernels.s4_convolution import causal_convolution, s4_kernel

# One factor alone, one position more than a square, less, and a square itself.
LENGTHS = (1, 2, 7, 9, 10)


def drawn(*sizes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sizes, dtype=dtype, generator=generator)


def kernel_arguments():
    A = drawn(2, 3, dtype=torch.complex128) - 1
    return torch.tensor([0.3, 0.7]).double(), A, drawn(2, 3, seed=1, dtype=torch.complex128)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_kernel_is_the_sum_of_exponentials(length):
    step, A, BC = kernel_arguments()
    terms = BC[..., None] * torch.exp(step[:, None, None] * A[..., None] * torch.arange(length))
    expected = 2 * step[:, None] * terms.sum(dim=1).real
    torch.testing.assert_close(s4_kernel(step, A, BC, length), expected)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_kernels_gradients_are_finite_differences(length):
    arguments = [x.requires_grad_() for x in kernel_arguments()]
    assert torch.autograd.gradcheck(lambda *x: s4_kernel(*x, length), arguments)


def test_causal_convolution_is_numpys():
    u, kernel = drawn(3, 4, 9), drawn(4, 9, seed=1)
    expected = [[np.convolve(*pair)[:9] for pair in zip(row, kernel, strict=True)] for row in u]
    np.testing.assert_allclose(causal_convolution(u, kernel), expected, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_convolutions_gradients_are_finite_differences(length):
    u = drawn(3, length, 2).transpose(1, 2).requires_grad_()  # strided, as the layer passes it
    kernel = drawn(2, length, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(causal_convolution, (u, kernel))


def test_a_second_derivative_is_refused_and_not_zero():
    u, kernel = drawn(3, 2, 7), drawn(2, 7, seed=1)
    with pytest.raises(NotImplementedError, match="differentiates once"):
        torch.autograd.functional.hessian(lambda k: causal_convolution(u, k).square().sum(), kernel)


# torch.compile instantiates every autograd function, which PyTorch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_both_compile_to_the_same_values_and_gradients():
    length = 7
    u = drawn(3, 2, length).requires_grad_()
    arguments = [x.requires_grad_() for x in kernel_arguments()]

    def layer(u, *arguments):
        return causal_convolution(u, s4_kernel(*arguments, length))

    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    results = []
    for function in (layer, compiled):
        y = function(u, *arguments)
        results.append([y, *torch.autograd.grad(y.square().sum(), (u, *arguments))])
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(other, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    step, A, BC = kernel_arguments()
    step, A, BC = step.float(), A.to(torch.complex64), BC.to(torch.complex64)
    u = drawn(3, 2, 9, dtype=torch.float32).to(dtype)
    expected = causal_convolution(u.float(), s4_kernel(step, A, BC, 9)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = causal_convolution(u, s4_kernel(step, A, BC, 9))
    assert found.dtype == dtype
    assert torch.equal(found, expected)
