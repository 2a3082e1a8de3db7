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


class Form(NamedTuple):
    """A shape, in letters and in numbers, and the dtypes that an argument of it may have."""

    letters: str
    sizes: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]


def check_arguments(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    """Compare shapes, dtypes and devices. Raises: ValueError, naming the argument."""
    for name, tensor, letters in (("u", u, "b, d, l"), ("A", A, "d, n")):
        if tensor.ndim != letters.count(",") + 1 or 0 in tensor.shape:
            found = tuple(tensor.shape)
            raise ValueError(f"{name}: expected shape ({letters}), none of them 0, found {found}")
    if A.dtype not in PRECISION:
        raise ValueError(f"A: expected float32 or float64, real or complex, found {A.dtype}")
    batch, channels, length = u.shape
    states = A.shape[1]
    real = _real_dtypes(A)
    like_u = [Form("(b, d, l)", (batch, channels, length), real)]
    vector = [Form("(d,)", (channels,), real)]
    for name, tensor, forms in (
        ("u", u, like_u),
        ("delta", delta, like_u),
        ("A", A, [Form("(d, n)", (channels, states), (A.dtype,))]),
        ("B", B, _row_forms(B, u, A)),
        ("C", C, _row_forms(C, u, A)),
        ("D", D, vector),
        ("z", z, like_u),
        ("delta_bias", delta_bias, vector),
        (
            "initial_state",
            initial_state,
            [Form("(b, d, n)", (batch, channels, states), (A.dtype,))],
        ),
    ):
        if tensor is not None:
            _check(name, tensor, forms, u.device)
    groups = {rows.shape[1] for rows in (B, C) if rows.ndim == 4} - {1}
    if len(groups) > 1:
        raise ValueError(f"C: expected as many groups as B, {B.shape[1]}, found {C.shape[1]}")


def _real_dtypes(A: Tensor) -> tuple[torch.dtype, ...]:
    wide = PRECISION[A.dtype]
    return (wide, *HALVES) if wide == torch.float32 else (wide,)


def _row_forms(rows: Tensor, u: Tensor, A: Tensor) -> list[Form]:
    batch, channels, length = u.shape
    states = A.shape[1]
    groups = rows.shape[1] if rows.ndim == 4 and rows.shape[1] else 1
    if channels % groups:
        groups = 1
    dtypes = (A.dtype,) if A.is_complex() else _real_dtypes(A)
    forms = [
        Form("(d, n)", (channels, states), dtypes),
        Form("(b, n, l)", (batch, states, length), dtypes),
        Form("(b, g, n, l)", (batch, groups, states, length), dtypes),
    ]
    if A.is_complex():
        real = _real_dtypes(A)
        forms.append(Form("(b, n, 2 l)", (batch, states, 2 * length), real))
        forms.append(Form("(b, g, n, 2 l)", (batch, groups, states, 2 * length), real))
    return forms


def _check(name: str, tensor: Tensor, forms: list[Form], device: torch.device) -> None:
    form = next((form for form in forms if form.sizes == tuple(tensor.shape)), None)
    if form is None:
        expected = " or ".join(f"{form.letters} = {form.sizes}" for form in forms)
        if tensor.ndim == 4 and len(forms) > 1:
            expected += ", where g divides d"
        raise ValueError(f"{name}: expected shape {expected}, found {tuple(tensor.shape)}")
    if tensor.dtype not in form.dtypes:
        expected = " or ".join(str(dtype) for dtype in form.dtypes)
        raise ValueError(f"{name}: expected {expected}, found {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected on {device}, as u, found on {tensor.device}")


def widened_rows(rows: Tensor, A: Tensor) -> Tensor:
    """B or C in A's precision: (d, n), or (b, g, n, l), complex if A is."""
    if rows.ndim == 2:
        return rows.to(A.dtype)
    if A.is_complex() and not rows.is_complex():
        pairs = rows.to(PRECISION[A.dtype]).unflatten(-1, (-1, 2))
        rows = torch.complex(pairs[..., 0], pairs[..., 1])
    return rows.to(A.dtype) if rows.ndim == 4 else rows.to(A.dtype).unsqueeze(1)


def scan_groups(
    scan: Callable[..., tuple[Tensor, Tensor]],
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Scan the channels of one group after another, with its B and C: (d, n) or (b, n, l)."""
    groups = max(rows.shape[1] if rows.ndim == 4 else 1 for rows in (B, C))
    width = u.shape[1] // groups
    found = []
    for group in range(groups):

        def channels(x: Tensor | None, axis: int, start: int = group * width) -> Tensor | None:
            return None if x is None else x.narrow(axis, start, width)

        def rows_of(rows: Tensor, group: int = group, channels: Callable = channels) -> Tensor:
            return channels(rows, 0) if rows.ndim == 2 else rows[:, group % rows.shape[1]]

        found.append(
            scan(
                channels(u, 1),
                channels(delta, 1),
                channels(A, 0),
                rows_of(B),
                rows_of(C),
                channels(D, 0),
                channels(delta_bias, 0),
                delta_softplus,
                channels(initial_state, 1),
            )
        )
    if groups == 1:
        return found[0]
    outputs, states = zip(*found, strict=True)
    return torch.cat(outputs, dim=1), torch.cat(states, dim=1)
