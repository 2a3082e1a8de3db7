"""README and docs: short, answers first, links that lead somewhere, code and commands that run."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec

import pytest

from harness.paths import ROOT
from run_experiment import main

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data_dir" / "README.md"]
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_readme_is_at_most_1200_words():
    assert len(README.split()) <= 1200


def test_the_verdict_and_both_figures_stand_above_the_second_heading():
    first_screen = README.split("\n## ")[0]
    assert "Does it agree with the paper?" in first_screen
    assert re.search(r"of the 100 numbers", " ".join(first_screen.split()))
    for figure in ("results/rmse_subplots.png", "results/A5_plot_shaded_regions.png"):
        assert f"({figure})" in first_screen


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_are_there(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]
    names = re.findall(r"`((?:\w+/)+[\w.]*|\w+\.(?:py|yml|yaml|cff))`", text)
    folders = (ROOT, ROOT / "experiment_configs", page.parent)
    made = (
        "logs",
        "locks",
        "checkpoints",
        "results/local",
        "data_dir/toy_data",
        "data_dir/illusion",
    )
    absent = [n for n in names if not any((folder / n).exists() for folder in folders)]
    assert not [name for name in absent if not name.startswith(made)]


@pytest.mark.parametrize("code", EXAMPLES, ids=["LinearCDE", "selective_scan"])
def test_the_readmes_code_runs_from_any_folder(code, tmp_path):
    framework = "jax" if "import jax" in code else "torch"
    if not find_spec(framework):
        pytest.skip(f"needs {framework}")
    check = {
        "jax": "assert [z.shape for z in states] == [(256,)] * 2",
        "torch": "assert y.shape == u.shape and y.isfinite().all()",
    }
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check[framework]}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def commands() -> list[str]:
    """Every command line of run_experiment.py in README and docs."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += re.findall(r"python run_experiment\.py ([^\n`#]+)", text)
        found += re.findall(r"`(-m \w+ -e \w+[^`]*)`", text)
    return sorted({command.strip() for command in found if "…" not in command})


@pytest.mark.parametrize("command", commands())
def test_every_command_plans_runs(command, tmp_path, capsys):
    words = [w for w in shlex.split(command) if w not in ("--wait", "LENGTH")]
    if words[-1] == "-l":
        words.append("5")
    words = [str(ROOT / w) if w.startswith("experiment_configs/") else w for w in words]
    assert main([*words, "--results-dir", str(tmp_path), "--plan"]) == 0
    assert " runs: " in capsys.readouterr().out
