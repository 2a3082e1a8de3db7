"""How sequence models are trained: one Adam update, the metrics, the streams of random numbers.

What `ssm_toy` and `ssm_a5` share; it imports PyTorch at once, and they import it when a run is to
be done.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.cuda_step import CapturedStep, CudaGraph
from experiments.devices import torch_device
from experiments.schema import SSMConfig
from experiments.training_loop import DataOrder, Do, Prepared, do_runs
from harness.errors import CompilationError, ConfigError, UnavailableError
from harness.records import Run, provenance
from kernels.selective_scan import choose_backend
from torch_layers import Dropout, make_layer

PACKAGES = ("torch", "mamba-ssm", "s5-pytorch", "numpy")
# What a run draws, after its seed and what names it; `lcde_a5` has 2 and 3 for the orders of words.
# Never 0: NumPy pads short seeds with zeros.
ORDER, PARAMETERS, DROPOUT = 2, 4, 5
# The settings that tell a run's streams from those of others with its seed.
RUN_NAME = {"model", "input_dim", "nonlinear", "depth", "run", "length"}


def generator_of(seed: Sequence[int], device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for each sequence of integers."""
    generator = torch.Generator(device)
    reseed(generator, seed)
    return generator


def reseed(generator: torch.Generator, seed: Sequence[int]) -> None:
    """Put a generator at the start of the stream that `seed` names."""
    (word,) = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    generator.manual_seed(int(word))


def run_seed(run: Mapping[str, Any]) -> list[int]:
    """Integers that name a run, for its streams: the seed, then what tells it from the others."""
    name = "/".join(str(run[key]) for key in sorted(run) if key in RUN_NAME)
    return [run["seed"], *name.encode()]


def with_parameters(model: nn.Module, parameters: Mapping[str, np.ndarray]) -> nn.Module:
    """The model with these parameters, to evaluate. Raises: ValueError, where they do not fit."""
    try:
        model.load_state_dict({name: torch.tensor(x) for name, x in parameters.items()})
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())) from None
    return model.eval()


def layer_maker(
    run: Mapping[str, Any],
    backend: str,
    generator: torch.Generator,
    attention: tuple[int, int, Dropout] | None = None,
) -> Callable[[], nn.Module]:
    """Draws the next layer of a run's config; attention as in `make_layer`."""
    return lambda: make_layer(
        run["model"],
        run["hidden_dim"],
        run["state_dim"],
        backend=backend,
        s4_mode=run["s4_mode"],
        s4_softplus_step=run["s4_softplus_step"],
        attention=attention,
        generator=generator,
    )


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """A model's parameters for Adam: in one pass over memory, but for complex ones (S4's, S5's).

    PyTorch's fused Adam has no complex numbers. On a GPU its steps can be captured.
    """
    parameters = list(model.parameters())
    capturable = all(p.is_cuda for p in parameters)
    groups = []
    for fused in (True, False):
        chosen = [p for p in parameters if p.is_complex() != fused]
        if chosen:
            groups.append({"params": chosen, "fused": fused, "capturable": capturable})
    return groups


class Training:
    """A model, its optimizer and its data, as the training loop wants them.

    A step adds the gradients of the losses of one batch of each source, then updates once. On a GPU
    it is captured once and replayed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Adam,
        sources: Sequence[tuple[Tensor, Tensor, DataOrder]],
        loss: Callable[[Tensor, Tensor], Tensor],
        metric: Callable[..., float],
        validation: Sequence[Tensor],
        dropout: tuple[torch.Generator, Sequence[int]] | None = None,
    ):
        """sources: inputs, targets, order; dropout: its generator, and the seed of its steps.

        metric: of the model and the tensors of `validation`.
        """
        self.model, self.optimizer, self.sources = model, optimizer, sources
        self.loss, self.metric, self.validation = loss, metric, validation
        self.dropout = dropout
        # Adam makes its state at its first step; here already, so that it can be restored.
        for parameter in model.parameters():
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            steps = torch.zeros((), device=parameter.device)
            optimizer.state[parameter] = {"step": steps, **moments}
        self.captured: CapturedStep | None = None
        if sources[0][0].is_cuda:
            self.capture(CudaGraph(dropout[0] if dropout else None))

    def capture(self, graph: CudaGraph) -> None:
        """From here on, steps are replays of a graph."""
        orders, changed = [order for *_, order in self.sources], list(self._tensors().values())
        self.captured = CapturedStep(self.step, orders, changed, self.reseed, graph)

    def update(self, step: int) -> Tensor:
        """One update; returns the loss of the first source's batch, a scalar."""
        if self.captured is not None:
            return self.captured(step)
        self.reseed(step)
        return self.step([torch.from_numpy(order.rows(step)) for *_, order in self.sources])

    def reseed(self, step: int) -> None:
        """Have dropout draw what a step draws, whatever was drawn before."""
        if self.dropout is not None:
            generator, seed = self.dropout
            reseed(generator, [*seed, step])

    def step(self, rows: Sequence[Tensor]) -> Tensor:
        """One update from these rows of the sources; returns the first one's loss."""
        self.model.train()
        self.optimizer.zero_grad()
        losses = []
        for (inputs, targets, _), taken in zip(self.sources, rows, strict=True):
            loss = self.loss(self.model(inputs[taken]), targets[taken])
            loss.backward()
            losses.append(loss.detach())
        self.optimizer.step()
        return losses[0]

    def evaluate(self) -> float:
        """The metric of the model as it is."""
        self.model.eval()
        with torch.inference_mode():
            return self.metric(self.model, *self.validation)

    def arrays(self) -> dict[str, np.ndarray]:
        """Parameters and the optimizer's state."""
        return {name: x.detach().cpu().numpy().copy() for name, x in self._tensors().items()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Back to what `arrays` gave."""
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(torch.from_numpy(arrays[name]))

    def _tensors(self) -> dict[str, Tensor]:
        parameters = dict(self.model.named_parameters())
        moments = {
            f"adam.{name}.{moment}": tensor
            for name, parameter in parameters.items()
            for moment, tensor in self.optimizer.state[parameter].items()
        }
        return parameters | moments


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


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error."""
    return nn.functional.mse_loss(outputs[:, 0], labels)


def mean_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy over all positions of all sequences."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten().long())


def do_all(
    config: SSMConfig,
    runs: Iterable[Run],
    device: str,
    prepare: Callable[[Run, torch.device, str], Prepared],
    do: Do,
) -> None:
    """Do the runs, as `training_loop.do_runs`; prepare: for a device and a scan's backend.

    The backend is printed. Raises: ConfigError, UnavailableError, where it cannot be had; as
    `torch_device` and `do_runs`.
    """
    where = torch_device(device, config.matmul_precision)
    try:
        backend = choose_backend(where.type, config.scan_backend)
    except CompilationError as error:
        raise UnavailableError(str(error)) from None
    except ValueError as error:
        raise ConfigError(f"scan_backend: {error}") from None
    print(f"selective scan: {backend}", flush=True)
    # The number of threads decides the last bits.
    gpu = torch.cuda.get_device_name(where) if where.type == "cuda" else None
    origin = {
        **provenance(PACKAGES, gpu or "cpu"),
        "threads": torch.get_num_threads(),
        "scan_backend": backend,
    }
    do_runs(runs, lambda run: prepare(run, where, backend), origin, do)
