"""A training step on a GPU as one launch: captured once in a CUDA graph, then replayed.

At batch 32 a step is some hundred small kernels, which Python starts more slowly than a GPU
computes them. A graph starts them all at once; it reads and writes the same memory each time, so
that row numbers reach it through buffers that stay where they are.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from experiments.training_loop import DataOrder

# Steps whose row numbers are copied to the GPU at a time, while it computes.
AHEAD = 256
# What a library allocates and compiles at its first calls must not be captured.
WARM_UP = 3


class CudaGraph:
    """A CUDA graph, warmed up and captured on a stream of its own, as PyTorch asks for."""

    def __init__(self, generator: torch.Generator | None):
        """generator: what the work draws from."""
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        if generator is not None:
            self.graph.register_generator_state(generator)

    def warm_up(self, work: Callable[[], Tensor]) -> None:
        """Do the work as it will be captured."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream().wait_stream(self.stream)

    def capture(self, work: Callable[[], Tensor]) -> Tensor:
        """Take the work down without doing it; returns what every replay overwrites."""
        with torch.cuda.graph(self.graph, stream=self.stream):
            return work()

    def replay(self) -> None:
        """Do it."""
        self.graph.replay()


class CapturedStep:
    """Steps of a training, one replay each.

    The graph counts the steps itself: it takes the rows at `place` in `ahead` and moves on, so that
    the host has nothing to copy between two steps but at the end of what is ahead.
    """

    def __init__(
        self,
        step: Callable[[Sequence[Tensor]], Tensor],
        orders: Sequence[DataOrder],
        changed: Sequence[Tensor],
        reseed: Callable[[int], None],
        graph: CudaGraph,
    ):
        """step: one update from the rows of each order, returns its loss, a number on the device.

        changed: all that a step changes, and stays in place; reseed: puts the generator that the
        step draws from at the beginning of a step's stream.
        """
        self.step, self.orders, self.changed = step, orders, changed
        self.reseed, self.graph = reseed, graph
        device = changed[0].device
        self.ahead = [
            torch.zeros(AHEAD, order.batch_size, dtype=torch.int64, device=device)
            for order in orders
        ]
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self.steps = range(0)  # whose rows are ahead
        self.loss: Tensor | None = None

    def __call__(self, number: int) -> Tensor:
        """Do step `number`; returns its loss, on the device: to read it is to wait for the step."""
        if self.loss is None:
            self.loss = self._captured()
        if not self.steps or number != self.steps[0]:
            self._look_ahead(number)
        self.reseed(number)
        self.graph.replay()
        self.steps = self.steps[1:]
        return self.loss.clone()

    def _work(self) -> Tensor:
        loss = self.step([rows.index_select(0, self.place)[0] for rows in self.ahead])
        self.place.add_(1)
        return loss

    def _captured(self) -> Tensor:
        before = [tensor.detach().clone() for tensor in self.changed]
        for _ in range(WARM_UP):
            self.graph.warm_up(self._work)
        with torch.no_grad():
            for tensor, value in zip(self.changed, before, strict=True):
                tensor.copy_(value)
        return self.graph.capture(self._work)

    def _look_ahead(self, number: int) -> None:
        self.steps = range(number, number + AHEAD)
        for buffer, order in zip(self.ahead, self.orders, strict=True):
            rows = torch.from_numpy(np.stack([order.rows(step) for step in self.steps]))
            # Pinned memory is not given to others before the copy out of it is done.
            rows = rows.pin_memory() if buffer.is_cuda else rows
            buffer.copy_(rows, non_blocking=True)
        self.place.zero_()
