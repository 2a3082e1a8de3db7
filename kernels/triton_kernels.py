"""The selective scan in Triton: the two kernels that `triton_scan.py` launches.

A program scans a tile of channels and states of one sequence, position after position, the states
in registers. `scan_kernel` keeps the state before every K-th position. `gradient_kernel` recomputes
the K states from there on into a scratch of its own, small enough for the GPU's L2 cache, and walks
back over them. What several programs have a part of, each writes its part of: nothing is added in
an order that could change. Arrays are contiguous: u, delta, y (b, l, d); A (d, p, n); B and C
(d, p, n), or (b, l, p, n) if they follow the input; states (b, d, p, n); kept (b, l / K, d, p, n).
A number is a tuple of its p parts: its real part or, if p = 2, that and the imaginary part.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _place(d, P: tl.constexpr, N: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr):
    """A program's sequence, channels and states, and its offsets within A and the states."""
    sequence = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    cols = tl.program_id(2) * STATES + tl.arange(0, STATES)
    tile = rows[:, None] * P * N + cols[None, :]
    return sequence, rows, cols, tile, sequence * d * P * N + tile


@triton.jit
def _load(pointer, distance, P: tl.constexpr):
    if P == 1:
        return (tl.load(pointer),)
    else:
        return tl.load(pointer), tl.load(pointer + distance)


@triton.jit
def _store(pointer, distance, x, P: tl.constexpr):
    tl.store(pointer, x[0])
    if P == 2:
        tl.store(pointer + distance, x[1])


@triton.jit
def _zeros(like, P: tl.constexpr):
    if P == 1:
        return (tl.zeros_like(like[0]),)
    else:
        return tl.zeros_like(like[0]), tl.zeros_like(like[1])


@triton.jit
def _product(a, x, P: tl.constexpr):
    if P == 1:
        return (a[0] * x[0],)
    else:
        return a[0] * x[0] - a[1] * x[1], a[0] * x[1] + a[1] * x[0]


@triton.jit
def _product_conj(a, x, P: tl.constexpr):
    """The product of a and the conjugate of x."""
    if P == 1:
        return (a[0] * x[0],)
    else:
        return a[0] * x[0] + a[1] * x[1], a[1] * x[0] - a[0] * x[1]


@triton.jit
def _add_scaled(s, x, to, P: tl.constexpr):
    """The sum s x + to, with a real s."""
    if P == 1:
        return (s * x[0] + to[0],)
    else:
        return s * x[0] + to[0], s * x[1] + to[1]


@triton.jit
def _dot(a, x, P: tl.constexpr):
    """The sum over states of Re(conj(a) x), for each channel."""
    if P == 1:
        return tl.sum(a[0] * x[0], axis=1)
    else:
        return tl.sum(a[0] * x[0] + a[1] * x[1], axis=1)


@triton.jit
def _decay(delta, a, P: tl.constexpr):
    """The exponential of delta a."""
    size = tl.exp2((delta * LOG2_E)[:, None] * a[0])
    if P == 1:
        return (size,)
    else:
        angle = delta[:, None] * a[1]
        return size * tl.cos(angle), size * tl.sin(angle)


@triton.jit
def _rows(pointer, t, rows, cols, P: tl.constexpr, N: tl.constexpr, FOLLOWS: tl.constexpr):
    """B or C at position t: (1, states) if it follows the input, else (channels, states)."""
    if FOLLOWS:
        start = pointer + t * P * N + cols[None, :]
    else:
        start = pointer + rows[:, None] * P * N + cols[None, :]
    return _load(start, N, P)


@triton.jit
def _add_rows(pointer, t, cols, s, x, to, P: tl.constexpr, N: tl.constexpr, FOLLOWS: tl.constexpr):
    """Add s x to the sum over positions; if it follows the input, store the sum over channels."""
    if FOLLOWS:
        start = pointer + t * P * N + cols
        tl.store(start, tl.sum(s * x[0], axis=0))
        if P == 2:
            tl.store(start + N, tl.sum(s * x[1], axis=0))
        return to
    else:
        return _add_scaled(s, x, to, P)


@triton.jit
def _step(
    u, delta, B, t, d, rows, cols, a, x,
    P: tl.constexpr, N: tl.constexpr, B_FOLLOWS: tl.constexpr,
):  # fmt: skip
    """The state after position t, from the state before it."""
    step = tl.load(delta + t * d + rows)
    entering = (step * tl.load(u + t * d + rows))[:, None]
    moved = _product(_decay(step, a, P), x, P)
    return _add_scaled(entering, _rows(B, t, rows, cols, P, N, B_FOLLOWS), moved, P)


