"""The selective scan on a GPU in Triton, which PyTorch's CUDA wheels bring along.

The kernels in `triton_kernels.py` as operators of PyTorch, with their derivative. Memory is that of
the inputs and of b d n sqrt(l) numbers, never of b d l n. Sums over what several programs hold are
made in a fixed order: the same arguments give the same bits. Axes: b sequences, l positions,
d channels, n states, in p = 1 part (real) or p = 2 (real parts, then imaginary).
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from kernels.triton_kernels import gradient_kernel, scan_kernel

# A program is one warp, so that none of its sums waits at a barrier, and holds as many numbers as
# its registers do. On an H100 the backward pass is 4 times faster so than on 8 warps, half of all
# that fit being resident, against an eighth here.
CHANNELS = 8
MOST_STATES = 128
# Without it the compiler may spill to local memory to have more warps resident.
REGISTERS = {"forward": None, "backward": 255}
LARGEST_OFFSET = 2**31


def scan(
    u: Float[Tensor, "b d l"],
    delta: Float[Tensor, "b d l"],
    A: Float[Tensor, "d p n"],
    B: Float[Tensor, "d p n"] | Float[Tensor, "b l p n"],
    C: Float[Tensor, "d p n"] | Float[Tensor, "b l p n"],
    initial: Float[Tensor, "b d p n"],
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d p n"]]:
    """The sums Re(C . x_t), twice that if p = 2, and the last state; C conjugated by the caller.

    n is a multiple of what `state_multiple` says. All float32, or all float64. Once differentiable.
    """
    channels, length = u.shape[1:]
    missing = -channels % CHANNELS
    u, delta = (_pad_channels(x.transpose(1, 2), 2, missing) for x in (u, delta))
    B, C = (x if x.ndim == 4 else _pad_channels(x, 0, missing) for x in (B, C))
    A, initial = _pad_channels(A, 0, missing), _pad_channels(initial, 1, missing)
    # Without gradients the initial state alone is kept.
    interval = kept_every(length) if torch.is_grad_enabled() else length
    check_offsets(length, interval if torch.is_grad_enabled() else 1, A)
    y, last, _ = torch.ops.triton_selective_scan.scan(u, delta, A, B, C, initial, interval)
    return y[..., :channels].transpose(1, 2), last[:, :channels]


def kept_every(length: int) -> int:
    """The positions from one kept state to the next.

    Kept states and the backward pass's scratch are least together at sqrt(l); half of that takes a
    quarter more, and less time: more of the scratch stays in a GPU's cache.
    """
    return math.isqrt((length - 1) // 4) + 1


def check_offsets(length: int, interval: int, A: Tensor) -> None:
    """Refuse sizes at which an offset within a sequence overflows. Raises: ValueError."""
    width, P, N = A.shape
    if max(length * width, length * P * N, interval * width * P * N) >= LARGEST_OFFSET:
        raise ValueError(
            f"u: {width} channels of {N} states at {length} positions are more than the Triton "
            "kernels count in 32 bits; scan it in pieces, with return_last_state and initial_state"
        )


def state_multiple(states: int) -> int:
    """What the number of states has to be a multiple of, zeros after the last."""
    return min(MOST_STATES, max(16, triton.next_power_of_2(states)))


def _pad_channels(x: Tensor, axis: int, missing: int) -> Tensor:
    return pad(x, (0, 0) * (x.ndim - 1 - axis) + (0, missing)) if missing else x


def tile_states(A: Tensor) -> int:
    """States that a program scans: fewer of complex or float64 numbers, which fill registers."""
    _, P, N = A.shape
    words = P * A.element_size() // 4
    return min(state_multiple(N), max(16, MOST_STATES // words**2))


def constants(
    A: Tensor, B: Tensor, C: Tensor, direction: Literal["forward", "backward"]
) -> dict[str, int | bool | None]:
    """What a kernel is compiled for."""
    return {
        "P": A.shape[1],
        "N": A.shape[2],
        "CHANNELS": CHANNELS,
        "STATES": tile_states(A),
        "B_FOLLOWS": B.ndim == 4,
        "C_FOLLOWS": C.ndim == 4,
        "num_warps": 1,
        "maxnreg": REGISTERS[direction],
    }


# The operators. Here u, delta and y are (b, l, d), and the channels fill tiles.


def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor, interval: int
) -> tuple[Tensor, Tensor, Tensor]:
    u, delta, A, B, C, initial = (x.contiguous() for x in (u, delta, A, B, C, initial))
    parts = u.new_empty(_grid(u, A)[2], *u.shape)
    last, kept = torch.empty_like(initial), _kept(u, A, interval)
    tensors = [u, delta, A, B, C, initial, parts, last, kept]
    with torch.cuda.device_of(u):
        scan_kernel[_grid(u, A)](*tensors, *u.shape[1:], interval, **constants(A, B, C, "forward"))
    return _total(parts), last, kept


def _scan_backward(
    dy: Tensor,
    d_last: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    kept: Tensor,
    interval: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dy, d_last, u, delta, A, B, C = (x.contiguous() for x in (dy, d_last, u, delta, A, B, C))
    sequences, blocks, splits = _grid(u, A)
    parts = [u.new_empty(splits, *u.shape) for _ in range(2)]
    parts.append(A.new_empty(sequences, *A.shape))
    parts += [x.new_empty(blocks if x.ndim == 4 else sequences, *x.shape) for x in (B, C)]
    scratch = A.new_empty(sequences, interval, *A.shape)
    d_initial = torch.empty_like(d_last)
    tensors = [dy, d_last, u, delta, A, B, C, kept, scratch, *parts, d_initial]
    compiled_for = constants(A, B, C, "backward")
    with torch.cuda.device_of(u):
        gradient_kernel[_grid(u, A)](*tensors, *u.shape[1:], interval, **compiled_for)
    return *map(_total, parts), d_initial


def _grid(u: Tensor, A: Tensor) -> tuple[int, int, int]:
    return len(u), u.shape[2] // CHANNELS, A.shape[2] // tile_states(A)


def _kept(u: Tensor, A: Tensor, interval: int) -> Tensor:
    return A.new_empty(len(u), -(-u.shape[1] // interval), *A.shape)


def _total(parts: Tensor) -> Tensor:
    return parts.squeeze(0) if len(parts) == 1 else parts.sum(0)


def _scan_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor, interval: int
) -> tuple[Tensor, Tensor, Tensor]:
    del delta, B, C
    y, last = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, initial))
    return y, last, _kept(u, A, interval)


def _scan_backward_shapes(dy: Tensor, d_last: Tensor, *others: Tensor | int) -> tuple[Tensor, ...]:
    del dy
    *tensors, _, _ = others
    return tuple(x.new_empty(x.shape) for x in (*tensors, d_last))


def _save_inputs(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, _, ctx.interval = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)  # there is none of the kept states, which are large


def _differentiate(ctx: Any, dy: Tensor | None, d_last: Tensor | None, _: None) -> tuple:
    saved = ctx.saved_tensors
    u, A = saved[0], saved[2]
    dy = torch.zeros_like(u) if dy is None else dy
    d_last = A.new_zeros(len(u), *A.shape) if d_last is None else d_last
    backward = torch.ops.triton_selective_scan.scan_backward
    return *backward(dy, d_last, *saved, ctx.interval), None


def _refuse_to_differentiate(ctx: Any, *_: Tensor) -> None:
    raise NotImplementedError(
        "the Triton selective scan differentiates once; for higher derivatives use "
        "backend='reference'"
    )


def _define(name: str, signature: str, function: Callable, shapes: Callable) -> None:
    name = f"triton_selective_scan::{name}"
    torch.library.define(name, signature)
    torch.library.impl(name, ("cuda", "cpu"), function)  # on a CPU Triton's interpreter
    torch.library.register_fake(name, shapes)


_define(
    "scan",
    "(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor initial, int interval) -> "
    "(Tensor, Tensor, Tensor)",
    _scan,
    _scan_shapes,
)
_define(
    "scan_backward",
    "(Tensor dy, Tensor d_last, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
    "Tensor kept, int interval) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _scan_backward,
    _scan_backward_shapes,
)
torch.library.register_autograd(
    "triton_selective_scan::scan", _differentiate, setup_context=_save_inputs
)
torch.library.register_autograd("triton_selective_scan::scan_backward", _refuse_to_differentiate)
