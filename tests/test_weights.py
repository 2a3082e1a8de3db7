"""`--save-model` keeps what training ended with; `load_model` gives it back, or says why not."""

import json
from importlib import import_module

import numpy as np
import pytest
from safetensors.numpy import save

from experiments.schema import load_config
from experiments.training_loop import do_run
from experiments.weights import load_model, read_weights, save_models
from harness.errors import ResultFileError, ResultsError
from harness.paths import CONFIG_FOLDER
from harness.records import read_record
from run_experiment import main

WORDS = {"samples": 200, "lengths": [4], "stop_accuracy": 1.0, "batch_size": 8}
SSM = {"state_dim": 3, "scan_backend": "reference"}
TOY = {**SSM, "num_paths": 30, "paper_data": False, "runs": 1, "input_dims": [2], "batch_size": 8}
EXPERIMENTS = {
    "lcde_a5": {**WORDS, "max_steps": 3},
    "ssm_a5": {**WORDS, **SSM, "depths": [2], "search": False, "epochs": 1, "num_heads": 2}
    | {"feed_forward_dim": 16, "dropout": 0.5},
    "ssm_toy": {**TOY, "depths": [2], "nonlinear": [True], "max_steps": 3},
}
MODELS = [("lcde_a5", None)]
MODELS += [("ssm_a5", model) for model in ("RNN", "Transformer", "S4", "Mamba")]
MODELS += [("ssm_toy", model) for model in ("S4", "Mamba", "S5")]


@pytest.fixture
def data_dir(tmp_path, rng, write_toy_files):
    paths = rng.standard_normal((30, 6, 2)).astype(np.float32)
    write_toy_files(tmp_path / "data", paths, paths[:, 0, 0])
    return tmp_path / "data"


@pytest.fixture
def trained(tmp_path, data_dir, monkeypatch):
    """Do a tiny run; returns the run and the model as training left it."""

    def train(name, model=None, **changes):
        pytest.importorskip("jax" if name == "lcde_a5" else "torch", reason="the other's")
        experiment = import_module(f"experiments.{name}")
        if name == "lcde_a5":
            monkeypatch.setattr("experiments.lcde_training.train_step", moved)
        values = {"hidden_dim": 8, "eval_interval": 2, **EXPERIMENTS[name], **changes}
        values |= {"models": [model]} if model else {}
        overrides = {key: (value, "test") for key, value in values.items()}
        config = load_config(experiment.Config, CONFIG_FOLDER / f"{name}.yaml", overrides)
        (run,) = experiment.plan(config, tmp_path / "results")
        found = []

        def do(run, prepared, origin):
            trainable = prepared.trainable
            outcome = do_run(run, prepared, origin)
            found.append(trainable.state.model if name == "lcde_a5" else trainable.model.eval())
            return outcome

        experiment.run(config, [run], data_dir, "cpu", do)
        return run, found[0]

    return train


def moved(state, batches, key, optimizer, dropout):
    """In the place of `train_step`, which takes seconds to compile."""
    import jax
    import jax.numpy as jnp

    return jax.tree.map(lambda x: x * 2 if hasattr(x, "dtype") else x, state), jnp.zeros(())


def outputs_of(name, model):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 60, (5, 4))
    if name == "lcde_a5":
        import jax

        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return np.asarray(model(jax.numpy.asarray(tokens)))
    import torch

    paths = torch.from_numpy(rng.standard_normal((5, 7, 2)).astype(np.float32))
    with torch.inference_mode():
        return model(paths if name == "ssm_toy" else torch.from_numpy(tokens)).numpy()


@pytest.mark.parametrize(("name", "model"), MODELS)
def test_a_loaded_model_is_the_trained_one_bit_for_bit(name, model, trained, tmp_path):
    run, kept = trained(name, model)
    save_models(name, [run], tmp_path / "weights")
    (path,) = (tmp_path / "weights").iterdir()
    assert path.name == f"{run.record.stem}.safetensors"
    loaded = load_model(path, "cpu")
    assert type(loaded) is type(kept)
    assert np.array_equal(outputs_of(name, loaded), outputs_of(name, kept))
    assert not np.array_equal(outputs_of(name, loaded), 0 * outputs_of(name, kept))
    assert not getattr(loaded, "training", False)


def test_the_metadata_are_those_of_the_record(trained, tmp_path):
    run, _ = trained("ssm_a5", "RNN")
    save_models("ssm_a5", [run], tmp_path)
    made, _ = read_weights(tmp_path / f"{run.record.stem}.safetensors")
    record = read_record(run.record)
    assert made.config == record.config == run.config
    assert made.outcome == record.outcome == "not solved"
    assert (made.commit, made.dirty) == (record.provenance.commit, record.provenance.dirty)
    last = {name: record.history[name][-1] for name in ("steps", "accuracy", "train_loss")}
    assert made.result == last
    assert made.data.keys() == {"A5=4.csv", "A5=2.csv"}


def test_the_same_parameters_are_there_already_and_others_are_not_touched(
    trained, tmp_path, capsys
):
    run, _ = trained("ssm_a5", "RNN")
    path = tmp_path / f"{run.record.stem}.safetensors"
    save_models("ssm_a5", [run], tmp_path)
    content = path.read_bytes()
    save_models("ssm_a5", [run], tmp_path)
    assert f"its parameters are in {path} already" in capsys.readouterr().out
    path.write_bytes(content[:-1])
    with pytest.raises(ResultsError, match=f"{path.name} holds something else"):
        save_models("ssm_a5", [run], tmp_path)
    assert path.read_bytes() == content[:-1]