@triton.jit(do_not_specialize=["length", "interval"])
def scan_kernel(
    u, delta, A, B, C, initial, y, last, kept, length, d, interval,
    P: tl.constexpr, N: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
    B_FOLLOWS: tl.constexpr, C_FOLLOWS: tl.constexpr,
) -> None:  # fmt: skip
    """Write y, a part of it for each tile of states, the last states, and those kept."""
    sequence, rows, cols, tile, states = _place(d, P, N, CHANNELS, STATES)
    u += sequence * length * d
    delta += sequence * length * d
    if B_FOLLOWS:
        B += sequence * length * P * N
    if C_FOLLOWS:
        C += sequence * length * P * N
    y += (tl.program_id(2) * tl.num_programs(0) + sequence) * length * d
    kept += sequence * tl.cdiv(length, interval) * d * P * N

    a = _load(A + tile, N, P)
    x = _load(initial + states, N, P)
    start = 0
    # No range: Triton's interpreter does not take its bounds from arguments with NumPy 2.4.
    while start < length:
        _store(kept + tile, N, x, P)
        kept += d * P * N
        t = start
        start = tl.minimum(start + interval, length)
        while t < start:
            x = _step(u, delta, B, t, d, rows, cols, a, x, P, N, B_FOLLOWS)
            tl.store(y + t * d + rows, P * _dot(_rows(C, t, rows, cols, P, N, C_FOLLOWS), x, P))
            t += 1
    _store(last + states, N, x, P)


@triton.jit
def _step_back(
    dy, u, delta, B, C, du, d_delta, dB, dC, before,
    t, d, rows, cols, a, x, later, sum_A, sum_B, sum_C,
    P: tl.constexpr, N: tl.constexpr, B_FOLLOWS: tl.constexpr, C_FOLLOWS: tl.constexpr,
):  # fmt: skip
    """From the state x after position t and its gradient by way of t + 1 to those before t."""
    # All that is loaded at once: a reduction's barriers would keep later loads waiting for it.
    step = tl.load(delta + t * d + rows)
    value = tl.load(u + t * d + rows)
    slope = P * tl.load(dy + t * d + rows)[:, None]
    from_B = _rows(B, t, rows, cols, P, N, B_FOLLOWS)
    to_C = _rows(C, t, rows, cols, P, N, C_FOLLOWS)
    x_before = _load(before, N, P)
    dx = _add_scaled(slope, to_C, later, P)
    sum_C = _add_rows(dC, t, cols, slope, x, sum_C, P, N, C_FOLLOWS)
    entering = (step * value)[:, None]
    sum_B = _add_rows(dB, t, cols, entering, dx, sum_B, P, N, B_FOLLOWS)
    along_B = _dot(from_B, dx, P)
    later = _product_conj(dx, _decay(step, a, P), P)
    d_exponent = _product_conj(later, x_before, P)
    sum_A = _add_scaled(step[:, None], d_exponent, sum_A, P)
    tl.store(du + t * d + rows, step * along_B)
    tl.store(d_delta + t * d + rows, value * along_B + _dot(a, d_exponent, P))
    return x_before, later, sum_A, sum_B, sum_C


@triton.jit(do_not_specialize=["length", "interval"])
def gradient_kernel(
    dy, d_last, u, delta, A, B, C, kept, scratch, du, d_delta, dA, dB, dC, d_initial,
    length, d, interval,
    P: tl.constexpr, N: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr,
    B_FOLLOWS: tl.constexpr, C_FOLLOWS: tl.constexpr,
) -> None:  # fmt: skip
    """Write the gradients from those of y and of the last states.

    du and d_delta have a part for each tile of states, dA for each sequence, and so have dB and dC,
    or, if they follow the input, for each tile of channels.
    """
    sequence, rows, cols, tile, states = _place(d, P, N, CHANNELS, STATES)
    u += sequence * length * d
    delta += sequence * length * d
    dy += sequence * length * d
    part = (tl.program_id(2) * tl.num_programs(0) + sequence) * length * d
    du += part
    d_delta += part
    part = (tl.program_id(1) * tl.num_programs(0) + sequence) * length * P * N
    if B_FOLLOWS:
        B += sequence * length * P * N
        dB += part
    if C_FOLLOWS:
        C += sequence * length * P * N
        dC += part
    scratch += sequence * interval * d * P * N
    intervals = tl.cdiv(length, interval)
    kept += (sequence + 1) * intervals * d * P * N

    a = _load(A + tile, N, P)
    later = _load(d_last + states, N, P)  # the gradient of x_t by way of x_{t+1}
    sum_A = _zeros(a, P)
    sum_B = _zeros(a, P)
    sum_C = _zeros(a, P)
    end = length
    start = (intervals - 1) * interval
    while start >= 0:
        kept -= d * P * N
        x = _load(kept + tile, N, P)
        t = start
        while t < end:
            _store(scratch + (t - start) * d * P * N + tile, N, x, P)
            x = _step(u, delta, B, t, d, rows, cols, a, x, P, N, B_FOLLOWS)
            t += 1
        tl.debug_barrier()  # whichever thread reads a number of the scratch, it has been written
        while t > start:
            t -= 1
            x, later, sum_A, sum_B, sum_C = _step_back(
                dy, u, delta, B, C, du, d_delta, dB, dC, scratch + (t - start) * d * P * N + tile,
                t, d, rows, cols, a, x, later, sum_A, sum_B, sum_C,
                P, N, B_FOLLOWS, C_FOLLOWS,
            )  # fmt: skip
        end = start
        start -= interval
    _store(d_initial + states, N, later, P)
    _store(dA + states, N, sum_A, P)
    if not B_FOLLOWS:
        _store(dB + states, N, sum_B, P)
    if not C_FOLLOWS:
        _store(dC + states, N, sum_C, P)
