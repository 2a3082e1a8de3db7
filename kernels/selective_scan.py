"""The selective scan: a bank of diagonal linear recurrences whose steps follow the input.

Axes: b sequences, d channels, l positions, n states of a channel. For every channel

    x_t = exp(delta_t A) x_{t-1} + delta_t B_t u_t,    y_t = C_t . x_t + D u_t

with x_0 = 0 before the first position, unless an initial state is given; for complex A,
y_t = 2 Re(C_t . x_t) + D u_t. This is S6, Algorithm 2 of Mamba (Gu and Dao, arXiv 2312.00752), with
its simplified discretisation of B, and with constant B and C the diagonal S4. Four implementations:
the kernels in `triton_scan.py` on a GPU, mamba-ssm's CUDA kernel there, the C++ in `csrc` on a CPU,
and the loop over positions below.
"""

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.nn.functional import pad, silu, softplus

from harness.errors import UnavailableError
from kernels.csrc.build import load_operators
from kernels.scan_arguments import (
    PRECISION,
    Arguments,
    Scan,
    check_arguments,
    scan_groups,
    widened,
)

BACKENDS = ("auto", "triton", "mamba_ssm", "cpp", "reference")
MAMBA_INSTALL = "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm"
MAMBA_MOST_STATES = 256
TRITON_CAPABILITY = (8, 0)
# The C++ takes rows of states whose length is a multiple of this: its widest vector.
ROW_MULTIPLE = 16


def selective_scan(
    u: Float[Tensor, "b d l"],
    delta: Float[Tensor, "b d l"],
    A: Inexact[Tensor, "d n"],
    B: Inexact[Tensor, "d n"] | Inexact[Tensor, "b n l"] | Inexact[Tensor, "b g n l"],
    C: Inexact[Tensor, "d n"] | Inexact[Tensor, "b n l"] | Inexact[Tensor, "b g n l"],
    D: Float[Tensor, " d"] | None = None,
    z: Float[Tensor, "b d l"] | None = None,
    delta_bias: Float[Tensor, " d"] | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
    initial_state: Inexact[Tensor, "b d n"] | None = None,
) -> Float[Tensor, "b d l"] | tuple[Float[Tensor, "b d l"], Inexact[Tensor, "b d n"]]:
    """Scan every channel, with the meaning and the arguments of mamba-ssm's `selective_scan_fn`.

    A is float32 or float64, real or complex, and sets the precision of the computation and of the
    states. All real arguments have it; beside float32 each may be float16 or bfloat16 too. The
    output has u's dtype, every gradient that of its argument, under autocast too. B and C are
    constant (d, n), or follow the input (b, n, l), in g groups of d / g successive channels if
    (b, g, n, l). For complex A they are complex, or, if they follow the input, real (..., 2 l),
    the real and the imaginary part of each position in turn. The step is delta + delta_bias,
    through softplus if delta_softplus; z gates the output, y silu(z). With `return_last_state` also
    x_l, from which a later call continues as its `initial_state`. There is no mask: the scan is
    causal, so what pads a shorter sequence at its end changes none of its outputs. `backend` as in
    `choose_backend`; all but 'reference' differentiate once, in reverse mode, not by torch.func,
    and 'mamba_ssm' not the last state.
    Raises: ValueError, naming the argument; NotImplementedError, for a derivative that a backend
    lacks; and what `choose_backend` raises.
    """
    given = Arguments(u, delta, A, B, C, D, delta_bias, delta_softplus, initial_state)
    check_arguments(given, z)
    precision = PRECISION[A.dtype]
    chosen = choose_backend(u.device.type, backend, precision)
    if chosen != "reference":
        _refuse_tangents(given, chosen)
    with torch.autocast(u.device.type, enabled=False):
        y, last = scan_groups(SCANS[chosen], widened(given))
        y = (y if z is None else y * silu(z.to(precision))).to(u.dtype)
    return (y, last) if return_last_state else y


