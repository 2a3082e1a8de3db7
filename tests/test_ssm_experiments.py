"""The sequence models' training and search: what a step is, what an evaluation counts, resuming."""

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("torch", reason="the sequence models need PyTorch")

import torch

from experiments import ssm_a5, ssm_toy
from experiments.lcde_a5 import SHORT_ORDER, SPLIT
from experiments.schema import load_config
from experiments.ssm_training import (
    DROPOUT,
    ORDER,
    PARAMETERS,
    Training,
    accuracy,
    generator_of,
    mean_cross_entropy,
    parameter_groups,
    root_mean_square_error,
    run_seed,
)
from experiments.training_loop import DataOrder
from harness.paths import CONFIG_FOLDER
from run_experiment import main
from torch_layers import Dropout
from torch_sequence_models import GatedBlock, ResidualBlock, toy_model

TOY_RUN = {"seed": 1, "model": "Mamba", "depth": 2, "nonlinear": True, "input_dim": 2, "run": 0}
A5_RUN = {"seed": 1, "model": "Mamba", "depth": 1, "length": 4}
SMALL = {"hidden_dim": 8, "state_dim": 3}
SMALL_A5 = {**SMALL, "num_heads": 2, "feed_forward_dim": 16}


def config_of(experiment, **changes):
    overrides = {key: (value, "test") for key, value in changes.items()}
    path = CONFIG_FOLDER / f"{experiment.__name__.rpartition('.')[2]}.yaml"
    return load_config(experiment.Config, path, overrides)


def small_toy_model(**changes):
    config = config_of(ssm_toy, **SMALL)
    return ssm_toy.model_of({**config.identity(), **TOY_RUN, **changes}, "reference")


def small_a5_model(dropout=0.0, **changes):
    config = config_of(ssm_a5, **SMALL_A5)
    layer = Dropout(dropout, torch.Generator().manual_seed(0))
    return ssm_a5.model_of({**config.identity(), **A5_RUN, **changes}, "reference", layer)


def words(count, length, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 60, (2, count, length), dtype=np.int32))


@pytest.mark.parametrize("mix_first", [False, True])
def test_a_toy_block_adds_activation_and_mixing_in_the_configured_order(mix_first):
    mix, x = torch.nn.Linear(3, 3), torch.randn(1, 2, 3)
    block = ResidualBlock(torch.nn.Tanh(), mix, nonlinear=True, mix_first=mix_first)
    gelu, y = torch.nn.functional.gelu, torch.tanh(x)
    torch.testing.assert_close(block(x), x + (gelu(mix(y)) if mix_first else mix(gelu(y))))


def test_a_linear_toy_block_has_no_activation():
    mix, x = torch.nn.Linear(3, 3), torch.randn(1, 2, 3)
    block = ResidualBlock(torch.nn.Identity(), mix, nonlinear=False, mix_first=False)
    torch.testing.assert_close(block(x), x + mix(x))


def test_a_gated_block_normalises_its_input_plus_the_gated_layer():
    mix, x = torch.nn.Linear(3, 6), torch.randn(1, 2, 3)
    block = GatedBlock(torch.nn.Tanh(), mix, Dropout(0.0, torch.Generator()))
    values, gates = mix(torch.tanh(x)).chunk(2, dim=-1)
    expected = torch.nn.functional.layer_norm(x + values * torch.sigmoid(gates), (3,))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("model", ["RNN", "Transformer", "S4", "Mamba"])
def test_a5_models_are_causal_and_give_logits_of_every_position(model):
    network = small_a5_model(model=model, length=5).eval()
    tokens = words(3, 5)[0]
    changed = tokens.clone()
    changed[:, 3:] = (changed[:, 3:] + 1) % 60
    before, after = network(tokens), network(changed)
    assert before.shape == (3, 5, 60)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


@pytest.mark.parametrize("model", ["Mamba", "S4", "S5"])
def test_toy_models_give_one_number_a_path(model):
    assert small_toy_model(model=model)(torch.randn(4, 10, 2)).shape == (4, 1)


