"""Paths as users write them: ~ is their home, whatever flag or key it stands in."""

from pathlib import Path

import pytest

import compare_to_paper
import plot_A5
import plot_theory
import plot_toy
from data_dir import generate_a5_dataset, generate_toy_dataset
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


@pytest.mark.parametrize(
    ("door", "flag", "words"),
    [
        (compare_to_paper, "--results-dir", []),
        (generate_a5_dataset, "--output", ["--lengths", "1"]),
        (generate_toy_dataset, "--output", ["--input-dims", "2"]),
        (plot_A5, "--results-dir", []),
        (plot_theory, "--output", []),
        (plot_toy, "--data-dir", ["--output", "x.pdf"]),
    ],
)
def test_no_door_takes_a_tilde_for_a_folder(door, flag, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        door.main([f"{flag}=~nobody-here/x", *words])
    assert f"argument {flag}: ~nobody-here/x: no home folder" in capsys.readouterr().err


def test_data_are_made_in_a_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert generate_a5_dataset.main(["--lengths", "1", "--output=~/x"]) == 0
    assert (tmp_path / "x" / "A5=1.csv").is_file()
