"""Arguments of the selective scan as its models have them, and what a backend makes of them."""

import torch

from kernels.selective_scan import selective_scan

LOOPS = ["cpp", "reference"]
# What A is, and whether B and C follow the input.
CASES = {
    "Mamba": ("real", True, True),
    "S4": ("complex", False, False),
    "real, constant": ("real", False, False),
    "real, mixed": ("real", True, False),
    "complex, following": ("complex", True, True),
}
OPTIONS = {"all options": True, "no options": False}


def draw(seed, case, shape, dtype=torch.float64, optional=True, requires_grad=False) -> dict:
    """Arguments as a model has them: A negative, steps of order one."""
    kind, B_follows, C_follows = CASES[case]
    batch, channels, length, states = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes, complex_too=False):
        parts = [torch.randn(sizes, generator=generator, dtype=torch.float64) for _ in range(2)]
        return torch.complex(*parts) if complex_too else parts[0]

    number = {"complex_too": kind == "complex"}
    rows = {False: (channels, states), True: (batch, states, length)}
    A = normal(channels, states, **number)
    A = torch.complex(-A.real.abs(), A.imag) if kind == "complex" else -A.abs()
    arguments = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": A,
        "B": normal(*rows[B_follows], **number),
        "C": normal(*rows[C_follows], **number),
    }
    if optional:
        arguments |= {"D": normal(channels), "delta_bias": normal(channels)}
        arguments |= {"z": normal(batch, channels, length)}
    else:
        arguments["delta"] = arguments["delta"].abs()
    cast = {torch.float64: torch.complex128, torch.float32: torch.complex64}[dtype]
    tensors = {
        name: x.to(cast if x.is_complex() else dtype).requires_grad_(requires_grad)
        for name, x in arguments.items()
    }
    return {**tensors, "delta_softplus": optional}


def tensors_of(arguments) -> dict:
    return {name: x for name, x in arguments.items() if isinstance(x, torch.Tensor)}


def scan_with_gradients(arguments, backend) -> dict:
    """The output, and the gradient of a fixed mixture of it with respect to every tensor."""
    leaves = {name: x.detach() for name, x in tensors_of(arguments).items()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    y = selective_scan(**{**arguments, **leaves}, backend=backend)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (y * weights.to(y.dtype)).sum().backward()
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def largest_relative_difference(found: dict, expected: dict) -> float:
    assert found.keys() == expected.keys()
    wide = {name: x.to(expected[name].dtype) for name, x in found.items()}
    return max(float((wide[k] - x).abs().max() / x.abs().max()) for k, x in expected.items())
