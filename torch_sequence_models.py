"""The paper's deep sequence models, their training, and their two experiments.

Letters: B sequences, L positions, D width (the paper's hidden dimension), N states a channel.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from data_dir.a5_dataset import load_word_problem, split
from data_dir.datasets import load_toy_dataset
from data_dir.finite_groups import group
from experiments.schema import SSMA5Config, SSMToyConfig
from experiments.training_loop import DataOrder, Schedule, report_divergence, train_run
from harness.errors import CompilationError, UnavailableError
from harness.paths import WORD_DATA
from harness.records import Run, provenance
from kernels.selective_scan import choose_backend
from torch_layers import (
    RNN,
    Dropout,
    MambaRecurrence,
    PositionalEncoding,
    S4Recurrence,
    TransformerLayer,
    linear,
    s5_layer,
)

PACKAGES = ("torch", "mamba-ssm", "s5-pytorch", "numpy")
# What a run draws, after its seed and what names it. Never 0: NumPy pads short seeds with zeros.
SPLIT, ORDER, SHORT_ORDER, PARAMETERS, DROPOUT = 1, 2, 3, 4, 5


class ResidualBlock(nn.Module):
    """A block of the toy models: x + Linear(act(layer(x))), or x + act(Linear(layer(x)))."""

    def __init__(self, layer: nn.Module, mix: nn.Linear, nonlinear: bool, mix_first: bool):
        """nonlinear: act is GELU, else the identity; mix_first: the second order."""
        super().__init__()
        self.layer, self.mix, self.mix_first = layer, mix, mix_first
        self.activation = nn.GELU() if nonlinear else nn.Identity()

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The block's output."""
        y = self.layer(x)
        y = self.activation(self.mix(y)) if self.mix_first else self.mix(self.activation(y))
        return x + y


class GatedBlock(nn.Module):
    """A block of the A5 models: LayerNorm(x + Dropout(GLU(Linear(Dropout(layer(x))))))."""

    def __init__(self, layer: nn.Module, mix: nn.Linear, dropout: Dropout):
        """mix: from D to 2 D."""
        super().__init__()
        self.layer, self.mix, self.dropout = layer, mix, dropout
        self.norm = nn.LayerNorm(mix.in_features)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The block's output."""
        gated = nn.functional.glu(self.mix(self.dropout(self.layer(x))), dim=-1)
        return self.norm(x + self.dropout(gated))


class SequenceModel(nn.Module):
    """Input layer, blocks, output layer; `pool`: the mean over positions before the output."""

    def __init__(
        self, embed: nn.Module, blocks: Sequence[nn.Module], output: nn.Linear, pool: bool
    ):
        """embed: to (B, L, D) from whatever the inputs are."""
        super().__init__()
        self.embed, self.blocks = embed, nn.ModuleList(blocks)
        self.output, self.pool = output, pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, V) with pooling, else (B, L, V)."""
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.output(x.mean(dim=1) if self.pool else x)


def generator_of(seed: Sequence[int], device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for each sequence of integers."""
    generator = torch.Generator(device)
    reseed(generator, seed)
    return generator


def reseed(generator: torch.Generator, seed: Sequence[int]) -> None:
    """Put a generator at the start of the stream that `seed` names."""
    (word,) = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    generator.manual_seed(int(word))


def toy_model(config: SSMToyConfig, run: Mapping[str, Any], backend: str) -> SequenceModel:
    """The model of one toy run: a linear input layer, blocks, mean over time, a linear output."""
    width, states = config.hidden_dim, config.state_dim
    generator = generator_of([*run_seed(run), PARAMETERS])

    def layer() -> nn.Module:
        match run["model"]:
            case "Mamba":
                return MambaRecurrence(width, states, backend, generator)
            case "S4":
                return S4Recurrence(
                    width, states, config.s4_mode, config.s4_softplus_step, backend, generator
                )
            case "S5":
                return s5_layer(width, states, generator)
            case name:
                raise ValueError(f"no such toy model: {name}")

    mix_first = config.block_order == "mix_then_activate"
    blocks = [
        ResidualBlock(layer(), linear(width, width, generator), run["nonlinear"], mix_first)
        for _ in range(run["depth"])
    ]
    embed = linear(run["input_dim"], width, generator)
    return SequenceModel(embed, blocks, linear(width, 1, generator), pool=True)


