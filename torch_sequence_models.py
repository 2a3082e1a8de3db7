"""The paper's deep sequence models: blocks around a layer, between an input and an output layer.

Two forms: that of the toy task (section 5.1), pooled over positions, and that of the word problem
(section 5.2), with an output at every position. Letters: b sequences, l positions, d width (the
paper's hidden dimension), n states a channel, v outputs.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torch_layers import Dropout, KeepsComplex, PositionalEncoding, linear


class ResidualBlock(nn.Module):
    """A block of the toy models: x + Linear(act(layer(x))), or x + act(Linear(layer(x)))."""

    def __init__(self, layer: nn.Module, mix: nn.Linear, nonlinear: bool, mix_first: bool):
        """nonlinear: act is GELU, else the identity; mix_first: the second order."""
        super().__init__()
        self.layer, self.mix, self.mix_first = layer, mix, mix_first
        self.activation = nn.GELU() if nonlinear else nn.Identity()

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """The block's output."""
        y = self.layer(x)
        y = self.activation(self.mix(y)) if self.mix_first else self.mix(self.activation(y))
        return x + y


class GatedBlock(nn.Module):
    """A block of the A5 models: LayerNorm(x + Dropout(GLU(Linear(Dropout(layer(x))))))."""

    def __init__(self, layer: nn.Module, mix: nn.Linear, dropout: Dropout):
        """mix: from d to 2 d."""
        super().__init__()
        self.layer, self.mix, self.dropout = layer, mix, dropout
        self.norm = nn.LayerNorm(mix.in_features)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """The block's output."""
        gated = nn.functional.glu(self.mix(self.dropout(self.layer(x))), dim=-1)
        return self.norm(x + self.dropout(gated))


class SequenceModel(KeepsComplex):
    """Input layer, blocks, output layer; `pool`: the mean over positions before the output.

    The released class of this name (commit 18a0a8d), whose blocks are spelled out in its forward.
    """

    def __init__(
        self, embed: nn.Module, blocks: Sequence[nn.Module], output: nn.Linear, pool: bool
    ):
        """embed: to (b, l, d) from whatever the inputs are."""
        super().__init__()
        self.embed, self.blocks = embed, nn.ModuleList(blocks)
        self.output, self.pool = output, pool

    def forward(self, x: Tensor) -> Tensor:
        """(b, v) with pooling, else (b, l, v)."""
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.output(x.mean(dim=1) if self.pool else x)


def toy_model(
    make_layer: Callable[[], nn.Module],
    *,
    input_dim: int,
    width: int,
    depth: int,
    nonlinear: bool,
    mix_first: bool,
    generator: torch.Generator,
) -> SequenceModel:
    """A linear input layer, `depth` residual blocks, the mean over positions, a linear output.

    make_layer: draws the layer of the next block. Maps (b, l, input_dim) to (b, 1). Mirrors the
    released toy model: with `mix_first` that of commit 18a0a8d, without that of 5d4ce7e, which
    made the released curves.
    """
    blocks = [
        ResidualBlock(make_layer(), linear(width, width, generator), nonlinear, mix_first)
        for _ in range(depth)
    ]
    embed = linear(input_dim, width, generator)
    return SequenceModel(embed, blocks, linear(width, 1, generator), pool=True)


def a5_model(
    make_layer: Callable[[], nn.Module],
    *,
    vocabulary: int,
    width: int,
    depth: int,
    positions: int | None,
    dropout: Dropout,
    generator: torch.Generator,
) -> SequenceModel:
    """An embedding, `depth` gated blocks, a linear output: logits at every position.

    positions: the longest input where a positional encoding is added (the Transformer's), else
    None. Maps integers (b, l) to (b, l, vocabulary). Mirrors the released model of commit 18a0a8d.
    """
    embed = nn.utils.skip_init(nn.Embedding, vocabulary, width)
    nn.init.normal_(embed.weight, generator=generator)
    if positions is not None:
        embed = nn.Sequential(embed, PositionalEncoding(width, positions, dropout))
    blocks = [
        GatedBlock(make_layer(), linear(width, 2 * width, generator), dropout) for _ in range(depth)
    ]
    return SequenceModel(embed, blocks, linear(width, vocabulary, generator), pool=False)
