import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.file_names import A5CurveKey, A5ScoreKey, ToyCurveKey, ToyScoreKey
from harness.paths import A5_RESULTS, TOY_RESULTS
from recorded import write_record
from verdict.results import load_a5_results, load_toy_results, predicting_zero, published_results

ZERO = published_results()["figure_1"]["predicting_zero"]["rmse"]
KEY = ToyCurveKey("Mamba", 2, True, 3, 0.0001, 256, 4)
A5_KEY = A5CurveKey("Transformer", 16, 4, 0.0002, 1024, 2345, 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / TOY_RESULTS
    folder.mkdir()
    return folder


@pytest.fixture
def a5_folder(tmp_path: Path) -> Path:
    folder = tmp_path / A5_RESULTS
    folder.mkdir()
    return folder


def write_a5_lcde(folder, length=3, steps=(0, 10000), accuracies=(0.02, 0.99)) -> tuple:
    paths = A5ScoreKey(length).paths(folder)
    np.save(paths[0], np.array(steps))
    np.save(paths[1], np.array(accuracies))
    return paths


def write_a5_curve(folder: Path, key: A5CurveKey) -> tuple[Path, ...]:
    paths = key.paths(folder)
    np.save(paths[0], np.array((0, 10000)))
    np.save(paths[1], np.array((0.02, 0.95)))
    return paths


def write_score(folder: Path, input_dim: int = 2, run: int = 0, mse: float = 4e-8) -> Path:
    (path,) = ToyScoreKey(input_dim, run).paths(folder)
    np.save(path, np.array(mse))
    return path


def write_curve(folder: Path, key: ToyCurveKey, steps=(0, 10000), rmse=(0.2, 0.1)) -> None:
    for path, values in zip(key.paths(folder), (steps, rmse), strict=True):
        np.save(path, np.array(values))


def test_all_results_of_a_folder_are_found_in_order(tmp_path, folder):
    for run in (10, 2):
        write_score(folder, run=run, mse=run * 1e-8)
    write_curve(folder, KEY)
    write_curve(folder, replace(KEY, run=0), rmse=(0.3, 0.2))
    results = load_toy_results(tmp_path)
    assert [(score.run, score.mse) for score in results.scores] == [(2, 2e-8), (10, 1e-7)]
    assert [curve.key.run for curve in results.curves] == [0, 4]
    assert results.curves[0].steps.tolist() == [0, 10000]
    assert results.curves[0].rmse.tolist() == [0.3, 0.2]
    assert results.problems == []


def broken_score_files() -> dict:
    def save(array):
        return lambda path: np.save(path, array)

    def truncate(path):
        path.write_bytes(path.read_bytes()[:-3])

    def archive(path):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("mse.npy", b"")

    return {
        "truncated": truncate,
        "empty": lambda path: path.write_bytes(b""),
        "header cut": lambda path: path.write_bytes(path.read_bytes()[:60]),
        "header damaged": lambda path: path.write_bytes(
            path.read_bytes().replace(b"(), }", b"((  }")
        ),
        "pickle": lambda path: path.write_bytes(pickle.dumps(4e-8)),
        "object array": save(np.array(None)),
        "archive": archive,
        "text": save(np.array("4e-8")),
        "complex": save(np.array(1j)),
        "one axis too many": save(np.array([4e-8])),
        "NaN": save(np.array(np.nan)),
        "infinite": save(np.array(np.inf)),
        "negative": save(np.array(-4e-8)),
    }


@pytest.mark.parametrize("defect", broken_score_files())
def test_an_unusable_file_is_named_and_the_others_are_kept(tmp_path, folder, defect):
    write_score(folder, run=1)
    broken = write_score(folder, run=0)
    broken_score_files()[defect](broken)
    results = load_toy_results(tmp_path)
    assert [score.run for score in results.scores] == [1]
    assert [problem.path for problem in results.problems] == [broken]
    assert str(broken) in str(results.problems[0])


class WritesAFile:
    """Unpickling this writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "code ran")


def test_reading_a_result_never_runs_code_from_the_file(tmp_path, folder):
    trap = np.empty((), dtype=object)
    trap[()] = WritesAFile(tmp_path / "written")
    np.save(ToyScoreKey(2, 0).paths(folder)[0], trap)
    assert len(load_toy_results(tmp_path).problems) == 1
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("steps", "rmse", "reason"),
    [
        ((0, 10000), (0.2,), "1 values for 2 steps"),
        ((10000, 0), (0.2, 0.1), "do not increase"),
        ((-1, 0), (0.2, 0.1), "do not increase"),
        ((0, 10000), (0.2, np.nan), "NaN"),
        ((0, 10000), (0.2, 0.0), "not positive"),
        ((), (), "shape (0,)"),
        ((0, 10000), ((0.2, 0.1),), "shape (1, 2)"),
    ],
)
def test_an_inconsistent_curve_is_named_and_skipped(tmp_path, folder, steps, rmse, reason):
    write_curve(folder, KEY, steps, rmse)
    results = load_toy_results(tmp_path)
    assert results.curves == []
    assert reason in str(results.problems[-1])


def test_half_a_curve_is_reported_with_the_name_of_the_missing_half(tmp_path, folder):
    write_curve(folder, KEY)
    KEY.paths(folder)[0].unlink()
    results = load_toy_results(tmp_path)
    assert results.curves == []
    missing = KEY.paths(folder)[0]
    assert [str(problem) for problem in results.problems] == [f"{missing}: is missing"]


def test_our_own_results_are_found_by_their_records_whatever_their_names(tmp_path, folder):
    score, curve = folder / "a.npy", [folder / "steps of b.npy", folder / "b.npy"]
    np.save(score, np.array(4e-8))
    np.save(curve[0], np.array((0, 10000)))
    np.save(curve[1], np.array((0.2, 0.1)))
    write_record([score], {"input_dim": 3, "run": 7, "hidden_dim": 8})
    write_record(curve, {**vars(KEY), "max_steps": 10000})
    results = load_toy_results(tmp_path)
    assert results.problems == []
    (found,) = results.scores
    assert (found.input_dim, found.run, found.mse, found.config["hidden_dim"]) == (3, 7, 4e-8, 8)
    (found,) = results.curves
    assert (found.key, found.config["max_steps"], found.rmse.tolist()) == (KEY, 10000, [0.2, 0.1])


def test_a_recorded_file_is_no_second_result_and_its_neighbour_has_no_config(tmp_path, folder):
    write_score(folder, run=0)
    write_record([write_score(folder, run=1)], {"input_dim": 2, "run": 1, "hidden_dim": 8})
    scores = load_toy_results(tmp_path).scores
    assert [(score.run, score.config.get("hidden_dim")) for score in scores] == [(0, None), (1, 8)]


def test_a_run_that_was_not_needed_leaves_a_record_and_no_problem(tmp_path, a5_folder):
    record = {"config": vars(A5_KEY), "files": {}, "outcome": "not needed"}
    (a5_folder / "run.json").write_text(json.dumps(record))
    results = load_a5_results(tmp_path)
    assert (results.curves, results.problems) == ([], [])


@pytest.mark.parametrize(
    "config",
    [{"run": 0}, {"input_dim": "2", "run": 0}, {"input_dim": [2], "run": 0}, {"model": "S4"}],
)
def test_a_record_that_is_of_no_run_is_named_and_its_result_found_by_name(tmp_path, folder, config):
    record = write_record([write_score(folder)], config)
    results = load_toy_results(tmp_path)
    assert [(score.input_dim, score.config) for score in results.scores] == [(2, {})]
    assert [problem.path for problem in results.problems] == [record]
    assert "not the record of one run" in results.problems[0].reason


def test_a_record_of_more_files_than_its_run_has_is_named(tmp_path, folder):
    record = write_record(
        [write_score(folder), write_score(folder, run=1)], {"input_dim": 2, "run": 0}
    )
    results = load_toy_results(tmp_path)
    assert [score.run for score in results.scores] == [0, 1]
    assert [problem.path for problem in results.problems] == [record]


@pytest.mark.parametrize("odd", ["a folder", "[" * 100_000, '{"config": {}}'])
def test_an_odd_record_is_named_with_its_run_and_its_result_kept(tmp_path, folder, a5_folder, odd):
    paths = [write_score(folder, input_dim=3, run=4), write_a5_lcde(a5_folder, length=5)[0]]
    records = [path.with_suffix(".json") for path in paths]
    for record in records:
        if odd == "a folder":
            record.mkdir()
        else:
            record.write_text(odd)
    toy, a5 = load_toy_results(tmp_path), load_a5_results(tmp_path)
    assert [score.config for score in toy.scores] == [{}]
    assert [curve.config for curve in a5.curves] == [{}]
    problems = toy.problems + a5.problems
    assert [problem.path for problem in problems] == records
    assert [problem.key for problem in problems] == [ToyScoreKey(3, 4), A5ScoreKey(5)]


def test_a_missing_folder_is_an_error_and_an_empty_one_is_not(tmp_path):
    results = load_toy_results(tmp_path)
    assert (results.scores, results.curves, results.problems) == ([], [], [])
    with pytest.raises(NotADirectoryError, match="nowhere"):
        load_toy_results(tmp_path / "nowhere")
    results = load_a5_results(tmp_path)
    assert (results.curves, results.problems) == ([], [])
    with pytest.raises(NotADirectoryError, match="nowhere"):
        load_a5_results(tmp_path / "nowhere")


def test_all_a5_results_of_a_folder_are_found_in_order(tmp_path, a5_folder):
    write_a5_curve(a5_folder, A5_KEY)
    write_a5_curve(a5_folder, replace(A5_KEY, length=9, batch_size=None))
    write_a5_lcde(a5_folder, length=20)
    write_a5_lcde(a5_folder, length=3, accuracies=(0.02, 0.97))
    results = load_a5_results(tmp_path)
    cells = [(curve.model, curve.length, curve.depth) for curve in results.curves]
    assert cells == [
        ("Linear CDE", 3, 1),
        ("Linear CDE", 20, 1),
        ("Transformer", 9, 4),
        ("Transformer", 16, 4),
    ]
    assert results.curves[0].steps.tolist() == [0, 10000]
    assert results.curves[0].accuracies.tolist() == [0.02, 0.97]
    assert (results.curves[0].best, results.curves[0].last_step) == (0.97, 10000)
    assert "batch_size" not in results.curves[2].config
    assert results.curves[3].config == vars(A5_KEY)
    assert results.problems == []


def test_an_a5_config_is_that_of_the_record_or_else_of_the_name(tmp_path, a5_folder):
    config = {"eval_interval": 1000, "length": 3}
    write_record(write_a5_lcde(a5_folder), config)
    write_record(write_a5_curve(a5_folder, A5_KEY), {"eval_interval": 1000, **vars(A5_KEY)})
    write_a5_curve(a5_folder, replace(A5_KEY, length=18))
    linear_cde, recorded, released = load_a5_results(tmp_path).curves
    assert linear_cde.config == config
    assert recorded.config == {"eval_interval": 1000, **vars(A5_KEY)}
    assert released.config == {**vars(A5_KEY), "length": 18}


@pytest.mark.parametrize(
    ("steps", "accuracies", "reason"),
    [
        ((0, 10000), (0.2,), "1 values for 2 steps"),
        ((10000, 0), (0.2, 0.1), "do not increase"),
        ((0, 10000), (0.2, np.nan), "NaN"),
        ((0, 10000), (0.2, 99.3), "not between 0 and 1"),
        ((0, 10000), (-0.2, 0.9), "not between 0 and 1"),
        ((), (), "shape (0,)"),
        ((0, 10000), ((0.2, 0.1),), "shape (1, 2)"),
    ],
)
def test_an_inconsistent_a5_curve_is_named_and_the_others_kept(
    tmp_path, a5_folder, steps, accuracies, reason
):
    write_a5_lcde(a5_folder, 4)
    broken = write_a5_lcde(a5_folder, 3, steps, accuracies)
    results = load_a5_results(tmp_path)
    assert [curve.length for curve in results.curves] == [4]
    assert results.problems[-1].path == broken[1]
    assert reason in results.problems[-1].reason


@pytest.mark.parametrize("half", [0, 1])
def test_half_an_a5_curve_is_reported_with_the_name_of_the_missing_half(tmp_path, a5_folder, half):
    for paths in (write_a5_lcde(a5_folder), write_a5_curve(a5_folder, A5_KEY)):
        paths[half].unlink()
    results = load_a5_results(tmp_path)
    assert results.curves == []
    assert [problem.reason for problem in results.problems] == ["is missing"] * 2
    assert not any(problem.path.exists() for problem in results.problems)


def test_predicting_zero_is_the_rms_of_the_last_fifth_of_the_labels(tmp_path):
    (tmp_path / "toy_data").mkdir()
    labels = np.r_[np.ones(80), np.full(20, 0.5)].astype(np.float32)
    np.save(tmp_path / "toy_data" / "labels_2.npy", labels)
    problems = []
    expected = pytest.approx({2: 0.5, 3: ZERO[3]}, rel=1e-5)  # six digits are kept
    assert predicting_zero(tmp_path, ZERO, problems) == expected
    (tmp_path / "toy_data" / "labels_2.npy").write_bytes(b"no array")
    assert predicting_zero(tmp_path, ZERO, problems) == pytest.approx(ZERO, rel=1e-5)
    assert "labels_2.npy" in str(problems[0])


def test_predicting_zero_is_drawn_at_the_same_height_with_and_without_the_data(tmp_path):
    stored = predicting_zero(tmp_path, ZERO, [])
    (tmp_path / "toy_data").mkdir()
    for input_dim, computed in {2: 0.11195024621214368, 3: 0.058498099201524816}.items():
        np.save(tmp_path / "toy_data" / f"labels_{input_dim}.npy", np.full(20, computed))
    assert predicting_zero(tmp_path, ZERO, []) == stored
