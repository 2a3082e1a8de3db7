"""The layers of the paper's sequence models: Transformer, RNN, S4, Mamba's SSM, S5.

Every layer maps (b, l, d) to (b, l, d) causally. Letters: b sequences, l positions, d width, n
states a channel, r rank of Mamba's step. Parameters are drawn from an explicit generator, and
dropout draws from one too; no layer reads the global one.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kernels.s4_convolution import causal_convolution, s4_kernel
from kernels.selective_scan import selective_scan

STEP_RANGE = (1e-3, 1e-1)
SMALLEST_STEP = 1e-4


class Dropout(nn.Module):
    """Dropout whose draws come from a generator of the caller's, on the device of its inputs."""

    def __init__(self, rate: float, generator: torch.Generator):
        """rate: the probability of a zero."""
        super().__init__()
        self.rate, self.generator = rate, generator

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Each value 0 with probability `rate`, else over 1 - rate; x itself in evaluation."""
        if self.rate == 0 or not self.training:
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.rate, generator=self.generator)
        return x * kept / (1 - self.rate)


def linear(inputs: int, outputs: int, generator: torch.Generator, bias: bool = True) -> nn.Linear:
    """PyTorch's linear layer and its default initialisation, uniform in +-1/sqrt(inputs)."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    bound = 1 / math.sqrt(inputs)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


class PositionalEncoding(nn.Module):
    """Sine and cosine of the position at geometric frequencies (Vaswani et al., 2017), added.

    The released `SinusoidalPositionalEncoding` (commit 18a0a8d).
    """

    def __init__(self, width: int, length: int, dropout: Dropout):
        """length: the longest input, L."""
        super().__init__()
        positions = torch.arange(length)[:, None]
        angles = positions * torch.exp(-math.log(1e4) * torch.arange(0, width, 2) / width)
        table = torch.stack([torch.sin(angles), torch.cos(angles)], dim=-1)
        self.register_buffer("table", table.reshape(length, -1)[:, :width], persistent=False)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Input plus encoding, then dropout."""
        return self.dropout(x + self.table[: x.shape[1]])


class TransformerLayer(nn.Module):
    """A post-norm encoder layer with a causal mask: attention, then a ReLU feed-forward layer.

    The released class of this name (commit 18a0a8d) wraps PyTorch's `TransformerEncoderLayer`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        feed_forward: int,
        dropout: Dropout,
        generator: torch.Generator,
    ):
        """Width is a multiple of heads."""
        super().__init__()
        self.heads = heads
        self.project = linear(width, 3 * width, generator)
        self.attended = linear(width, width, generator)
        # As PyTorch's attention: Xavier for the three projections together, biases zero.
        nn.init.xavier_uniform_(self.project.weight, generator=generator)
        nn.init.zeros_(self.project.bias)
        nn.init.zeros_(self.attended.bias)
        self.expand = linear(width, feed_forward, generator)
        self.contract = linear(feed_forward, width, generator)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Each position attends to itself and those before it."""
        x = self.norms[0](x + self.dropout(self.attention(x)))
        hidden = self.dropout(torch.relu(self.expand(x)))
        return self.norms[1](x + self.dropout(self.contract(hidden)))

    def attention(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Scaled dot-product attention, dropout on its weights."""
        length = x.shape[1]
        queries, keys, values = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.project(x).chunk(3, dim=2)
        )
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        weights = torch.softmax(scores.masked_fill(future, -math.inf), dim=-1)
        mixed = self.dropout(weights) @ values
        return self.attended(mixed.transpose(1, 2).flatten(2))


class RNN(nn.Module):
    """h_t = tanh(W x_t + b + U h_{t-1} + c), h_0 = 0; the output is h.

    The released class of this name (commit 18a0a8d).
    """

    def __init__(self, width: int, generator: torch.Generator):
        """All parameters uniform in +-1/sqrt(d), as in PyTorch."""
        super().__init__()
        self.rnn = nn.RNN(width, width, batch_first=True, device="meta").to_empty(device="cpu")
        bound = 1 / math.sqrt(width)
        for parameter in self.rnn.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """The hidden state at every position."""
        return self.rnn(x)[0]


def log_uniform_steps(width: int, generator: torch.Generator) -> Float[Tensor, " d"]:
    """Initial steps Delta, log-uniform in [0.001, 0.1], at least 1e-4."""
    low, high = map(math.log, STEP_RANGE)
    draws = torch.rand(width, generator=generator) * (high - low) + low
    return draws.exp().clamp(min=SMALLEST_STEP)


