"""Captured steps are plain steps: on a CPU, by a stand-in that does what it recorded."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="the sequence models need PyTorch")

import torch

from experiments import cuda_step, ssm_a5
from experiments.schema import load_config
from experiments.ssm_training import (
    Training,
    accuracy,
    generator_of,
    mean_cross_entropy,
    parameter_groups,
    root_mean_square_error,
)
from experiments.training_loop import DataOrder, Schedule, train
from harness.checkpoints import Checkpoints
from harness.paths import CONFIG_FOLDER
from torch_layers import Dropout

RUN = {"seed": 1, "model": "Mamba", "depth": 1, "length": 4}
SETTINGS = {"hidden_dim": 8, "state_dim": 3, "num_heads": 2, "feed_forward_dim": 16}


class Recorded(cuda_step.CudaGraph):
    """As a CUDA graph: captures without doing, replays into the same memory, warms up for real."""

    def __init__(self):
        self.calls = []

    def warm_up(self, work):
        self.calls.append("warm up")
        work()

    def capture(self, work):
        self.calls.append("capture")
        self.work, self.loss = work, torch.full((), torch.nan)
        return self.loss

    def replay(self):
        self.calls.append("replay")
        self.loss.copy_(self.work())


def words(count, length):
    rng = np.random.default_rng(length)
    return torch.from_numpy(rng.integers(0, 60, (2, count, length), dtype=np.int32))


def training(model="Mamba", captured=False):
    config = load_config(
        ssm_a5.Config,
        CONFIG_FOLDER / "ssm_a5.yaml",
        {key: (value, "test") for key, value in SETTINGS.items()},
    )
    generator = generator_of([1])
    dropout = Dropout(0.1, generator)
    settings = {**config.identity(), **RUN, "model": model}
    network = ssm_a5.model_of(settings, "reference", dropout)
    made = Training(
        network,
        torch.optim.AdamW(parameter_groups(network), lr=1e-2, weight_decay=0.01),
        [(*words(20, 4), DataOrder(20, 4, [2])), (*words(6, 2), DataOrder(6, 3, [3]))],
        mean_cross_entropy,
        lambda m: 0.0,
        (),
        (generator, [4]),
    )
    if captured:
        made.capture(Recorded())
    return made


def assert_same_arrays(found, expected):
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("model", ["RNN", "Transformer", "S4", "Mamba"])
def test_captured_steps_are_plain_steps_bit_for_bit(monkeypatch, model):
    monkeypatch.setattr(cuda_step, "AHEAD", 4)  # less than the steps, and than an epoch of five
    plain, captured = training(model), training(model, captured=True)
    losses = [plain.update(step) for step in range(11)]
    assert [float(captured.update(step)) for step in range(11)] == losses
    assert_same_arrays(captured.arrays(), plain.arrays())


def test_a_step_is_captured_once_after_warming_up_and_replayed_once_each_time():
    made = training(captured=True)
    for step in range(3):
        made.update(step)
    warm_up = ["warm up"] * cuda_step.WARM_UP
    assert made.captured.graph.calls == [*warm_up, "capture", *["replay"] * 3]


def test_warming_up_changes_nothing():
    made = training(captured=True)
    before, drawn = made.arrays(), made.captured
    drawn.loss = drawn._captured()
    assert_same_arrays(made.arrays(), before)


def test_restored_training_is_captured_afresh_and_goes_on_bit_for_bit():
    whole, first, second = training(), training(captured=True), training(captured=True)
    losses = [whole.update(step) for step in range(6)]
    for step in range(3):
        first.update(step)
    second.update(0)  # captured before it is restored
    second.restore(first.arrays())
    assert [float(second.update(step)) for step in range(3, 6)] == losses[3:]
    assert_same_arrays(second.arrays(), whole.arrays())


def test_a_loss_stays_what_it_was_when_later_steps_are_done():
    plain, captured = training(), training(captured=True)
    unread = [captured.update(step) for step in range(4)]
    assert [float(loss) for loss in unread] == [plain.update(step) for step in range(4)]


def test_losses_read_late_leave_the_history_of_those_read_at_once(tmp_path):
    schedule = Schedule(max_steps=23, eval_interval=10, checkpoint_interval=7)
    histories = [
        train(training(captured=c), schedule, Checkpoints(tmp_path / str(c), {}), "accuracy")[0]
        for c in (False, True)
    ]
    assert histories[0].steps == histories[1].steps == [0, 10, 20, 23]
    assert histories[0].train_loss == histories[1].train_loss


class Reads(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what makes the host wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._schema.name in ("aten::item", "aten::_local_scalar_dense")
        return function(*args, **(kwargs or {}))


class Ends(torch.nn.Module):
    def forward(self, paths):
        return paths[:, -1]


def test_an_evaluation_is_read_once_however_many_its_batches():
    tokens, targets = words(20, 4)
    paths, labels = torch.randn(20, 6, 2), torch.randn(20)
    with torch.inference_mode():
        for metric, model, data in [
            (accuracy, torch.nn.Embedding(60, 60), (tokens, targets)),
            (root_mean_square_error, Ends(), (paths, labels)),
        ]:
            with Reads() as reads:
                metric(model, *data, 3)
            assert reads.count == 1, metric