def test_a_toy_model_pools_by_the_mean_over_all_positions():
    sizes = {"input_dim": 2, "width": 4, "depth": 1, "nonlinear": False, "mix_first": False}
    model = toy_model(torch.nn.Identity, **sizes, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 5, 2)
    # Its layers act on each position by itself, and all is affine: the mean may come first.
    torch.testing.assert_close(model(x), model(x.mean(dim=1, keepdim=True)))


def model_of_each_kind():
    models = [small_a5_model(model=m) for m in ("RNN", "Transformer", "S4", "Mamba")]
    return models + [small_toy_model(model=m) for m in ("S4", "Mamba", "S5")]


@pytest.mark.parametrize("kind", range(7))
def test_grouped_parameters_are_updated_as_one_group_without_fusing(kind):
    ours, plain = (model_of_each_kind()[kind] for _ in range(2))
    optimizers = [
        torch.optim.AdamW(parameter_groups(ours), lr=1e-2, weight_decay=0.01),
        torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.01, fused=False),
    ]
    for step in range(3):
        for parameter, other in zip(ours.parameters(), plain.parameters(), strict=True):
            generator = torch.Generator().manual_seed(step)
            parameter.grad = torch.randn(
                parameter.shape, dtype=parameter.dtype, generator=generator
            )
            other.grad = parameter.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for parameter, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, other)


def test_only_the_transformer_knows_positions_by_encoding():
    names = {model: str(small_a5_model(model=model)) for model in ("RNN", "Transformer", "Mamba")}
    assert [model for model, name in names.items() if "PositionalEncoding" in name] == [
        "Transformer"
    ]


def test_runs_that_differ_in_anything_draw_other_parameters():
    changes = [{}, {"run": 1}, {"seed": 2}, {"input_dim": 3}, {"nonlinear": False}, {"depth": 1}]
    seeds = [tuple(run_seed({**TOY_RUN, **change})) for change in changes]
    assert len(set(seeds)) == len(seeds)
    first, again = (small_toy_model().output.weight for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, small_toy_model(run=1).output.weight)


def test_orders_parameters_and_dropout_draw_from_streams_of_their_own():
    # NumPy pads short seeds with zeros, so a tag of 0 would repeat the stream without a tag.
    seeds = [[], [SPLIT], [ORDER], [SHORT_ORDER], [PARAMETERS], [DROPOUT]]
    draws = {np.random.default_rng([*run_seed(TOY_RUN), *seed]).random() for seed in seeds}
    assert len(draws) == len(seeds)


def training(dropout=0.1, seed=0):
    generator = generator_of([seed, 1])
    config = config_of(ssm_a5, **SMALL_A5)
    settings = {**config.identity(), **A5_RUN}
    model = ssm_a5.model_of(settings, "reference", Dropout(dropout, generator))
    sources = [
        (*words(20, 4), DataOrder(20, 4, [seed, 2])),
        (*words(6, 2), DataOrder(6, 3, [seed, 3])),
    ]
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=1e-2, weight_decay=0.01)
    return Training(
        model, optimizer, sources, mean_cross_entropy, lambda m: 0.0, (), (generator, [seed, 4])
    )


def test_a_step_adds_the_gradients_of_both_batches_and_updates_once():
    ours = training(dropout=0.0)
    model = small_a5_model()
    model.load_state_dict(ours.model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01, fused=False)
    for step in range(2):
        ours.update(step)
        optimizer.zero_grad()
        batches = [(x[order.rows(step)], y[order.rows(step)]) for x, y, order in ours.sources]
        sum(mean_cross_entropy(model(x), y) for x, y in batches).backward()
        optimizer.step()
    for mine, expected in zip(ours.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, expected)


def test_restored_training_goes_on_bit_for_bit():
    whole, first, second = training(), training(), training()
    losses = [whole.update(step) for step in range(6)]
    for step in range(3):
        first.update(step)
    second.restore(first.arrays())
    assert [second.update(step) for step in range(3, 6)] == losses[3:]
    assert second.arrays().keys() == whole.arrays().keys()
    for name, expected in whole.arrays().items():
        assert np.array_equal(second.arrays()[name], expected)


