"""The committed report is that of the committed results, which are in nobody's way."""

import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from experiments.schema import load_config
from harness.paths import CONFIG_FOLDER, ROOT
from harness.records import Status, run_state
from run_experiment import EXPERIMENTS


@pytest.fixture
def committed_results(tmp_path) -> Path:
    """A copy of the results that git has, as they are in the working tree."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a git clone, which says what is committed")
    command = ["git", "ls-files", "-z", "results"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path / "results"


def test_the_committed_report_is_what_make_check_writes(committed_results):
    names = ("REPORT.md", "report.html")
    before = {name: (committed_results / name).read_bytes() for name in names}
    command = [sys.executable, ROOT / "compare_to_paper.py", "--report"]
    subprocess.run(
        [*command, "--results-dir", committed_results], cwd="/", capture_output=True, check=True
    )
    stale = [n for n in names if (committed_results / n).read_bytes() != before[n]]
    assert not stale, f"results/{' and results/'.join(stale)}: stale, run 'make check' and commit"


@pytest.mark.parametrize("name", EXPERIMENTS.values())
def test_the_papers_own_commands_are_not_refused_for_the_committed_results(name, committed_results):
    experiment = import_module(f"experiments.{name}")
    config = load_config(experiment.Config, CONFIG_FOLDER / f"{name}.yaml", overrides={})
    states = [run_state(run) for run in experiment.plan(config, committed_results)]
    assert [state.reason for state in states if state.status is Status.CONFLICT] == []
