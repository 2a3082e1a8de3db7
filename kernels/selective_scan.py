"""The selective scan: a bank of diagonal linear recurrences whose steps follow the input.

Axes: b sequences, d channels, l positions, n states of a channel. For every channel

    x_t = exp(delta_t A) x_{t-1} + delta_t B_t u_t,    y_t = C_t . x_t + D u_t

with x_0 = 0 before the first position; for complex A, y_t = 2 Re(C_t . x_t) + D u_t. This is S6,
Algorithm 2 of Mamba (Gu and Dao, arXiv 2312.00752), with its simplified discretisation of B, and
with constant B and C the diagonal S4. Three implementations: the CUDA kernel of mamba-ssm, the C++
in `csrc` on a CPU, and the loop over positions below.
"""

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float, Inexact
from torch import Tensor
from torch.nn.functional import pad, silu, softplus

from harness.errors import UnavailableError
from kernels.csrc.build import load_operators

BACKENDS = ("auto", "mamba_ssm", "cpp", "reference")
MAMBA_INSTALL = "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm"
MAMBA_MOST_STATES = 256
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
# The C++ takes rows of states whose length is a multiple of this: its widest vector.
ROW_MULTIPLE = 16


def selective_scan(
    u: Float[Tensor, "b d l"],
    delta: Float[Tensor, "b d l"],
    A: Inexact[Tensor, "d n"],
    B: Inexact[Tensor, "d n"] | Inexact[Tensor, "b n l"],
    C: Inexact[Tensor, "d n"] | Inexact[Tensor, "b n l"],
    D: Float[Tensor, " d"] | None = None,
    z: Float[Tensor, "b d l"] | None = None,
    delta_bias: Float[Tensor, " d"] | None = None,
    delta_softplus: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "b d l"]:
    """Scan every channel, with the meaning of mamba-ssm's `selective_scan_fn`.

    u and all real arguments are float32, or all float64; A, B and C are real, or all complex of
    the same precision. B and C are constant (d, n) or follow the input (b, n, l). The step is
    delta + delta_bias, through softplus if delta_softplus; z gates the output, y silu(z).
    `backend` as in `choose_backend`. The backends 'cpp' and 'mamba_ssm' differentiate once.
    Raises: ValueError, naming the argument; and what `choose_backend` raises.
    """
    _check_arguments(u, delta, A, B, C, D, z, delta_bias)
    chosen = choose_backend(u.device.type, backend, u.dtype)
    if chosen == "mamba_ssm":
        return _scan_mamba_ssm(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    scan = _scan_cpp if chosen == "cpp" else _scan_reference
    y = scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
    return y if z is None else y * silu(z)


def choose_backend(device: str, backend: str = "auto", dtype: torch.dtype = torch.float32) -> str:
    """The implementation that `selective_scan` uses on a type of device: 'cpu', 'cuda', ...

    'auto' takes mamba-ssm's kernel where the tensors are CUDA's and float32 and it is installed,
    the C++ on a CPU (compiled on first use), and the reference otherwise; without a compiler it
    warns and takes the reference. Before torch.compile traces a scan, its backend has to be chosen
    once in the process.
    Raises: UnavailableError, when a backend asked for by name is missing, with the command that
    installs it; ValueError, when it cannot compute on such tensors; CompilationError.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, found {backend!r}")
    fits = {
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


def _check_arguments(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    if u.ndim != 3 or 0 in u.shape:
        raise ValueError(f"u: expected shape (b, d, l), none of them 0, found {tuple(u.shape)}")
    if u.dtype not in COMPLEX:
        raise ValueError(f"u: expected float32 or float64, found {u.dtype}")
    if A.ndim != 2 or 0 in A.shape:
        raise ValueError(f"A: expected shape (d, n), none of them 0, found {tuple(A.shape)}")
    batch, channels, length = u.shape
    states = A.shape[1]
    like_u = {"(b, d, l)": (batch, channels, length)}
    constant = {"(d, n)": (channels, states)}
    either = {**constant, "(b, n, l)": (batch, states, length)}
    vector = {"(d,)": (channels,)}
    real, complex_or_real = (u.dtype,), (u.dtype, COMPLEX[u.dtype])
    for name, tensor, shapes, dtypes in (
        ("delta", delta, like_u, real),
        ("A", A, constant, complex_or_real),
        ("B", B, either, (A.dtype,)),
        ("C", C, either, (A.dtype,)),
        ("D", D, vector, real),
        ("z", z, like_u, real),
        ("delta_bias", delta_bias, vector, real),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) not in shapes.values():
            expected = " or ".join(f"{letters} = {sizes}" for letters, sizes in shapes.items())
            raise ValueError(f"{name}: expected shape {expected}, found {tuple(tensor.shape)}")
        if tensor.dtype not in dtypes:
            expected = " or ".join(str(dtype) for dtype in dtypes)
            raise ValueError(f"{name}: expected {expected}, found {tensor.dtype}")
        if tensor.device != u.device:
            raise ValueError(f"{name}: expected on {u.device}, as u, found on {tensor.device}")


# The reference: one position after another, each discretised when its turn comes


def _scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = softplus(delta)
    batch, channels, length = u.shape
    x = A.new_zeros((batch, channels, A.shape[1]))
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
    if A.is_complex():
        y = 2 * y.real
    return y if D is None else y + D[:, None] * u


# The C++ in csrc


def _scan_cpp(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    zeros = u.new_zeros(u.shape[1])
    return torch.ops.selective_scan.scan(
        u,
        delta,
        _state_rows(A),
        _state_rows(B),
        _state_rows(C.conj()),
        zeros if D is None else D,
        zeros if delta_bias is None else delta_bias,
        delta_softplus,
    )


def _state_rows(x: Tensor) -> Tensor:
    """(d, n) or (b, n, l) to (d, p, m) or (b, l, p, m): p parts of m states, zeros after n."""
    if x.ndim == 3:
        x = x.transpose(1, 2)
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj()).transpose(-1, -2)
    else:
        x = x.unsqueeze(-2)
    return pad(x, (0, -x.shape[-1] % ROW_MULTIPLE))


def _prepare_cpp() -> None:
    """Load the operators; tell PyTorch the shapes of their outputs, and their derivative."""
    load_operators()
    torch.library.register_fake("selective_scan::scan", _scan_shape)
    torch.library.register_fake("selective_scan::scan_backward", _scan_backward_shapes)
    torch.library.register_autograd(
        "selective_scan::scan", _differentiate, setup_context=_save_inputs
    )
    torch.library.register_autograd("selective_scan::scan_backward", _refuse_to_differentiate)


def _scan_shape(u: Tensor, *_: Tensor | bool) -> Tensor:
    return torch.empty_like(u)


def _scan_backward_shapes(
    dy: Tensor, u: Tensor, delta: Tensor, *others: Tensor | bool
) -> tuple[Tensor, ...]:
    del dy
    *tensors, _ = others
    shapes = [tensor.new_empty(tensor.shape) for tensor in tensors]
    return torch.empty_like(u), torch.empty_like(delta), *shapes


def _save_inputs(ctx, inputs: tuple, output: Tensor) -> None:
    del output
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    return *torch.ops.selective_scan.scan_backward(dy, *saved, ctx.delta_softplus), None


def _refuse_to_differentiate(ctx, *_: Tensor) -> None:
    raise NotImplementedError(
        "the C++ selective scan differentiates once; for higher derivatives use backend='reference'"
    )


# mamba-ssm's CUDA kernel


def _scan_mamba_ssm(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    if A.shape[1] > MAMBA_MOST_STATES:
        raise ValueError(
            f"A: mamba-ssm's kernel takes at most {MAMBA_MOST_STATES} states, found "
            f"{A.shape[1]}; use backend='reference'"
        )
    return _prepare_mamba_ssm()(
        u,
        delta,
        A,
        _interleaved(B),
        _interleaved(C),
        D=D,
        z=z,
        delta_bias=None if delta_bias is None else delta_bias.contiguous(),
        delta_softplus=delta_softplus,
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


PREPARE: dict[str, Callable[[], object]] = {
    "mamba_ssm": _prepare_mamba_ssm,
    "cpp": _prepare_cpp,
    "reference": lambda: None,
}
READY: set[str] = set()