def test_checkpoints_name_parameters_and_moments_as_the_model_does():
    fresh = training()
    names = [name for name, _ in fresh.model.named_parameters()]
    moments = ("step", "exp_avg", "exp_avg_sq")
    assert list(fresh.arrays()) == [*names, *(f"adam.{n}.{m}" for n in names for m in moments)]


def test_dropout_of_a_step_depends_on_the_step_alone():
    def loss_of(steps):
        fresh = training()
        fresh.optimizer.param_groups[0].update(lr=0.0, weight_decay=0.0)
        return [fresh.update(step) for step in steps][-1]

    assert loss_of([5]) == loss_of([1, 2, 5])


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_validation_weighs_every_sample_the_same(batch_size):
    paths, labels = torch.randn(20, 6, 2), torch.randn(20)
    model = small_toy_model()
    with torch.inference_mode():
        expected = torch.sqrt(torch.mean((model(paths)[:, 0] - labels) ** 2))
        found = root_mean_square_error(model, paths, labels, batch_size)
        assert found == pytest.approx(float(expected), rel=1e-5)
        network, (tokens, _) = small_a5_model().eval(), words(20, 4)
        targets = network(tokens).argmax(dim=2)
        targets[0, 0] = (targets[0, 0] + 1) % 60
        assert accuracy(network, tokens, targets, batch_size) == 79 / 80


TINY_A5 = {
    **SMALL_A5,
    "samples": 500,
    "epochs": 20,
    "eval_interval": 100,
    "checkpoint_interval": 20,
    "stop_accuracy": 1.0,
    "dropout": 0.1,
    "scan_backend": "reference",
}


def tiny_a5(folder, *flags, **changes):
    found = ["-m", "SequenceModel", "-e", "A5", *flags]
    found += ["--data-dir", str(folder), "--results-dir", str(folder / "results")]
    for key, value in {**TINY_A5, **changes}.items():
        found += ["--set", f"{key}={value}"]
    return found


def record_of(folder, model, length, depth):
    rate = {"RNN": 0.0001, "Mamba": 0.0003}[model]
    stem = f"{model}_{length}_{depth}_{rate}_8_steps_run_2345"
    return json.loads((folder / "results" / "outputs_A5" / f"{stem}.json").read_text())


def test_the_search_stops_deepening_and_lengthening_as_the_paper_did(tmp_path, capsys):
    flags = ["-n", "RNN"]
    settings = {"lengths": "[4, 5, 6]", "depths": "[1, 2]", "epochs": 1, "eval_interval": 5}
    # Chance is above this: every depth solves, so that only the first is run.
    assert main(tiny_a5(tmp_path, *flags, **settings, stop_accuracy=1e-4)) == 0
    assert "RNN, depth 2: not needed, 1 blocks solve length 4" in capsys.readouterr().out
    folder = tmp_path / "results" / "outputs_A5"
    assert len(list(folder.glob("RNN_*_1_*_acc_run_2345.npy"))) == 3
    assert not list(folder.glob("RNN_*_2_*.npy"))
    # Never solved: every depth fails at the shortest length, and is not tried again.
    shutil.rmtree(tmp_path / "results")
    assert main(tiny_a5(tmp_path, *flags, **settings, stop_accuracy=1.0)) == 0
    assert "length 5, RNN, depth 1: not needed, 1 blocks failed at length 4" in (
        capsys.readouterr().out
    )
    assert {path.name.split("_")[1] for path in folder.glob("*.npy")} == {"4"}
    assert main(tiny_a5(tmp_path, *flags, "--plan", **settings, stop_accuracy=1.0)) == 0
    assert "6 runs: 2 done, 0 missing, 4 not needed, 0 conflict" in capsys.readouterr().out