def choose_backend(device: str, backend: str = "auto", dtype: torch.dtype = torch.float32) -> str:
    """The implementation that `selective_scan` uses on a type of device: 'cpu', 'cuda', ...

    'auto' takes Triton's kernels on a GPU, mamba-ssm's where Triton is missing and that is
    installed (float32), the C++ on a CPU (compiled on first use), and the reference otherwise;
    without a compiler it warns and takes the reference. With TRITON_INTERPRET=1 'triton' computes
    on a CPU, slowly. `dtype` is the precision, A's. Before torch.compile traces a scan, its backend
    has to be chosen once in the process.
    Raises: UnavailableError, when a backend asked for by name is missing, with the command that
    installs it; ValueError, when it cannot compute on such tensors; CompilationError.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, found {backend!r}")
    fits = {
        "triton": device == "cuda" or (backend == "triton" and _interpreted()),
        "mamba_ssm": device == "cuda" and dtype == torch.float32,
        "cpp": device == "cpu",
        "reference": True,
    }
    if backend == "auto":
        return next(name for name in fits if fits[name] and _usable(name))
    if not fits[backend]:
        raise ValueError(f"backend {backend!r} does not compute on {device} in {dtype}")
    _prepare(backend)
    return backend


def _prepare(backend: str) -> None:
    """Once in a process, so that torch.compile has nothing to trace here but a set."""
    if backend not in READY:
        PREPARE[backend]()
        READY.add(backend)


def _usable(backend: str) -> bool:
    try:
        _prepare(backend)
    except UnavailableError as error:
        if backend == "cpp":
            warnings.warn(
                f"{error}. Until then the selective scan is a loop in PyTorch: about 15 times "
                "slower, and its memory for training grows with b d l n (gigabytes at the paper's "
                "sizes).",
                stacklevel=3,
            )
        return False
    return True


def _refuse_tangents(given: Arguments, backend: str) -> None:
    """PyTorch takes the forward derivative of an operator that has none for zero."""
    if any(isinstance(x, Tensor) and unpack_dual(x).tangent is not None for x in given):
        raise NotImplementedError(
            f"backend {backend!r} has no forward-mode derivative; use backend='reference'"
        )


def _interpreted() -> bool:
    """Whether Triton runs its kernels on a CPU, in Python."""
    return os.environ.get("TRITON_INTERPRET") == "1"


# Around the loops over positions that know no more than the recurrence


def _scan_around(
    loop: Callable[..., tuple[Tensor, Tensor]], given: Arguments
) -> tuple[Tensor, Tensor]:
    u, delta, A, D = given.u, given.delta, given.A, given.D
    if given.delta_bias is not None:
        delta = delta + given.delta_bias[:, None]
    if given.delta_softplus:
        delta = softplus(delta)
    y, last = loop(u, delta, A, given.B, given.C, _initial(given))
    return (y if D is None else y + D[:, None] * u), last


def _initial(given: Arguments) -> Tensor:
    u, A, initial = given.u, given.A, given.initial_state
    return A.new_zeros((len(u), *A.shape)) if initial is None else initial


# The reference: one position after another, each discretised when its turn comes


def _loop_in_python(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, x: Tensor
) -> tuple[Tensor, Tensor]:
    length = u.shape[2]
    Bs = [B] * length if B.ndim == 2 else B[:, None].unbind(-1)
    Cs = [C] * length if C.ndim == 2 else C.unbind(-1)
    product = "bdn,dn->bd" if C.ndim == 2 else "bdn,bn->bd"
    ys = []
    steps = zip(delta.unbind(-1), (delta * u).unbind(-1), Bs, Cs, strict=True)
    for delta_t, input_t, B_t, C_t in steps:
        decay = (delta_t[..., None] * A).exp_()  # (b, d, n)
        x = (input_t[..., None] * B_t).addcmul_(decay, x)
        ys.append(torch.einsum(product, x, C_t))
    y = torch.stack(ys, dim=-1)
    return (2 * y.real if A.is_complex() else y), x


# The kernels in triton_scan.py


def _loop_in_triton(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor
) -> tuple[Tensor, Tensor]:
    from kernels.triton_scan import scan, state_multiple

    multiple = state_multiple(A.shape[1])
    A_rows, initial_rows = (_state_rows(x, multiple) for x in (A, initial))
    B_rows, C_rows = (_state_rows(_states_last(x), multiple) for x in (B, C.conj()))
    y, last = scan(u, delta, A_rows, B_rows, C_rows, initial_rows)
    return y, _of_state_rows(last, A)


def _prepare_triton() -> None:
    try:
        import kernels.triton_scan  # noqa: F401 - defines the operators
    except ImportError as error:
        raise UnavailableError(
            f"Triton is not installed ({error}): it comes with PyTorch's CUDA wheels for Linux, "
            "pip install torch; beside another PyTorch, pip install triton"
        ) from None
    if _interpreted():
        return
    if not torch.cuda.is_available():
        raise UnavailableError("backend 'triton' needs an NVIDIA GPU, and PyTorch finds none")
    found = torch.cuda.get_device_capability()
    if found < TRITON_CAPABILITY:
        raise UnavailableError(
            f"backend 'triton' needs a GPU of compute capability 8.0 (Ampere) or later, found "
            f"{torch.cuda.get_device_name()} with {found[0]}.{found[1]}; use backend='reference'"
        )


# Rows of states: what the C++ and the Triton kernels read


def _states_last(rows: Tensor) -> Tensor:
    """(d, n) as it is, (b, n, l) as (b, l, n)."""
    return rows if rows.ndim == 2 else rows.transpose(1, 2)


def _state_rows(x: Tensor, multiple: int) -> Tensor:
    """(..., n) to (..., p, m): p parts of m states, a multiple of `multiple`, zeros after n."""
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj()).transpose(-1, -2)
    else:
        x = x.unsqueeze(-2)
    return pad(x, (0, -x.shape[-1] % multiple))


def _of_state_rows(rows: Tensor, A: Tensor) -> Tensor:
    """(..., p, m) to (..., n)."""
    parts = rows[..., : A.shape[1]].unbind(-2)
    return torch.complex(*parts) if A.is_complex() else parts[0]


# The C++ in csrc


def _scan_cpp(given: Arguments) -> tuple[Tensor, Tensor]:
    u, A, zeros = given.u, given.A, given.u.new_zeros(given.u.shape[1])
    states = A, _states_last(given.B), _states_last(given.C.conj()), _initial(given)
    *rows, initial_rows = (_state_rows(x, ROW_MULTIPLE) for x in states)
    D, delta_bias = (zeros if x is None else x for x in (given.D, given.delta_bias))
    y, last = torch.ops.selective_scan.scan(
        u, given.delta, *rows, D, delta_bias, initial_rows, given.delta_softplus
    )
    return y, _of_state_rows(last, A)


def _prepare_cpp() -> None:
    """Load the operators; tell PyTorch the shapes of their outputs, and their derivative."""
    load_operators()
    torch.library.register_fake("selective_scan::scan", _scan_shapes)
    torch.library.register_fake("selective_scan::scan_backward", _scan_backward_shapes)
    torch.library.register_autograd(
        "selective_scan::scan", _differentiate, setup_context=_save_inputs
    )
    torch.library.register_autograd("selective_scan::scan_backward", _refuse_to_differentiate)


def _scan_shapes(*arguments: Tensor | bool) -> tuple[Tensor, Tensor]:
    u, *_, initial, _ = arguments
    return torch.empty_like(u), initial.new_empty(initial.shape)


def _scan_backward_shapes(*arguments: Tensor | bool) -> tuple[Tensor, ...]:
    _, _, u, delta, *others, _ = arguments
    return torch.empty_like(u), torch.empty_like(delta), *(x.new_empty(x.shape) for x in others)


def _save_inputs(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    del output
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dy: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
    backward = torch.ops.selective_scan.scan_backward
    return *backward(dy, d_last, *ctx.saved_tensors, ctx.delta_softplus), None


def _refuse_to_differentiate(ctx: Any, *_: Tensor) -> None:
    raise NotImplementedError(
        "the C++ selective scan differentiates once; for higher derivatives use backend='reference'"
    )


# mamba-ssm's CUDA kernel


def _scan_mamba_ssm(given: Arguments) -> tuple[Tensor, Tensor]:
    states, delta_bias = given.A.shape[1], given.delta_bias
    if states > MAMBA_MOST_STATES:
        raise ValueError(
            f"A: mamba-ssm's kernel takes at most {MAMBA_MOST_STATES} states, found "
            f"{states}; use backend='triton'"
        )
    if given.initial_state is not None:
        raise ValueError("initial_state: mamba-ssm's kernel takes none; use backend='triton'")
    y, last = _prepare_mamba_ssm()(
        given.u,
        given.delta,
        given.A,
        _interleaved(given.B),
        _interleaved(given.C),
        D=given.D,
        delta_bias=None if delta_bias is None else delta_bias.contiguous(),
        delta_softplus=given.delta_softplus,
        return_last_state=True,
    )
    return y, _LastOfMamba.apply(last)


class _LastOfMamba(torch.autograd.Function):
    """The last state, whose gradient mamba-ssm's kernel would ignore."""

    @staticmethod
    def forward(ctx: Any, last: Tensor) -> Tensor:
        return last.view_as(last)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        raise NotImplementedError(
            "mamba-ssm's kernel does not differentiate the last state; use backend='triton'"
        )


def _interleaved(x: Tensor) -> Tensor:
    """Complex (b, n, l) to real (b, n, 2 l), real and imaginary parts in turn; others unchanged."""
    if x.ndim == 2 or not x.is_complex():
        return x
    return torch.view_as_real(x.resolve_conj()).flatten(-2)


def _prepare_mamba_ssm() -> Callable[..., Tensor]:
    try:
        import selective_scan_cuda  # noqa: F401 - the kernel, which mamba-ssm may come without
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError as error:
        raise UnavailableError(
            f"mamba-ssm is not installed with its CUDA kernel ({error}): {MAMBA_INSTALL}"
        ) from None
    return selective_scan_fn


SCANS: dict[str, Scan] = {
    "triton": partial(_scan_around, _loop_in_triton),
    "mamba_ssm": _scan_mamba_ssm,
    "cpp": _scan_cpp,
    "reference": partial(_scan_around, _loop_in_python),
}
PREPARE: dict[str, Callable[[], object]] = {
    "triton": _prepare_triton,
    "mamba_ssm": _prepare_mamba_ssm,
    "cpp": _prepare_cpp,
    "reference": lambda: None,
}
READY: set[str] = set()
