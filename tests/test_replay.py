"""What is committed is what this code makes: configs, the beginnings of curves, the weights."""

import re
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from experiments.schema import load_config
from experiments.weights import load_model, read_weights
from harness.file_names import A5CurveKey, A5ScoreKey, ToyCurveKey, ToyScoreKey, parse_name
from harness.paths import (
    A5_RESULTS,
    CONFIG_FOLDER,
    RESULTS_DIR,
    ROOT,
    THEORY_RESULTS,
    TOY_RESULTS,
)
from harness.records import Status, read_record, run_state
from recorded import planned

FOLDERS = (TOY_RESULTS, A5_RESULTS)
COMMITTED = [RESULTS_DIR, *(RESULTS_DIR / name for name in ("tf32", "tf32_cpu", "gpu"))]
COMMITTED += sorted((RESULTS_DIR / "other_seeds").iterdir())
RECORDS = [p for root in COMMITTED for n in FOLDERS for p in sorted((root / n).glob("*.json"))]
THEORY = sorted((RESULTS_DIR / THEORY_RESULTS).glob("*.json"))
WEIGHTS = sorted((RESULTS_DIR / "weights").glob("*.safetensors"))
EXPERIMENTS = {
    ToyScoreKey: "lcde_toy",
    ToyCurveKey: "ssm_toy",
    A5ScoreKey: "lcde_a5",
    A5CurveKey: "ssm_a5",
}
# What another CPU may make of the last bits. Of 129,600 tokens or more some have two logits that
# rounding puts the other way; an RMSE is of float32 sums over 100 positions and 256 states.
TOLERANCE = {"accuracy": {"abs": 2e-4}, "rmse": {"rel": 1e-4}}

# All validation rows of the wide models take minutes: so many parts of so many stand for them, to
# within four standard errors of their mean.
CHUNKS, CHUNK = 20, 50


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Data are made here when a run asks for them: those of length 3 in seconds, the toy data in
    half a minute.
    """
    folder = tmp_path_factory.mktemp("data")
    yield folder
    shutil.rmtree(folder)


def kind_of(record: Path) -> type:
    return type(parse_name(f"{record.stem}.npy"))


def is_of(run, record) -> bool:
    """Whether a record is a run's: its config and the names of its files."""
    return (run.config, {f.name for f in run.files}) == (record.config, record.files.keys())


def experiment_of(name: str):
    """The module that makes results of a file's name, where its frameworks are installed."""
    found = EXPERIMENTS[type(parse_name(f"{name}.npy"))]
    for framework in {"lcde_a5": ["jax"], "ssm_a5": ["torch"], "ssm_toy": ["torch", "jax"]}[found]:
        pytest.importorskip(framework, reason="the other environment's, or it makes the data")
    return import_module(f"experiments.{found}")


def evaluation(experiment, config, run, data_dir):
    """The metric's name, and its value before any update."""
    found = []

    def evaluate(run, prepared, origin):
        found.append((prepared.metric, prepared.trainable.evaluate()))
        return ""

    experiment.run(config, [run], data_dir, "cpu", evaluate)
    return found[0]


def test_every_committed_measurement_of_the_theory_is_a_done_run_of_the_shipped_config():
    theory = import_module("experiments.theory")
    config = load_config(theory.Config, CONFIG_FOLDER / "theory.yaml", {})
    runs = {run.record: run for run in theory.plan(config, RESULTS_DIR)}
    assert set(THEORY) <= runs.keys()
    assert [path for path in THEORY if run_state(runs[path]).status is not Status.DONE] == []


def test_no_committed_record_names_a_folder_of_one_machine():
    found = {path for path in [*RECORDS, *THEORY] if re.search(r'[" =]/\w', path.read_text())}
    assert found == set()


@pytest.mark.parametrize("kind", EXPERIMENTS, ids=EXPERIMENTS.values())
def test_every_committed_result_is_a_run_of_the_shipped_config(kind, tmp_path):
    experiment = import_module(f"experiments.{EXPERIMENTS[kind]}")
    records = {path: read_record(path) for path in RECORDS if kind_of(path) is kind}
    runs = {path: planned(experiment, r.config, tmp_path)[1] for path, r in records.items()}
    assert records
    assert [path for path, run in runs.items() if not is_of(run, records[path])] == []
    assert all(run.record.name == path.name for path, run in runs.items())


@pytest.mark.parametrize(
    "path",
    [
        f"{A5_RESULTS}/linear_cde_length_3_steps.json",
        f"{A5_RESULTS}/RNN_3_1_0.0001_1024_steps_run_2345.json",
        f"{TOY_RESULTS}/steps_100_S4_False_1_0.0001_256_2_run_0.json",
    ],
)
def test_a_committed_curve_begins_as_this_code_evaluates_it(path, data_dir, tmp_path):
    record, experiment = read_record(RESULTS_DIR / path), experiment_of(Path(path).stem)
    config, run = planned(experiment, record.config, tmp_path)
    metric, value = evaluation(experiment, config, run, data_dir)
    assert record.history["steps"][0] == 0
    assert value == pytest.approx(record.history[metric][0], **TOLERANCE[metric])


def test_the_weights_that_the_results_page_names_are_there_and_no_others():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    named = re.findall(r"[\w.]+\.safetensors", page)
    assert sorted(set(named)) == [path.name for path in WEIGHTS]


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: path.stem)
def test_committed_weights_have_their_records_last_metric(path, data_dir, tmp_path):
    made, _ = read_weights(path)
    experiment = experiment_of(path.stem)
    folder = TOY_RESULTS if made.experiment == "ssm_toy" else A5_RESULTS
    record = read_record(RESULTS_DIR / folder / f"{path.stem}.json")
    assert (made.config, made.commit) == (record.config, record.provenance.commit)
    config, run = planned(experiment, made.config, tmp_path)
    model, power = load_model(path, "cpu"), {"accuracy": 1, "rmse": 2}  # of what a mean is taken
    found = []

    def evaluate(run, prepared, origin):
        trainable, rows = prepared.trainable, prepared.trainable.validation
        if hasattr(trainable, "state"):
            trainable.state = trainable.state._replace(model=model)
        else:
            trainable.model = model
        for i in range(0, CHUNKS * CHUNK, CHUNK):
            trainable.validation = [x[i : i + CHUNK] for x in rows]
            found.append(trainable.evaluate() ** power[prepared.metric])
        found.append(record.history[prepared.metric][-1] ** power[prepared.metric])
        return ""

    experiment.run(config, [run], data_dir, "cpu", evaluate)
    *parts, recorded = found
    error = np.std(parts, ddof=1) / np.sqrt(CHUNKS)
    assert error < 0.15 * recorded  # a bad model is not let off for its scatter
    assert np.mean(parts) == pytest.approx(recorded, abs=4 * error + 1e-4)