def test_a_depth_that_failed_at_a_shorter_length_is_given_up_and_no_other(tmp_path, monkeypatch):
    config = config_of(ssm_a5, models=["RNN", "Mamba"], lengths=[4, 5], depths=[1, 2], search=True)
    ends = {("RNN", 4, 1): "not solved", ("RNN", 4, 2): "solved"}
    monkeypatch.setattr(ssm_a5, "outcome", lambda run: ends.get(name_of(run)))

    def name_of(run):
        return tuple(run.config[key] for key in ("model", "length", "depth"))

    reasons = {name_of(run): run.not_needed() for run in ssm_a5.plan(config, tmp_path)}
    assert len(reasons) == 8
    given_up = {name: reason for name, reason in reasons.items() if reason}
    assert given_up == {("RNN", 5, 1): "1 blocks failed at length 4"}


@pytest.mark.processes
def test_killed_runs_resume_to_the_bits_of_an_undisturbed_run(tmp_path, killed_at_step):
    flags = ["-n", "Mamba", "-l", "4", "-d", "1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    assert main(tiny_a5(whole, *flags)) == 0
    killed.mkdir()
    for step in (67, 149):  # some steps after a checkpoint
        killed_at_step(step, tiny_a5(killed, *flags))
    assert main(tiny_a5(killed, *flags)) == 0
    records = [record_of(folder, "Mamba", 4, 1) for folder in (whole, killed)]
    assert records[0]["files"] == records[1]["files"]
    assert records[0]["history"]["train_loss"] == records[1]["history"]["train_loss"]
    assert records[0]["outcome"] == "not solved"
    assert records[0]["provenance"]["data"].keys() == {"A5=4.csv", "A5=2.csv"}
    (kept,) = (killed / "results" / "checkpoints").glob("*/*")
    assert kept.name == "step_000000240.npz"


def test_a_toy_run_leaves_the_released_names_and_a_record_and_goes_further_when_asked(
    tmp_path, write_toy_files, rng, capsys, monkeypatch
):
    write_toy_files(
        tmp_path,
        rng.standard_normal((50, 10, 2)).astype(np.float32),
        rng.standard_normal(50).astype(np.float32),
    )
    settings = {**SMALL, "num_paths": 50, "paper_data": "false", "runs": 1, "batch_size": 8}
    settings |= {"eval_interval": 3, "scan_backend": "reference"}
    command = ["-m", "SequenceModel", "-e", "toy", "-n", "Mamba", "-d", "1", "-i", "2"]
    command += ["--data-dir", str(tmp_path), "--results-dir", str(tmp_path / "results")]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    assert main([*command, "--set", "max_steps=6"]) == 0
    folder = tmp_path / "results" / "outputs_toy"
    stem = "100_Mamba_False_1_0.0001_8_2_run_0"
    steps, rmse = (np.load(folder / f"{kind}_{stem}.npy") for kind in ("steps", "rmse"))
    assert steps.tolist() == [0, 3, 6] and rmse.shape == (3,)
    record = json.loads((folder / f"steps_{stem}.json").read_text())
    assert record["outcome"] == "finished"
    assert record["provenance"]["scan_backend"] == "reference"
    assert record["provenance"]["threads"] == torch.get_num_threads()
    assert record["provenance"]["data"].keys() == {"data_2.npy", "labels_2.npy"}
    updates = count_updates(monkeypatch)
    assert main([*command, "--set", "max_steps=9"]) == 0
    assert updates == [6, 7, 8]
    assert "its files end earlier, and stay until it is as far: max_steps 6" in (
        capsys.readouterr().out
    )
    further = [np.load(folder / f"{kind}_{stem}.npy") for kind in ("steps", "rmse")]
    assert further[0].tolist() == [0, 3, 6, 9]
    assert further[1][:3].tolist() == rmse.tolist()
    command[command.index(str(tmp_path / "results"))] = str(tmp_path / "once")
    assert main([*command, "--set", "max_steps=9"]) == 0
    for name in (f"rmse_{stem}.npy", f"steps_{stem}.npy"):
        alone = tmp_path / "once" / "outputs_toy" / name
        assert alone.read_bytes() == (folder / name).read_bytes()


def count_updates(monkeypatch):
    """The steps that are done from here on."""
    done, update = [], Training.update

    def counted(self, step):
        done.append(step)
        return update(self, step)

    monkeypatch.setattr(Training, "update", counted)
    return done