def a5_model(
    config: SSMA5Config, run: Mapping[str, Any], vocabulary: int, backend: str, dropout: Dropout
) -> SequenceModel:
    """The model of one run on the word problem: an embedding, blocks, a linear output."""
    width, states = config.hidden_dim, config.state_dim
    generator = generator_of([*run_seed(run), PARAMETERS])

    def layer() -> nn.Module:
        match run["model"]:
            case "RNN":
                return RNN(width, generator)
            case "Transformer":
                return TransformerLayer(
                    width, config.num_heads, config.feed_forward_dim, dropout, generator
                )
            case "S4":
                return S4Recurrence(
                    width, states, config.s4_mode, config.s4_softplus_step, backend, generator
                )
            case "Mamba":
                return MambaRecurrence(width, states, backend, generator)
            case name:
                raise ValueError(f"no such model on the word problem: {name}")

    embed = nn.utils.skip_init(nn.Embedding, vocabulary, width)
    nn.init.normal_(embed.weight, generator=generator)
    if run["model"] == "Transformer":
        embed = nn.Sequential(embed, PositionalEncoding(width, run["length"], dropout))
    blocks = [
        GatedBlock(layer(), linear(width, 2 * width, generator), dropout)
        for _ in range(run["depth"])
    ]
    return SequenceModel(embed, blocks, linear(width, vocabulary, generator), pool=False)


def run_seed(run: Mapping[str, Any]) -> list[int]:
    """Integers that name a run, for its streams: the seed, then what tells it from the others."""
    name = "/".join(str(run[key]) for key in sorted(run) if key in RUN_NAME)
    return [run["seed"], *name.encode()]


RUN_NAME = {"model", "input_dim", "nonlinear", "depth", "run", "length"}


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """A model's parameters for Adam: in one pass over memory, but for complex ones (S4's, S5's).

    PyTorch's fused Adam has no complex numbers.
    """
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.is_complex() != fused], "fused": fused}
        for fused in (True, False)
    ]
    return [group for group in groups if group["params"]]


class Training:
    """A model, its optimizer and its data, as the training loop wants them.

    A step adds the gradients of the losses of one batch of each source, then updates once.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Adam,
        sources: Sequence[tuple[Tensor, Tensor, DataOrder]],
        loss: Callable[[Tensor, Tensor], Tensor],
        metric: Callable[[nn.Module], float],
        dropout: tuple[torch.Generator, Sequence[int]] | None = None,
    ):
        """sources: inputs, targets, order; dropout: its generator, and the seed of its steps."""
        self.model, self.optimizer, self.sources = model, optimizer, sources
        self.loss, self.metric, self.dropout = loss, metric, dropout
        # Adam makes its state at its first step; here already, so that it can be restored.
        for parameter in model.parameters():
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            steps = torch.zeros((), device=parameter.device)
            optimizer.state[parameter] = {"step": steps, **moments}

    def update(self, step: int) -> float:
        """One update; returns the loss of the first source's batch."""
        if self.dropout is not None:
            generator, seed = self.dropout
            reseed(generator, [*seed, step])
        self.model.train()
        self.optimizer.zero_grad()
        losses = []
        for inputs, targets, order in self.sources:
            rows = torch.from_numpy(order.rows(step)).to(inputs.device)
            loss = self.loss(self.model(inputs[rows]), targets[rows])
            loss.backward()
            losses.append(loss.detach())
        self.optimizer.step()
        return float(losses[0])

    def evaluate(self) -> float:
        """The metric of the model as it is."""
        self.model.eval()
        with torch.inference_mode():
            return self.metric(self.model)

    def arrays(self) -> list[np.ndarray]:
        """Parameters and the optimizer's state."""
        return [tensor.detach().cpu().numpy().copy() for tensor in self._tensors()]

    def restore(self, arrays: Sequence[np.ndarray]) -> None:
        """Back to what `arrays` gave."""
        with torch.no_grad():
            for tensor, array in zip(self._tensors(), arrays, strict=True):
                tensor.copy_(torch.from_numpy(array))

    def _tensors(self) -> list[Tensor]:
        parameters = list(self.model.parameters())
        states = [self.optimizer.state[parameter] for parameter in parameters]
        return parameters + [tensor for state in states for tensor in state.values()]


def root_mean_square_error(
    model: nn.Module, paths: Tensor, labels: Tensor, batch_size: int
) -> float:
    """RMSE over all paths, each with the same weight."""
    pairs = zip(paths.split(batch_size), labels.split(batch_size), strict=True)
    squares = sum(torch.sum((model(x)[:, 0] - y).double() ** 2) for x, y in pairs)
    return float(torch.sqrt(squares / len(labels)))


def accuracy(model: nn.Module, tokens: Tensor, targets: Tensor, batch_size: int) -> float:
    """Fraction of correct tokens over all positions of all sequences."""
    pairs = zip(tokens.split(batch_size), targets.split(batch_size), strict=True)
    correct = sum(torch.sum(model(x).argmax(dim=2) == y) for x, y in pairs)
    return float(correct) / targets.numel()


