"""The committed report is that of the committed results."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from result_files import REPO_ROOT


@pytest.fixture
def committed_results(tmp_path) -> Path:
    """A copy of the results that git has, as they are in the working tree."""
    if not (REPO_ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a git clone, which says what is committed")
    command = ["git", "ls-files", "-z", "results"]
    listed = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO_ROOT / name, tmp_path / name)
    return tmp_path / "results"


def test_the_committed_report_is_what_make_check_writes(committed_results):
    names = ("REPORT.md", "report.html")
    before = {name: (committed_results / name).read_bytes() for name in names}
    command = [sys.executable, REPO_ROOT / "compare_to_paper.py", "--report"]
    subprocess.run(
        [*command, "--results-dir", committed_results], cwd="/", capture_output=True, check=True
    )
    stale = [n for n in names if (committed_results / n).read_bytes() != before[n]]
    assert not stale, f"results/{' and results/'.join(stale)}: stale, run 'make check' and commit"
