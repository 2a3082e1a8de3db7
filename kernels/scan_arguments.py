"""What the selective scan takes: its arguments checked, in one precision, and group by group."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Of the computation, by A's dtype.
PRECISION = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}
HALVES = (torch.float16, torch.bfloat16)


class Arguments(NamedTuple):
    """What a scan computes with; `selective_scan` says what each is."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    initial_state: Tensor | None


# y without z, and the last states.
Scan = Callable[[Arguments], tuple[Tensor, Tensor]]


def check_arguments(given: Arguments, z: Tensor | None) -> None:
    """Compare shapes, dtypes and devices. Raises: ValueError, naming the argument."""
    u, A, B, C = given.u, given.A, given.B, given.C
    for name, tensor, letters in (("u", u, "b, d, l"), ("A", A, "d, n")):
        if tensor.ndim != letters.count(",") + 1 or 0 in tensor.shape:
            found = tuple(tensor.shape)
            raise ValueError(f"{name}: expected shape ({letters}), none of them 0, found {found}")
    if A.dtype not in PRECISION:
        raise ValueError(f"A: expected float32 or float64, real or complex, found {A.dtype}")
    wide = PRECISION[A.dtype]
    real = (wide, *HALVES) if wide == torch.float32 else (wide,)
    rows = dict.fromkeys(("d, n", "b, n, l", "b, g, n, l"), real)
    if A.is_complex():
        pairs = dict.fromkeys(("b, n, 2 l", "b, g, n, 2 l"), real)
        rows = dict.fromkeys(rows, (A.dtype,)) | pairs
    for name, tensor, dtypes in (
        ("u", u, {"b, d, l": real}),
        ("delta", given.delta, {"b, d, l": real}),
        ("A", A, {"d, n": (A.dtype,)}),
        ("B", B, rows),
        ("C", C, rows),
        ("D", given.D, {"d,": real}),
        ("z", z, {"b, d, l": real}),
        ("delta_bias", given.delta_bias, {"d,": real}),
        ("initial_state", given.initial_state, {"b, d, n": (A.dtype,)}),
    ):
        if tensor is not None:
            _check(name, tensor, dtypes, u, A)
    groups = {rows.shape[1] for rows in (B, C) if rows.ndim == 4} - {1}
    if len(groups) > 1:
        raise ValueError(f"C: expected as many groups as B, {B.shape[1]}, found {C.shape[1]}")


def _check(
    name: str, tensor: Tensor, dtypes: dict[str, tuple[torch.dtype, ...]], u: Tensor, A: Tensor
) -> None:
    """dtypes: those allowed, by the letters of the shapes allowed."""
    batch, channels, length = u.shape
    groups = tensor.shape[1] if tensor.ndim == 4 and tensor.shape[1] else 1
    sizes = {
        "b": batch,
        "d": channels,
        "g": groups if channels % groups == 0 else 1,
        "n": A.shape[1],
        "l": length,
        "2 l": 2 * length,
    }
    shapes = {
        letters: tuple(sizes[letter] for letter in letters.strip(",").split(", "))
        for letters in dtypes
    }
    found = next((letters for letters in shapes if shapes[letters] == tuple(tensor.shape)), None)
    if found is None:
        expected = " or ".join(f"({letters}) = {shape}" for letters, shape in shapes.items())
        if tensor.ndim == 4 and len(shapes) > 1:
            expected += ", where g divides d"
        raise ValueError(f"{name}: expected shape {expected}, found {tuple(tensor.shape)}")
    if tensor.dtype not in dtypes[found]:
        expected = " or ".join(str(dtype) for dtype in dtypes[found])
        raise ValueError(f"{name}: expected {expected}, found {tensor.dtype}")
    if tensor.device != u.device:
        raise ValueError(f"{name}: expected on {u.device}, as u, found on {tensor.device}")


def widened(given: Arguments) -> Arguments:
    """The same in A's precision, B and C as (d, n) or (b, g, n, l), complex if A is."""

    def wide(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(PRECISION[given.A.dtype])

    return given._replace(
        u=wide(given.u),
        delta=wide(given.delta),
        B=_widened_rows(given.B, given.A),
        C=_widened_rows(given.C, given.A),
        D=wide(given.D),
        delta_bias=wide(given.delta_bias),
    )


def _widened_rows(rows: Tensor, A: Tensor) -> Tensor:
    if rows.ndim > 2 and A.is_complex() and not rows.is_complex():
        pairs = rows.to(PRECISION[A.dtype]).unflatten(-1, (-1, 2))
        rows = torch.complex(pairs[..., 0], pairs[..., 1])
    return (rows.unsqueeze(1) if rows.ndim == 3 else rows).to(A.dtype)


def scan_groups(scan: Scan, given: Arguments) -> tuple[Tensor, Tensor]:
    """Scan the channels of one group after another, with its B and C: (d, n) or (b, n, l)."""
    groups = max(rows.shape[1] if rows.ndim == 4 else 1 for rows in (given.B, given.C))
    found = [scan(_group(given, group, groups)) for group in range(groups)]
    if groups == 1:
        return found[0]
    outputs, states = zip(*found, strict=True)
    return torch.cat(outputs, dim=1), torch.cat(states, dim=1)


def _group(given: Arguments, group: int, groups: int) -> Arguments:
    width = given.u.shape[1] // groups

    def channels(x: Tensor | None, axis: int) -> Tensor | None:
        return None if x is None else x.narrow(axis, group * width, width)

    def rows_of(rows: Tensor) -> Tensor:
        return channels(rows, 0) if rows.ndim == 2 else rows[:, group % rows.shape[1]]

    return Arguments(
        channels(given.u, 1),
        channels(given.delta, 1),
        channels(given.A, 0),
        rows_of(given.B),
        rows_of(given.C),
        channels(given.D, 0),
        channels(given.delta_bias, 0),
        given.delta_softplus,
        channels(given.initial_state, 1),
    )