def test_a_run_whose_last_state_is_gone_is_named(trained, tmp_path):
    run, _ = trained("ssm_a5", "RNN")
    folder = tmp_path / "results" / "checkpoints" / run.record.stem
    (state,) = folder.iterdir()
    earlier = json.loads(run.record.read_text())
    for values in earlier["history"].values():
        values.append(values[-1])
    earlier["history"]["steps"][-1] += 1
    content = run.record.read_text()
    run.record.write_text(json.dumps(earlier))
    with pytest.raises(ResultsError, match=f"{run.label}: .* does not hold its last state"):
        save_models("ssm_a5", [run], tmp_path / "weights")
    run.record.write_text(content)
    state.unlink()
    with pytest.raises(ResultsError, match="does not hold its last state"):
        save_models("ssm_a5", [run], tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_runs_that_are_not_done_or_diverged_are_passed_over(trained, tmp_path, capsys):
    run, _ = trained("ssm_a5", "RNN")
    record = json.loads(run.record.read_text())
    for outcome, words in {
        "unfinished": "not done",
        "diverged: a loss": "diverged: a loss",
    }.items():
        run.record.write_text(json.dumps({**record, "outcome": outcome}))
        save_models("ssm_a5", [run], tmp_path / "weights")
        assert f"{run.label}: no parameters saved, it {words}".replace("it not", "it is not") in (
            capsys.readouterr().out
        )
    assert not (tmp_path / "weights").exists()


def test_a_file_that_is_no_trained_model_is_named(trained, tmp_path):
    pytest.importorskip("torch")
    run, _ = trained("ssm_a5", "RNN")
    save_models("ssm_a5", [run], tmp_path)
    good = tmp_path / f"{run.record.stem}.safetensors"
    made, parameters = read_weights(good)
    path = tmp_path / "odd.safetensors"

    def written(parameters, made=made):
        return save(parameters, {"run": made.model_dump_json()})

    (name, first), *rest = parameters.items()
    wider = made.model_copy(update={"config": {**made.config, "hidden_dim": 16}})
    for content in (
        b"words",
        good.read_bytes()[:-1],
        save(parameters),
        save(parameters, {"run": "{}"}),
        written(dict(rest)),
        written({**parameters, "more": first}),
        written({**parameters, name: first[:-1]}),
        written(parameters, wider),
    ):
        path.write_bytes(content)
        with pytest.raises(ResultFileError, match=r"odd\.safetensors: "):
            load_model(path, "cpu")
    path.unlink()
    path.mkdir()
    with pytest.raises(ResultFileError, match=r"odd\.safetensors: "):
        load_model(path, "cpu")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_model(tmp_path / "nowhere")


def test_leaves_of_a_model_that_do_not_fit_are_named(jax):
    from experiments.lcde_training import named_leaves, with_leaves
    from linear_cde import A5LinearCDE

    model = A5LinearCDE(5, 4, key=jax.random.key(0))
    leaves = named_leaves(model)
    for odd in (
        {**leaves, "out.bias": leaves["out.bias"][:-1]},
        {**leaves, "more": leaves["embedding"]},
    ):
        with pytest.raises(ValueError, match=r"as (out\.bias|more), where the model has"):
            with_leaves(model, odd)
    del leaves["out.bias"]
    with pytest.raises(ValueError, match=r"nothing as out\.bias"):
        with_leaves(model, leaves)


def test_the_command_saves_models_of_runs_it_does_and_of_those_done_before(tmp_path, capsys):
    pytest.importorskip("torch", reason="the other environment's")
    words = ["-m", "SequenceModel", "-e", "A5", "-n", "RNN", "-l", "4", "-d", "1"]
    words += ["--data-dir", str(tmp_path), "--results-dir", str(tmp_path / "results")]
    settings = {"hidden_dim": 8, "samples": 200, "epochs": 1, "num_heads": 2, "batch_size": 8}
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    (done, before) = (tmp_path / "weights", tmp_path / "weights again")
    assert main([*words, "--save-model", str(done)]) == 0
    assert main([*words, "--save-model", str(before)]) == 0
    (first,), (second,) = done.iterdir(), before.iterdir()
    assert first.read_bytes() == second.read_bytes()
    first.write_bytes(b"mine")
    assert main([*words, "--save-model", str(done)]) == 2
    assert f"{first} holds something else" in capsys.readouterr().err
    assert first.read_bytes() == b"mine"


def test_a_run_that_diverges_does_not_keep_the_others_from_being_saved(tmp_path, capsys):
    pytest.importorskip("torch", reason="the other environment's")
    words = ["-m", "SequenceModel", "-e", "A5", "-n", "RNN", "-l", "4", "--set", "depths=[1,2]"]
    words += ["--data-dir", str(tmp_path), "--results-dir", str(tmp_path / "results")]
    settings = {"hidden_dim": 8, "samples": 200, "epochs": 1, "num_heads": 2, "batch_size": 8}
    settings |= {"search": "false", "learning_rates": "{RNN: [1.0e+38, 1.0e-4]}"}
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    assert main([*words, "--save-model", str(tmp_path / "weights")]) == 1
    assert "error: A5 length 4, RNN, depth 1 diverged: " in capsys.readouterr().err
    assert [path.name[:7] for path in (tmp_path / "weights").iterdir()] == ["RNN_4_2"]


def test_the_random_linear_cde_has_nothing_to_save(tmp_path, capsys):
    words = ["-m", "LCDE", "-e", "toy", "--results-dir", str(tmp_path / "results")]
    assert main([*words, "--save-model", str(tmp_path / "weights")]) == 2
    assert "--save-model: random Linear CDEs are drawn" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
