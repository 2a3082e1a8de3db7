import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness import file_names
from harness.file_names import A5CurveKey, ToyCurveKey, load_a5_results, load_toy_results
from harness.paths import A5_RESULTS, TOY_RESULTS

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


def write_a5_lcde(folder: Path, length=3, steps=(0, 10000), accuracies=(0.02, 0.99)) -> list[Path]:
    paths = [folder / file_names.a5_lcde_name(length, kind) for kind in ("steps", "val_accs")]
    np.save(paths[0], np.array(steps))
    np.save(paths[1], np.array(accuracies))
    return paths


def write_a5_curve(folder: Path, key: A5CurveKey) -> list[Path]:
    paths = [folder / file_names.a5_curve_name(**vars(key), kind=k) for k in ("steps", "acc")]
    np.save(paths[0], np.array((0, 10000)))
    np.save(paths[1], np.array((0.02, 0.95)))
    return paths


def write_score(folder: Path, input_dim: int = 2, run: int = 0, mse: float = 4e-8) -> Path:
    path = folder / file_names.toy_lcde_name(input_dim, run)
    np.save(path, np.array(mse))
    return path


def write_curve(folder: Path, key: ToyCurveKey, steps=(0, 10000), rmse=(0.2, 0.1)) -> None:
    np.save(folder / file_names.toy_steps_name(key), np.array(steps))
    np.save(folder / file_names.toy_rmse_name(key), np.array(rmse))


def test_names_are_those_of_the_released_files():
    assert file_names.toy_lcde_name(2, 0) == "lin_cde_mse_2_run_0.npy"
    assert file_names.toy_steps_name(KEY) == "steps_100_Mamba_True_2_0.0001_256_3_run_4.npy"
    assert file_names.toy_rmse_name(KEY) == "rmse_100_Mamba_True_2_0.0001_256_3_run_4.npy"
    assert file_names.a5_lcde_name(20, "val_accs") == "linear_cde_length_20_val_accs.npy"
    name = file_names.a5_curve_name("S4", 5, 2, 0.0001, 1024, "acc", 2345)
    assert name == "S4_5_2_0.0001_1024_acc_run_2345.npy"
    name = file_names.a5_curve_name(**vars(A5_KEY), kind="acc")
    assert name == "Transformer_16_4_0.0002_1024_64_acc_run_2345.npy"


@pytest.mark.parametrize("key", [KEY, replace(KEY, nonlinear=False, learning_rate=1e-05)])
def test_a_name_says_what_it_was_made_from(key):
    assert file_names.parse_toy_curve_name(file_names.toy_steps_name(key)) == ("steps", key)
    assert file_names.parse_toy_curve_name(file_names.toy_rmse_name(key)) == ("rmse", key)
    assert file_names.parse_toy_lcde_name(file_names.toy_lcde_name(3, 12)) == (3, 12)


@pytest.mark.parametrize(
    "key", [A5_KEY, replace(A5_KEY, batch_size=None), replace(A5_KEY, learning_rate=1e-05)]
)
@pytest.mark.parametrize("kind", ["steps", "acc"])
def test_an_a5_name_says_what_it_was_made_from(key, kind):
    name = file_names.a5_curve_name(**vars(key), kind=kind)
    assert file_names.parse_a5_curve_name(name) == (kind, key)
    assert file_names.parse_a5_lcde_name(name) is None


def test_an_a5_name_of_the_linear_cde_says_its_length():
    for kind in ("steps", "val_accs"):
        name = file_names.a5_lcde_name(20, kind)
        assert file_names.parse_a5_lcde_name(name) == (kind, 20)
        assert file_names.parse_a5_curve_name(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "S4_5_2_0.0001_1024_acc_run_2345.npy.tmp",
        ".S4_5_2_0.0001_1024_acc_run_2345.npy",
        "S4_5_2_0.0.1_1024_acc_run_2345.npy",
        "S4_5_2_0.0001_1024_rmse_run_2345.npy",
        "S4_5_2_0.0001_1024_64_32_acc_run_2345.npy",
        "linear_cde_length_3_accs.npy",
        ".linear_cde_length_3_steps.npy",
    ],
)
def test_other_names_are_not_taken_for_a5_results(name):
    assert file_names.parse_a5_curve_name(name) is None
    assert file_names.parse_a5_lcde_name(name) is None


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
    assert file_names.parse_toy_curve_name(name) is None
    assert file_names.parse_toy_lcde_name(name) is None


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
    np.save(folder / file_names.toy_lcde_name(2, 0), trap, allow_pickle=True)
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
    (folder / file_names.toy_steps_name(KEY)).unlink()
    results = load_toy_results(tmp_path)
    assert results.curves == []
    missing = folder / file_names.toy_steps_name(KEY)
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
    assert file_names.departures({"hidden_dim": 256, "solver": "tsit5"}, paper) == []
    assert file_names.departures({"hidden_dim": 8}, paper) == ["hidden_dim 8, paper 256"]


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


def test_an_a5_config_is_that_of_the_record_and_of_the_name(tmp_path, a5_folder):
    for steps, _ in (write_a5_lcde(a5_folder), write_a5_curve(a5_folder, A5_KEY)):
        record = {"config": {"eval_interval": 1000, "hidden_dim": 8}}
        steps.with_suffix(".json").write_text(json.dumps(record))
    linear_cde, transformer = load_a5_results(tmp_path).curves
    assert linear_cde.config == {"eval_interval": 1000, "hidden_dim": 8}
    assert transformer.config == {"eval_interval": 1000, **vars(A5_KEY)}


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


def test_a_damaged_a5_record_is_named_and_its_result_kept(tmp_path, a5_folder):
    record = write_a5_lcde(a5_folder)[0].with_suffix(".json")
    record.write_text("{")
    results = load_a5_results(tmp_path)
    assert [curve.config for curve in results.curves] == [{}]
    assert [problem.path for problem in results.problems] == [record]
