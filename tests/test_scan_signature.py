"""The whole signature of mamba-ssm's scan, whatever computes it: dtypes, groups, states."""

import pytest

pytest.importorskip("torch", reason="needs the PyTorch environment")

import torch

from kernels.selective_scan import selective_scan
from scan_cases import (
    CASES,
    LOOPS,
    ODD_SHAPES,
    VARIANTS,
    draw,
    largest_relative_difference,
    scan_with_gradients,
    tensors_of,
    worst_error,
)

FOLLOWING = ("u", "delta", "B", "C", "z")


NARROW = [None, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("narrow", NARROW)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", LOOPS)
def test_every_combination_errs_by_roundings_only(backend, case, narrow):
    """All of D, z, bias and softplus, each with a choice of groups and states that goes round."""
    first = list(CASES).index(case) + NARROW.index(narrow)
    for options in range(16):
        i = 4 * options + (first + options) % 4
        shape, variant = ODD_SHAPES[i % len(ODD_SHAPES)], VARIANTS[i]
        error = worst_error(backend, i, case, shape, narrow=narrow, **variant)
        assert error < 1, (shape, variant)


@pytest.mark.parametrize("backend", LOOPS)
def test_groups_are_scans_of_their_own(backend):
    arguments = draw(1, "Mamba", (2, 6, 5, 4), groups=3, states=True)
    arguments["C"] = arguments["C"][:, :1]  # one group of C for all three of B
    y, last = selective_scan(**arguments, backend=backend)
    for group in range(3):
        of_group = slice(2 * group, 2 * group + 2)
        own = {name: arguments[name][:, of_group] for name in ("u", "delta", "z", "initial_state")}
        own |= {name: arguments[name][of_group] for name in ("A", "D", "delta_bias")}
        own |= {"B": arguments["B"][:, group], "C": arguments["C"][:, 0]}
        own_y, own_last = selective_scan(**{**arguments, **own}, backend=backend)
        torch.testing.assert_close(y[:, of_group], own_y, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(last[:, of_group], own_last, rtol=1e-13, atol=1e-13)


def test_groups_of_two_kinds_are_refused():
    arguments = draw(1, "Mamba", (2, 6, 5, 4), groups=3)
    arguments["C"] = arguments["C"][:, :2]
    with pytest.raises(ValueError, match="C: expected as many groups as B, 3, found 2"):
        selective_scan(**arguments)


def in_two_halves(arguments, first, backend) -> tuple[torch.Tensor, torch.Tensor]:
    length = arguments["u"].shape[-1]
    state, outputs = arguments["initial_state"], []
    for part in (slice(0, first), slice(first, length)):
        cut = {
            name: arguments[name][..., part]
            for name in FOLLOWING
            if name in arguments and arguments[name].shape[-1] == length
        }
        given = {**arguments, **cut, "initial_state": state}
        y, state = selective_scan(**given, backend=backend)
        outputs.append(y)
    return torch.cat(outputs, dim=-1), state


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", LOOPS)
def test_a_sequence_in_two_halves_is_the_sequence(backend, case):
    arguments = draw(2, case, (2, 3, 11, 5), states=True, requires_grad=True)
    leaves = tensors_of(arguments)
    results = []
    for y, last in (
        selective_scan(**arguments, backend=backend),
        in_two_halves(arguments, 4, backend),
    ):
        mixture = y.square().sum() + last.abs().square().sum()
        gradients = torch.autograd.grad(mixture, list(leaves.values()))
        results.append(
            {"y": y.detach(), "last": last.detach(), **dict(zip(leaves, gradients, strict=True))}
        )
    assert largest_relative_difference(*results) < 1e-12


@pytest.mark.parametrize("backend", LOOPS)
def test_one_position_after_another_gives_the_same(backend):
    arguments = draw(3, "Mamba", (2, 3, 6, 5), states=True)
    whole, _ = selective_scan(**arguments, backend=backend)
    state = arguments["initial_state"]
    for t in range(6):
        now = {name: arguments[name][..., t : t + 1] for name in FOLLOWING}
        y, state = selective_scan(**{**arguments, **now, "initial_state": state}, backend=backend)
        torch.testing.assert_close(y[..., 0], whole[..., t], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["Mamba", "complex, following"])
@pytest.mark.parametrize("backend", LOOPS)
def test_states_have_the_gradients_of_finite_differences(backend, case):
    arguments = draw(4, case, (2, 2, 3, 2), states=True, requires_grad=True)
    names = list(tensors_of(arguments))

    def scan(*tensors):
        given = dict(zip(names, tensors, strict=True))
        return selective_scan(**{**arguments, **given}, backend=backend)

    assert torch.autograd.gradcheck(scan, [arguments[name] for name in names])


@pytest.mark.parametrize("backend", LOOPS)
def test_complex_rows_may_come_as_pairs(backend):
    arguments = draw(5, "complex, following", (2, 3, 4, 5))
    pairs = {name: torch.view_as_real(arguments[name]).flatten(-2) for name in "BC"}
    both = (selective_scan(**{**arguments, **x}, backend=backend) for x in ({}, pairs))
    assert torch.equal(*both)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", LOOPS)
def test_autocast_changes_nothing(backend, dtype):
    narrow = None if dtype == torch.float32 else dtype
    arguments = draw(6, "Mamba", (2, 3, 9, 20), torch.float32, narrow=narrow)
    expected = scan_with_gradients(arguments, backend)
    leaves = {name: x.clone().requires_grad_() for name, x in tensors_of(arguments).items()}
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(**{**arguments, **leaves}, backend=backend)
    assert y.dtype == dtype
    assert torch.equal(y, expected["y"])
