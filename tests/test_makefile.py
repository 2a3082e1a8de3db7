"""What `make figures` and `make check` do, with the environment that runs the tests."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from a5_runs import write_run
from harness.file_names import ToyScoreKey
from harness.paths import ROOT, TOY_RESULTS
from verdict.results import LINEAR_CDE

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(target: str, results_dir: Path, *options) -> subprocess.CompletedProcess:
    installed = ["-o", ".venv/plots.installed", f"BIN={Path(sys.executable).parent}"]
    command = ["make", target, *installed, f"RESULTS={results_dir}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def write_toy(results_dir: Path) -> None:
    (results_dir / TOY_RESULTS).mkdir()
    np.save(results_dir / TOY_RESULTS / ToyScoreKey(2, 0).names[0], np.array(4e-8))


def test_figures_and_check_make_all_from_the_results_there_are(tmp_path):
    write_toy(tmp_path)
    write_run(tmp_path, LINEAR_CDE, 1, 3)
    for target in ("figures", "check"):
        done = make(target, tmp_path)
        assert (done.returncode, "Error" in done.stderr) == (0, False), done.stderr
    assert sorted(path.name for path in tmp_path.glob("*.*")) == [
        "A5_plot_shaded_regions.pdf",
        "A5_plot_shaded_regions.png",
        "A5_plot_shaded_regions_curves.pdf",
        "A5_plot_shaded_regions_curves.png",
        "REPORT.md",
        "report.html",
        "rmse_subplots.pdf",
        "rmse_subplots.png",
    ]
    report = (tmp_path / "REPORT.md").read_text(encoding="utf-8")
    assert "![Figure 1](rmse_subplots.png)" in report


def test_figures_of_one_experiment_are_made_without_the_other(tmp_path):
    write_toy(tmp_path)
    assert make("figures", tmp_path).returncode == 0
    assert sorted(path.suffix for path in tmp_path.glob("*.*")) == [".pdf", ".png"]


@pytest.mark.parametrize("target", ["figures", "check"])
def test_without_results_make_fails_with_a_message_and_writes_nothing(tmp_path, target):
    done = make(target, tmp_path)
    assert done.returncode != 0
    assert f"results in {tmp_path}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_both_take_the_committed_results_where_nothing_else_is_said():
    for target in ("figures", "check"):
        command = ["make", "-n", target, "-o", ".venv/plots.installed"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert "--results-dir results " in done.stdout
