"""The command as a user runs it: what it leaves, what it says, and what it refuses."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

import run_experiment
from experiments import lcde_toy
from experiments.schema import load_config
from harness import atomic_files
from harness.paths import CONFIG_FOLDER, ROOT
from harness.records import save_run
from run_experiment import build_parser, main, overrides

SCRIPT = Path(run_experiment.__file__).resolve()
RESULT = Path("outputs_toy") / "lin_cde_mse_2_run_0.npy"
EXPERIMENT = ["-m", "LCDE", "-e", "toy"]
TINY = {"hidden_dim": 8, "num_paths": 100, "runs": 1, "paper_data": "false"}


def settings(**values) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def as_user(*words, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run the script in a process of its own, from another folder."""
    command = [sys.executable, SCRIPT, *words]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )


@pytest.fixture
def data_dir(tmp_path, rng, lattice_walks, write_toy_files) -> Path:
    write_toy_files(
        tmp_path / "data", lattice_walks(120, 8, 2), rng.normal(size=120).astype(np.float32)
    )
    return tmp_path / "data"


@pytest.fixture
def results_dir(tmp_path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def command(data_dir, results_dir):
    """Make the command line of a tiny experiment in two dimensions."""

    def make(*words: str, **changes) -> list[str]:
        folders = ["--data-dir", str(data_dir), "--results-dir", str(results_dir)]
        return [*EXPERIMENT, "-i", "2", *folders, *settings(**(TINY | changes)), *words]

    return make


@pytest.fixture
def stored(command, results_dir):
    """The files of the tiny experiment's run, as if it were finished."""
    words = build_parser().parse_args(command())
    path = CONFIG_FOLDER / "lcde_toy.yaml"
    config = load_config(lcde_toy.Config, path, overrides(words, lcde_toy.Config))
    (run,) = lcde_toy.plan(config, results_dir)
    save_run(run, [np.asarray(0.5)], {"mse": 0.5}, {})
    return content(results_dir)


# What a run leaves


def test_a_run_from_another_folder_leaves_a_result_with_its_record(jax, data_dir, command):
    elsewhere = data_dir.parent / "elsewhere"
    elsewhere.mkdir()
    folders = ["--data-dir", "../data", "--results-dir", "mine"]
    words = [*EXPERIMENT, "-i", "2", "-s", "7", *settings(**TINY), *folders]
    done = as_user(*words, folder=elsewhere)
    assert done.returncode == 0, done.stderr
    path = elsewhere / "mine" / RESULT
    mse = np.load(path)
    assert mse.shape == () and np.isfinite(mse) and mse > 0
    assert f"2D run 0: MSE {mse:.6e} in " in done.stdout
    assert "2D: 100 paths, tsit5, shared flows: 9 distinct increments in 700 int" in done.stdout
    record = json.loads(path.with_suffix(".json").read_text())
    wanted = {"seed": 7, "hidden_dim": 8, "num_paths": 100, "input_dim": 2, "run": 0}
    assert wanted.items() <= record["config"].items()
    assert record["mse"] == mse
    assert record["solver"].startswith("tsit5, shared flows")
    assert 0 < record["features_s"] <= record["wall_time_s"]
    origin = record["provenance"]
    assert origin["threads"] >= 1  # of BLAS: they decide the last bits
    assert {"version", "command", "commit", "dirty", "device", "machine"} <= set(origin)
    assert datetime.fromisoformat(origin["started"]).tzinfo is not None
    assert {"jax", "diffrax", "scikit-learn"} <= set(origin["packages"])
    assert origin["data"].keys() == {"data_2.npy", "labels_2.npy"}

    again = ["--data-dir", str(data_dir), "--results-dir", str(elsewhere / "again")]
    assert main([*EXPERIMENT, "-i", "2", "-s", "7", *settings(**TINY), *again]) == 0
    assert (elsewhere / "again" / RESULT).read_bytes() == path.read_bytes()


def test_a_finished_run_is_not_repeated(stored, command, results_dir, capsys):
    assert main(command()) == 0
    assert "1 of 1 runs are done already" in capsys.readouterr().out
    assert content(results_dir) == stored


def test_results_of_another_config_are_refused_and_left_alone(stored, command, results_dir, capsys):
    assert main(command(rtol=0.5, seed=1)) == 2
    message = capsys.readouterr().err
    for words in (
        str(results_dir / RESULT),
        "rtol 0.01 where this run has 0.5",
        "seed 2345 where this run has 1",
        "--overwrite",
        "--results-dir",
    ):
        assert words in message
    assert content(results_dir) == stored


def test_overwrite_replaces_a_result_and_its_record(jax, stored, command, results_dir):
    words = command("--overwrite", solver="scan")
    assert main(words) == 0
    replaced = content(results_dir)
    assert set(replaced) == set(stored)
    assert all(replaced[name] != stored[name] for name in stored)
    assert main(command(solver="scan")) == 0
    assert content(results_dir) == replaced


def test_the_plan_lists_the_runs_and_touches_nothing(stored, command, results_dir, capsys):
    assert main(command("--plan", runs=2)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["done", "missing"]
    assert lines[2] == "2 runs: 1 done, 1 missing, 0 not needed, 0 conflict"
    assert content(results_dir) == stored


def test_the_plan_names_a_conflict_and_makes_no_folder(stored, command, results_dir, capsys):
    assert main(command("--plan", seed=1)) == 0
    assert re.match(r"conflict   2D run 0 .* has another config: seed", capsys.readouterr().out)
    elsewhere = results_dir.parent / "elsewhere"
    assert main([*EXPERIMENT, "--plan", "--results-dir", str(elsewhere)]) == 0
    assert "10 runs: 0 done, 10 missing, 0 not needed, 0 conflict" in capsys.readouterr().out
    assert not elsewhere.exists()


def test_paths_that_do_not_repeat_increments_are_solved_path_by_path_and_it_says_so(
    jax, command, data_dir, results_dir, rng, write_toy_files, capsys
):
    paths = rng.uniform(-1, 1, (120, 8, 2)).astype(np.float32)
    write_toy_files(data_dir, paths, rng.normal(size=120).astype(np.float32))
    assert main(command(solver="scan")) == 0
    reason = "path by path, though share_flows is true: the increments do not repeat"
    assert f"2D: 100 paths, scan, {reason}" in capsys.readouterr().out
    record = json.loads((results_dir / RESULT).with_suffix(".json").read_text())
    assert record["solver"].startswith(f"scan, {reason}")


# What is refused


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (
            ["--set", "hiden_dim=8"],
            "--set hiden_dim=8: unknown key 'hiden_dim', did you mean 'hidd",
        ),
        (["--set", "solver=rk4"], "--set solver=rk4: solver: 'rk4' should be 'tsit5' or 'scan'"),
        (["--set", "atol=-1"], "--set atol=-1: atol: -1 should be greater than 0"),
        (["--set", "rtol"], "--set rtol: expected KEY=VALUE"),
        (["--set", "rtol=["], "--set rtol=[: the value is not YAML"),
        (["-s", "["], "-s [: the value is not YAML"),
        (["-s", "-1"], "-s -1: seed: -1 should be greater than or equal to 0"),
        (["-s", "one"], "-s one: seed: 'one' should be a valid integer"),
        (["-l", "5"], "-l 5: does not apply to -m LCDE -e toy, which takes -s, -i"),
        (["-n", "S4"], "-n S4: does not apply to -m LCDE -e toy, which takes -s, -i"),
        (["-d", "2"], "-d 2: does not apply to -m LCDE -e toy"),
        (["-nl", "True"], "-nl True: does not apply to -m LCDE -e toy"),
        (["-s", "1", "--set", "seed=2"], "--set seed=2: 'seed' is set already by -s 1"),
        (["-s", "1", "-s", "2"], "-s 2: 'seed' is set already by -s 1"),
        (["--set", "dt0=1", "--set", "dt0=2"], "--set dt0=2: 'dt0' is set already by --set dt0=1"),
        (["-c", "no_such.yaml"], "no_such.yaml: no such config file; experiment_configs has "),
        (["--set", "matmul_precision=tf32"], "needs share_flows: false"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_refused_by_its_words(command, results_dir, capsys, words, found):
    assert main(command(*words)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {found}") or found in captured.err
    assert captured.out == "" and not results_dir.exists()


def test_the_input_dim_flag_takes_what_the_key_takes(command, capsys):
    words = [word if word != "2" else "4" for word in command()]
    assert main(words) == 2
    assert capsys.readouterr().err == "error: -i 4: input_dims: 4 should be 2 or 3\n"


def test_hidden_dim_must_be_positive(capsys):
    assert main([*EXPERIMENT, "--set", "hidden_dim=-1"]) == 2
    message = "error: --set hidden_dim=-1: hidden_dim: -1 should be greater than 0\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("words", [[], ["-m", "LCDE"], ["-m", "CDE", "-e", "toy"]])
def test_model_and_experiment_must_be_named(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_truncated_data_are_named_and_nothing_is_saved(jax, command, data_dir, results_dir, capsys):
    path = data_dir / "toy_data" / "data_2.npy"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(command(solver="scan")) == 1
    assert capsys.readouterr().err.startswith(f"error: {path}: not a readable .npy file")
    assert content(results_dir) == {}


def test_other_data_than_the_papers_are_refused_unless_the_config_allows_them(
    jax, command, results_dir, capsys
):
    assert main(command(paper_data="true")) == 1
    assert "the paper's is (100000, 100, 2)" in capsys.readouterr().err
    assert content(results_dir) == {}


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_in_the_way_of_the_results_is_named(command, results_dir, below, capsys):
    results_dir.touch()
    words = command()
    words[words.index(str(results_dir))] = str(results_dir / below)
    assert main(words) == 2
    message = f"error: the folder {results_dir / below / 'outputs_toy'} cannot be written"
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("share_flows", ["true", "false"])
def test_a_diverging_solve_saves_nothing_and_the_other_runs_are_done(
    jax, command, data_dir, results_dir, write_toy_files, share_flows, lattice_walks, capsys
):
    paths = np.full((120, 8, 2), 1e30, np.float32) * np.arange(8, dtype=np.float32)[:, None]
    write_toy_files(data_dir, lattice_walks(120, 8, 3), np.zeros(120, np.float32))
    write_toy_files(data_dir, paths, np.zeros(120, np.float32))
    words = command(solver="scan", share_flows=share_flows, input_dims="[2,3]")
    del words[words.index("-i") : words.index("-i") + 2]
    assert main(words) == 1
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    assert line.startswith("error: 2D run 0 diverged: ") and "features are not finite" in line
    assert {Path(name).stem for name in content(results_dir)} == {"lin_cde_mse_3_run_0"}


@pytest.mark.parametrize("share_flows", ["true", "false"])
def test_tolerances_that_cannot_be_met_are_an_error_that_says_so(
    jax, command, results_dir, share_flows, capsys
):
    assert main(command(rtol="1e-30", atol="1e-30", share_flows=share_flows)) == 1
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("error: "))
    assert line.startswith("error: 2D run 0 diverged: the solver failed: ") and "steps" in line
    assert content(results_dir) == {}


def test_a_split_that_leaves_no_path_to_train_on_is_refused(jax, command, capsys):
    assert main(command(num_paths=10, train_fraction=0.05, solver="scan")) == 2
    assert "train_fraction" in capsys.readouterr().err


def test_a_disk_that_fills_up_keeps_the_runs_before(jax, command, results_dir, monkeypatch, capsys):
    syncs = iter(range(9))

    def fsync(descriptor: int) -> None:
        if next(syncs) >= 3:  # the second run's first file
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    words = command(solver="scan", runs=3)
    with monkeypatch.context() as full_disk:
        full_disk.setattr(atomic_files.os, "fsync", fsync)
        assert main(words) == 1
    captured = capsys.readouterr()
    assert "No space left on device" in captured.err and "Traceback" not in captured.err
    assert set(content(results_dir)) == {
        str(results_dir / RESULT.with_suffix(end)) for end in (".npy", ".json")
    }
    assert main([*words, "--plan"]) == 0
    assert "3 runs: 1 done, 2 missing, 0 not needed, 0 conflict" in capsys.readouterr().out


@pytest.mark.processes
def test_ctrl_c_keeps_finished_runs_and_the_same_command_goes_on(jax, command, results_dir, capsys):
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *command(solver="scan", runs=5000)],
        # Where JAX is interrupted while it keeps what it compiled, the next process finds half.
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        while not (results_dir / RESULT).exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert errors.endswith("error: stopped; finished runs are kept, the same command goes on\n")
    assert not list(results_dir.rglob("*.tmp"))
    done = len(list(results_dir.rglob("*.npy")))
    before = content(results_dir)
    assert main(command(solver="scan", runs=done + 1)) == 0
    assert f"{done} of {done + 1} runs are done already" in capsys.readouterr().out
    after = content(results_dir)
    assert len(after) == 2 * (done + 1) and before.items() <= after.items()


def test_ctrl_c_while_overwriting_says_how_to_replace_what_was_not_begun(
    jax, command, results_dir, monkeypatch, capsys
):
    assert main(command(solver="scan", runs=2)) == 0
    words, save = command(solver="scan", runs=2, seed=7), lcde_toy.save_run

    def stopped(*saved):
        save(*saved)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(lcde_toy, "save_run", stopped)
        assert main([*words, "--overwrite"]) == 130
    assert "--overwrite --only LABEL" in capsys.readouterr().err
    assert main(words) == 2
    before = content(results_dir)
    assert main([*words, "--overwrite", "--only", "2D run 1"]) == 0
    kept = [name for name, data in content(results_dir).items() if data == before[name]]
    assert {Path(name).stem for name in kept} == {"lin_cde_mse_2_run_0"}
    assert main(words) == 0


def test_ctrl_c_counts_also_where_jax_turns_it_into_another_error(
    jax, command, monkeypatch, capsys
):
    def interrupted_in_a_callback(*_) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("Equality of global cache key led to an exception") from None

    monkeypatch.setattr("experiments.lcde_toy.run", interrupted_in_a_callback)
    handler = signal.getsignal(signal.SIGINT)
    assert main(command()) == 130
    assert capsys.readouterr().err.startswith("error: stopped; finished runs are kept")
    assert signal.getsignal(signal.SIGINT) is handler


# What each part needs


def path_with_fakes(folder: Path, **sources: str) -> str:
    """A PYTHONPATH on which packages of these names and sources come before the installed ones."""
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def test_without_jax_the_command_says_what_to_install(command, tmp_path):
    absent = "raise ModuleNotFoundError(\"No module named 'jax'\", name='jax')"
    python_path = path_with_fakes(tmp_path, jax=absent)
    done = as_user(*command(), folder=tmp_path, PYTHONPATH=python_path)
    assert done.returncode == 2
    assert re.match("error: (jax|diffrax) is not installed; install what this", done.stderr)
    assert "pip install -c requirements-lock.txt '.[jax]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_signax_missing_data_say_what_to_install(
    jax, command, data_dir, monkeypatch, capsys
):
    for path in (data_dir / "toy_data").iterdir():
        path.unlink()
    monkeypatch.setitem(sys.modules, "signax", None)
    assert main(command()) != 0
    message = capsys.readouterr().err
    assert "signax" in message and "pip install" in message and "Traceback" not in message


def test_cuda_that_is_not_there_is_refused_with_the_remedy(jax, command, tmp_path):
    done = as_user(*command("--device", "cuda"), folder=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --device cuda: this JAX finds no such device; install")
    assert "--device cpu" in done.stderr and "Traceback" not in done.stderr


def imported(modules: list[str], folder: Path, watched: dict[str, str]) -> list[str]:
    """Which of the watched packages importing these modules imports, in a fresh process."""
    code = f"import sys, {', '.join(modules)}; print(*(set({list(watched)}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path_with_fakes(folder, **watched)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_jax_part_never_imports_torch(jax, tmp_path):
    assert imported(["linear_cde", "sklearn.linear_model"], tmp_path, {"torch": ""}) == []


def test_the_linear_cde_imports_no_readout_before_one_is_fitted(jax, tmp_path):
    assert imported(["linear_cde"], tmp_path, {"sklearn": ""}) == []


def test_the_door_the_figures_and_the_comparison_import_no_framework(tmp_path):
    modules = ["run_experiment", "plot_toy", "compare_to_paper", "data_dir.datasets"]
    assert imported(modules, tmp_path, {"torch": "", "jax": ""}) == []