def toy_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error."""
    return nn.functional.mse_loss(outputs[:, 0], labels)


def word_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over all positions of all sequences."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten().long())


def select_device(name: str) -> torch.device:
    """Choose where PyTorch computes: "auto", "cpu" or "cuda".

    Raises: UnavailableError, when CUDA is asked for and PyTorch has none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(
            "--device cuda: this PyTorch finds no CUDA device; install PyTorch for CUDA "
            "(see environment-torch.yml), or use --device cpu"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def device_in_words(device: torch.device) -> str:
    """For the record: the GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def run_sm_toy_experiment(
    config: SSMToyConfig, runs: Iterable[Run], data_dir: Path, device: str
) -> None:
    """Train sequence models on the toy task: paper, section 5.1 and Figure 1.

    runs: those to do, from `plan_ssm_toy`. Raises: UnavailableError, DataError, OSError, and, when
    all is done, FloatingPointError that names the runs that diverged.
    """
    where = select_device(device)
    backend = announced_backend(config.scan_backend, where)
    origin = origin_of_runs(where, backend)

    def do(run: Run) -> str:
        settings = run.config
        data = load_toy_dataset(
            data_dir,
            settings["input_dim"],
            num_paths=config.num_paths,
            train_fraction=config.train_fraction,
            paper_data=config.paper_data,
        )
        paths, labels = (torch.from_numpy(x).to(where) for x in (data.paths, data.labels))
        model = toy_model(config, settings, backend).to(where)
        order = DataOrder(data.num_train, config.batch_size, [*run_seed(settings), ORDER])
        validation = paths[data.num_train :], labels[data.num_train :]
        training = Training(
            maybe_compiled(model, config.compile),
            torch.optim.Adam(parameter_groups(model), lr=config.learning_rate),
            [(paths, labels, order)],
            toy_loss,
            lambda m: root_mean_square_error(m, *validation, config.eval_batch_size),
        )
        schedule = Schedule(config.max_steps, config.eval_interval, config.checkpoint_interval)
        return train_run(run, training, schedule, "rmse", origin)

    report_divergence({run.label: do(run) for run in runs})


def run_sm_A5_experiment(  # noqa: N802
    config: SSMA5Config, runs: Iterable[Run], data_dir: Path, device: str
) -> None:
    """Train sequence models on the word problem: paper, section 5.2 and Figure 2.

    runs: those to do, from `plan_ssm_a5`. Raises: as `run_sm_toy_experiment`.
    """
    where = select_device(device)
    backend = announced_backend(config.scan_backend, where)
    origin = origin_of_runs(where, backend)
    symbols, folder = group(config.group), data_dir / WORD_DATA
    source = {"seed": config.data_seed, "samples": config.samples}

    def on_device(rows: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
        return tuple(torch.from_numpy(x).to(where, torch.int32) for x in rows)

    def do(run: Run) -> str:
        settings = run.config
        seed, length = run_seed(settings), settings["length"]
        rng = np.random.default_rng([config.seed, length, SPLIT])
        rows = load_word_problem(folder, symbols, length, **source)
        training_rows, validation = map(on_device, split(*rows, config.train_fraction, rng))
        sources = [(training_rows, settings["batch_size"], ORDER)]
        if config.short_batch_size:
            pairs = on_device(load_word_problem(folder, symbols, 2, **source))
            sources.append((pairs, config.short_batch_size, SHORT_ORDER))
        generator = generator_of([*seed, DROPOUT], where)
        dropout = Dropout(config.dropout, generator)
        model = a5_model(config, settings, symbols.order, backend, dropout).to(where)
        training = Training(
            maybe_compiled(model, config.compile),
            torch.optim.AdamW(
                parameter_groups(model),
                lr=settings["learning_rate"],
                weight_decay=config.weight_decay,
            ),
            [(*data, DataOrder(len(data[0]), size, [*seed, tag])) for data, size, tag in sources],
            word_loss,
            lambda m: accuracy(m, *validation, config.eval_batch_size),
            dropout=(generator, [*seed, DROPOUT]),
        )
        schedule = Schedule(
            config.epochs * training.sources[0][2].batches,
            config.eval_interval,
            config.checkpoint_interval,
            config.stop_accuracy,
        )
        return train_run(run, training, schedule, "accuracy", origin)

    report_divergence({run.label: do(run) for run in runs})


def origin_of_runs(device: torch.device, backend: str) -> dict[str, Any]:
    """How runs are being made, for their records; the number of threads decides the last bits."""
    return {
        **provenance(PACKAGES, device_in_words(device)),
        "threads": torch.get_num_threads(),
        "scan_backend": backend,
    }


def announced_backend(name: str, device: torch.device) -> str:
    """The selective scan's backend, printed once. Raises: UnavailableError."""
    try:
        backend = choose_backend(device.type, name)
    except CompilationError as error:
        raise UnavailableError(str(error)) from None
    print(f"selective scan: {backend}", flush=True)
    return backend


def maybe_compiled(model: nn.Module, wanted: bool) -> nn.Module:
    """The model, through torch.compile if that is wanted."""
    return torch.compile(model) if wanted else model