class KeepsComplex(nn.Module):
    """A module whose complex parameters survive conversion: `to`, `half`, `double`, `cuda`.

    PyTorch's own conversion to a real dtype drops imaginary parts. Here both parts are converted;
    below float32, where PyTorch computes with no complex numbers, they stay in it.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        return super()._apply(lambda tensor: _convert(fn, tensor), recurse)


def _convert(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    if not tensor.is_complex():
        return fn(tensor)
    parts = torch.view_as_real(tensor)
    converted = fn(parts)
    if converted.dtype.itemsize < torch.float32.itemsize:
        converted = parts.to(converted.device, torch.float32)
    return torch.view_as_complex(converted)


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision tensors in float32, others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class S4Recurrence(KeepsComplex):
    """S4 with a diagonal A: one complex linear system of n states for each channel.

    x_l = exp(Delta A) x_{l-1} + Delta B u_l, y_l = 2 Re(C x_l) + D u_l, A = -exp(a) + i b. It is
    time-invariant, so y is a causal convolution of u: `mode` "convolution", or "scan" step by step,
    as the paper computed it. `softplus_step`: the released code hands exp(log Delta) to a scan that
    applies softplus again, so that its steps are 0.69 to 0.74; false gives Delta itself. The
    released class of this name (commit 18a0a8d), which only scans.
    """

    def __init__(
        self,
        width: int,
        states: int,
        mode: Literal["convolution", "scan"],
        softplus_step: bool,
        backend: str,
        generator: torch.Generator,
    ):
        """S4D-Lin: a = log(1/2), b = pi k for k = 1..n; B and C complex Xavier-normal; D ones."""
        super().__init__()
        self.mode, self.softplus_step, self.backend = mode, softplus_step, backend
        self.log_real = nn.Parameter(torch.full((width, states), math.log(0.5)))
        imaginary = math.pi * torch.arange(1.0, states + 1)
        self.imaginary = nn.Parameter(imaginary.repeat(width, 1))
        self.B = nn.Parameter(_complex_xavier(width, states, generator))
        self.C = nn.Parameter(_complex_xavier(width, states, generator))
        self.D = nn.Parameter(torch.ones(width))
        self.log_step = nn.Parameter(log_uniform_steps(width, generator).log())

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """The output at every position, in x's dtype; computed in float32 at least."""
        with torch.autocast(x.device.type, enabled=False):
            u = at_least_float32(x).transpose(1, 2)
            parts = map(at_least_float32, (self.log_real, self.imaginary, self.D, self.log_step))
            log_real, imaginary, D, log_step = parts
            A, step = torch.complex(-log_real.exp(), imaginary), log_step.exp()
            compute = self.convolve if self.mode == "convolution" else self.scan
            y = compute(u, step, A, D)
        return y.transpose(1, 2).to(x.dtype)

    def convolve(self, u: Tensor, step: Tensor, A: Tensor, D: Tensor) -> Float[Tensor, "b d l"]:
        """The system as a causal convolution of u (b, d, l)."""
        if self.softplus_step:
            step = nn.functional.softplus(step)
        kernel = s4_kernel(step, A, self.B * self.C, u.shape[2])
        return causal_convolution(u, kernel) + D[:, None] * u

    def scan(self, u: Tensor, step: Tensor, A: Tensor, D: Tensor) -> Float[Tensor, "b d l"]:
        """The same, position by position."""
        delta = step[None, :, None].expand_as(u)
        options = {"delta_softplus": self.softplus_step, "backend": self.backend}
        return selective_scan(u, delta, A, self.B, self.C, D, **options)


def _complex_xavier(width: int, states: int, generator: torch.Generator) -> Tensor:
    # The variance is that of the complex number: half of it for each part.
    std = math.sqrt(2 / (width + states)) / math.sqrt(2)
    real, imaginary = torch.randn(2, width, states, generator=generator) * std
    return torch.complex(real, imaginary)


class MambaRecurrence(nn.Module):
    """Mamba's selective state-space model alone: no convolution, no gate, no expansion.

    (delta, B_t, C_t) = W x_t; Delta_t = softplus(V delta + c); A = -exp(log A);
    h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t x_t; y_t = C_t h_t + D x_t (Gu and Dao, 2023). The
    released class of this name (commit 18a0a8d).
    """

    def __init__(self, width: int, states: int, backend: str, generator: torch.Generator):
        """A = -k for k = 1..n in every channel, D ones, V uniform in +-r^(-1/2)."""
        super().__init__()
        rank = -(-width // 16)
        self.sizes, self.backend = (rank, states, states), backend
        self.select = linear(width, rank + 2 * states, generator, bias=False)
        self.step = linear(rank, width, generator)
        steps = log_uniform_steps(width, generator)
        # The inverse of softplus: log(exp(s) - 1).
        self.step.bias.data = steps + torch.log(-torch.expm1(-steps))
        self.log_A = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(width, 1))
        self.D = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """The output at every position."""
        delta, B, C = (part.transpose(1, 2) for part in self.select(x).split(self.sizes, dim=2))
        y = selective_scan(
            x.transpose(1, 2),
            self.step.weight @ delta,
            -at_least_float32(self.log_A).exp(),
            B,
            C,
            at_least_float32(self.D),
            delta_bias=at_least_float32(self.step.bias),
            delta_softplus=True,
            backend=self.backend,
        )
        return y.transpose(1, 2)


class S5Layer(KeepsComplex):
    """`S5(width, states)` of s5-pytorch, whose complex parameters survive conversion."""

    def __init__(self, width: int, states: int, generator: torch.Generator):
        """Parameters drawn from the generator."""
        from s5 import S5

        super().__init__()
        # Its constructor draws from the global generator, which is put back as it was.
        seed = int(torch.randint(2**62, (1,), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.seq = S5(width, states).seq

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """The output at every position; its scan does not compile under autocast."""
        from s5 import S5

        # No subclass, which would be local to a function where s5-pytorch is optional, so that
        # no model of it could be pickled.
        with torch.autocast(x.device.type, enabled=False):
            return S5.forward(self, at_least_float32(x)).to(x.dtype)


def make_layer(
    name: str,
    width: int,
    states: int,
    *,
    backend: str,
    s4_mode: Literal["convolution", "scan"],
    s4_softplus_step: bool,
    attention: tuple[int, int, Dropout] | None,
    generator: torch.Generator,
) -> nn.Module:
    """A layer by its name in configs, its parameters drawn from the generator.

    attention: heads, feed-forward width and dropout of the Transformer's. Raises: ValueError.
    """
    match name:
        case "RNN":
            return RNN(width, generator)
        case "Transformer" if attention:
            return TransformerLayer(width, *attention, generator)
        case "S4":
            return S4Recurrence(width, states, s4_mode, s4_softplus_step, backend, generator)
        case "Mamba":
            return MambaRecurrence(width, states, backend, generator)
        case "S5":
            return S5Layer(width, states, generator)
    raise ValueError(f"no such layer: {name}")
