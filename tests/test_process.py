"""Standard output and error that are closed, full, or piped to a process that has left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import walks
from harness.paths import ROOT

pytestmark = pytest.mark.processes


def shell(folder, how, *words, **variables):
    """A light run in a shell that connects its streams."""
    command = [sys.executable, ROOT / "run_experiment.py"]
    command += walks.walk_words(folder, *words, epochs=60)
    script = f'set -o pipefail; "$@" {how}'
    return subprocess.run(
        ["bash", "-c", script, "bash", *command],
        env=walks.environment(**variables),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("how", ["2>&-", ">&-", ">&- 2>&-", "<&-", "2>/dev/full", "2> >(true)"])
def test_a_run_is_done_whatever_its_messages_come_to(tmp_path, how):
    done = shell(tmp_path, how)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "results" / "outputs_A5").glob("*.npy"))) == 2
    assert (">&-" in how.split()) or "not solved" in done.stdout


def test_errors_are_said_on_standard_output_where_standard_error_is_closed(tmp_path):
    done = shell(tmp_path, "2>&-", "--workers", "2")
    assert done.returncode == 2 and "error: --workers: applies to" in done.stdout


BUFFERED = pytest.mark.parametrize("unbuffered", ["", "1"])


@BUFFERED
@pytest.mark.parametrize("words", [(), ("--plan",), ("--help",)])
def test_a_full_standard_output_is_named(tmp_path, words, unbuffered):
    done = shell(tmp_path, ">/dev/full", *words, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"


@BUFFERED
@pytest.mark.parametrize("words", ["--plan", "--help"])
def test_a_pipe_whose_reader_has_left_ends_it_quietly(tmp_path, words, unbuffered):
    done = shell(tmp_path, "| true", words, PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    "words",
    [
        "compare_to_paper.py",
        "plot_theory.py --output FOLDER/x.pdf",
        "data_dir/generate_a5_dataset.py --lengths 1 --output FOLDER",
        "data_dir/generate_toy_dataset.py --help",
    ],
)
def test_every_door_names_a_full_standard_output(tmp_path, words):
    command = [sys.executable, *words.replace("FOLDER", str(tmp_path)).split()]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"


def test_a_terminal_without_dashes_and_accents_is_printed_to():
    command = [sys.executable, "compare_to_paper.py", "--format", "html"]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=ascii_only, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii() and "\\u" in done.stdout
