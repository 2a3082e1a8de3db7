"""Paths as users write them: ~ is their home, whatever flag or key it stands in."""

from pathlib import Path

import pytest

from harness.paths import ROOT
from run_experiment import main

EXPERIMENT = ["-m", "LCDE", "-e", "toy"]
RESULT = Path("outputs_toy") / "lin_cde_mse_2_run_0.npy"


@pytest.mark.parametrize("words", [["--results-dir=~/x"], ["--set", "results_dir=~/x"]])
def test_a_users_home_is_meant_by_a_tilde(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main([*EXPERIMENT, "--plan", *words]) == 0
    assert str(tmp_path / "x" / RESULT) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--results-dir=~nobody-here/x"], "--results-dir ~nobody-here/x: no home folder is known"),
        (["--data-dir=~nobody-here/x"], "--data-dir ~nobody-here/x: no home folder is known"),
        (["--tensorboard=~nobody-here/x"], "--tensorboard ~nobody-here/x: no home folder is known"),
        (["--set", "results_dir=~nobody-here"], "results_dir: ~nobody-here: no home folder is"),
    ],
)
def test_a_home_that_is_not_known_is_an_error(words, found, capsys):
    assert main([*EXPERIMENT, "--plan", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {found}")


def test_a_results_folder_named_by_a_date_is_text(tmp_path, capsys):
    assert main([*EXPERIMENT, "--plan", "--set", "results_dir=2026-11-31"]) == 0
    assert str(ROOT / "2026-11-31" / RESULT) in capsys.readouterr().out
