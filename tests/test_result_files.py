import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import result_files
from result_files import TOY_FOLDER, ToyCurveKey, load_toy_results

KEY = ToyCurveKey("Mamba", 2, True, 3, 0.0001, 256, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / TOY_FOLDER
    folder.mkdir()
    return folder


def write_score(folder: Path, input_dim: int = 2, run: int = 0, mse: float = 4e-8) -> Path:
    path = folder / result_files.toy_lcde_name(input_dim, run)
    np.save(path, np.array(mse))
    return path


def write_curve(folder: Path, key: ToyCurveKey, steps=(0, 10000), rmse=(0.2, 0.1)) -> None:
    np.save(folder / result_files.toy_steps_name(key), np.array(steps))
    np.save(folder / result_files.toy_rmse_name(key), np.array(rmse))


def test_names_are_those_of_the_released_files():
    assert result_files.toy_lcde_name(2, 0) == "lin_cde_mse_2_run_0.npy"
    assert result_files.toy_steps_name(KEY) == "steps_100_Mamba_True_2_0.0001_256_3_run_4.npy"
    assert result_files.toy_rmse_name(KEY) == "rmse_100_Mamba_True_2_0.0001_256_3_run_4.npy"
    assert result_files.a5_lcde_name(20, "val_accs") == "linear_cde_length_20_val_accs.npy"
    name = result_files.a5_curve_name("S4", 5, 2, 0.0001, 1024, "acc", 2345)
    assert name == "S4_5_2_0.0001_1024_acc_run_2345.npy"


@pytest.mark.parametrize("key", [KEY, replace(KEY, nonlinear=False, learning_rate=1e-05)])
def test_a_name_says_what_it_was_made_from(key):
    assert result_files.parse_toy_curve_name(result_files.toy_steps_name(key)) == ("steps", key)
    assert result_files.parse_toy_curve_name(result_files.toy_rmse_name(key)) == ("rmse", key)
    assert result_files.parse_toy_lcde_name(result_files.toy_lcde_name(3, 12)) == (3, 12)


@pytest.mark.parametrize(
    "name",
    [
        "rmse_100_Mamba_true_2_0.0001_256_3_run_4.npy",
        "rmse_100_Mamba_True_2_0.0.1_256_3_run_4.npy",
        "rmse_100_Mamba_True_2_0.0001_256_3_run_4.npy.tmp",
        ".lin_cde_mse_2_run_0.npy",
        "lin_cde_mse_2_run_0.npy.tmp",
    ],
)
def test_other_names_are_not_taken_for_results(name):
    assert result_files.parse_toy_curve_name(name) is None
    assert result_files.parse_toy_lcde_name(name) is None


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
        return lambda path: np.save(path, array, allow_pickle=True)

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
    np.save(folder / result_files.toy_lcde_name(2, 0), trap, allow_pickle=True)
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
    (folder / result_files.toy_steps_name(KEY)).unlink()
    results = load_toy_results(tmp_path)
    assert results.curves == []
    missing = folder / result_files.toy_steps_name(KEY)
    assert [str(problem) for problem in results.problems] == [f"{missing}: is missing"]


def test_the_config_comes_from_the_record_beside_the_result(tmp_path, folder):
    write_score(folder, run=0)
    path = write_score(folder, run=1)
    path.with_suffix(".json").write_text(json.dumps({"config": {"hidden_dim": 8}}))
    results = load_toy_results(tmp_path)
    assert [score.config for score in results.scores] == [{}, {"hidden_dim": 8}]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config": 3}'])
def test_a_damaged_record_is_named_and_its_result_kept(tmp_path, folder, text):
    record = write_score(folder).with_suffix(".json")
    record.write_text(text)
    results = load_toy_results(tmp_path)
    assert len(results.scores) == 1
    assert [problem.path for problem in results.problems] == [record]


def test_departures_names_only_settings_that_differ():
    paper = {"hidden_dim": 256, "seed": 2345, "solver": "tsit5"}
    assert result_files.departures({"hidden_dim": 256, "solver": "tsit5"}, paper) == []
    assert result_files.departures({"hidden_dim": 8}, paper) == ["hidden_dim 8, paper 256"]


def test_a_missing_folder_is_an_error_and_an_empty_one_is_not(tmp_path):
    results = load_toy_results(tmp_path)
    assert (results.scores, results.curves, results.problems) == ([], [], [])
    with pytest.raises(NotADirectoryError, match="nowhere"):
        load_toy_results(tmp_path / "nowhere")
