"""Arguments of the selective scan as its models have them, and what a backend makes of them."""

import itertools

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


CHOICES = ("D", "z", "delta_bias", "delta_softplus")


def draw(
    seed,
    case,
    shape,
    dtype=torch.float64,
    optional=True,
    requires_grad=False,
    groups=1,
    narrow=None,
    states=False,
) -> dict:
    """Arguments as a model has them: A negative, steps of order one.

    optional: all or none of CHOICES, or those named. narrow: a dtype of 16 bits for what follows
    the input, complex numbers as pairs. states: with an initial state, and asked for the last.
    """
    kind, B_follows, C_follows = CASES[case]
    batch, channels, length, _ = shape
    generator = torch.Generator().manual_seed(seed)
    chosen = (CHOICES if optional else ()) if isinstance(optional, bool) else optional

    def normal(*sizes, complex_too=False):
        parts = [torch.randn(sizes, generator=generator, dtype=torch.float64) for _ in range(2)]
        return torch.complex(*parts) if complex_too else parts[0]

    number = {"complex_too": kind == "complex"}
    follows = (batch, shape[3], length) if groups == 1 else (batch, groups, shape[3], length)
    rows = {False: (channels, shape[3]), True: follows}
    A = normal(channels, shape[3], **number)
    A = torch.complex(-A.real.abs(), A.imag) if kind == "complex" else -A.abs()
    arguments = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": A,
        "B": normal(*rows[B_follows], **number),
        "C": normal(*rows[C_follows], **number),
        "D": normal(channels),
        "delta_bias": normal(channels),
        "z": normal(batch, channels, length),
    }
    for name in ("D", "delta_bias", "z"):
        if name not in chosen:
            del arguments[name]
    if "delta_softplus" not in chosen:
        for name in ("delta", "delta_bias"):
            if name in arguments:
                arguments[name] = arguments[name].abs()
    if states:
        arguments["initial_state"] = normal(batch, channels, shape[3], **number)
    cast = {torch.float64: torch.complex128, torch.float32: torch.complex64}[dtype]
    tensors = {name: x.to(cast if x.is_complex() else dtype) for name, x in arguments.items()}
    if narrow:
        following = {"B": B_follows, "C": C_follows, "u": True, "delta": True, "z": "z" in tensors}
        for name in [name for name, it_does in following.items() if it_does]:
            x = tensors[name]
            tensors[name] = (torch.view_as_real(x).flatten(-2) if x.is_complex() else x).to(narrow)
    for x in tensors.values():
        x.requires_grad_(requires_grad)
    flags = {"delta_softplus": "delta_softplus" in chosen}
    return {**tensors, **flags, **({"return_last_state": True} if states else {})}


def tensors_of(arguments) -> dict:
    return {name: x for name, x in arguments.items() if isinstance(x, torch.Tensor)}


def exact(arguments) -> dict:
    """The same numbers in double precision."""
    wide = {name: x.to(_wide(x.dtype)) for name, x in tensors_of(arguments).items()}
    return {**arguments, **wide}


def _wide(dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def scan_with_gradients(arguments, backend, scan=selective_scan) -> dict:
    """The outputs, and the gradient of a fixed mixture of them with respect to every tensor."""
    leaves = {name: x.detach() for name, x in tensors_of(arguments).items()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    found = scan(**{**arguments, **leaves}, backend=backend)
    names = ("y", "last")
    outputs = dict(zip(names, found if isinstance(found, tuple) else (found,), strict=False))
    generator = torch.Generator().manual_seed(0)
    mixture = 0
    for x in outputs.values():
        # The weights are of 8 bits, the same numbers in every dtype.
        weights = torch.randn(x.shape, generator=generator, dtype=torch.float64).bfloat16()
        parts = (x.real, x.imag) if x.is_complex() else (x,)
        mixture = mixture + sum(
            (part * weights.to(part.device, part.dtype)).sum().double() for part in parts
        )
    mixture.backward()
    detached = {name: x.detach() for name, x in outputs.items()}
    return {**detached, **{name: leaf.grad for name, leaf in leaves.items()}}


def relative_differences(found: dict, expected: dict) -> dict[str, float]:
    """Of each tensor, over the largest number of the expected one."""
    assert found.keys() == expected.keys()
    pairs = {name: (found[name].to(x.dtype), x) for name, x in expected.items()}
    return {name: float((a - x).abs().max() / x.abs().max()) for name, (a, x) in pairs.items()}


def largest_relative_difference(found: dict, expected: dict) -> float:
    return max(relative_differences(found, expected).values())


# The whole signature. What a result may err by: in 16 bits half a unit in its last place.
ALLOWED = {
    torch.float64: 1e-11,
    torch.complex128: 1e-11,
    torch.float32: 5e-6,
    torch.complex64: 5e-6,
    torch.float16: 2**-11 + 5e-6,
    torch.bfloat16: 2**-8 + 5e-6,
}
ODD_SHAPES = [(2, 6, 5, 4), (3, 4, 7, 21), (1, 6, 1, 3), (2, 2, 11, 17)]
VARIANTS = [
    dict(zip(("optional", "groups", "states"), values, strict=True))
    for values in itertools.product(
        [[c for i, c in enumerate(CHOICES) if mask >> i & 1] for mask in range(16)],
        (1, 2),
        (False, True),
    )
]


def worst_error(backend, seed, case, shape, **variant) -> float:
    """How far from the reference in double precision, as a fraction of what is allowed."""
    arguments = draw(seed, case, shape, torch.float32, **variant)
    found = scan_with_gradients(arguments, backend)
    for name, x in tensors_of(arguments).items():
        assert found[name].dtype == x.dtype, name
    assert found["y"].dtype == arguments["u"].dtype
    differences = relative_differences(found, scan_with_gradients(exact(arguments), "reference"))
    return max(error / ALLOWED[found[name].dtype] for name, error in differences.items())
