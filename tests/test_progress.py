"""TensorBoard's files hold what the record holds; without TensorBoard nothing changes."""

import json
import subprocess
import sys

import pytest

import walks
from harness.paths import ROOT


def test_scalars_are_those_of_the_record(tmp_path):
    pytest.importorskip("tensorboard", reason="needs '.[tensorboard]'")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    done = walks.finish(tmp_path, "--tensorboard", tmp_path / "board", epochs=100)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results" / "outputs_A5").glob("*.json")
    history = json.loads(path.read_text())["history"]
    (events,) = (tmp_path / "board" / path.stem).iterdir()
    found = {"accuracy": {}, "train_loss": {}}
    for event in EventFileLoader(str(events)).Load():
        for value in event.summary.value:
            found[value.tag][event.step] = value.tensor.float_val[0]
    by_step = {
        name: dict(zip(history["steps"], history[name], strict=True))
        for name in ("accuracy", "train_loss")
    }
    losses = by_step["train_loss"]
    assert losses.pop(0) is None  # before the first update there is none
    assert found["accuracy"] == pytest.approx(by_step["accuracy"])
    assert found["train_loss"] == pytest.approx(losses)


def test_it_is_off_by_default(tmp_path):
    done = walks.finish(tmp_path, epochs=10)
    assert done.returncode == 0, done.stderr
    assert not [path for path in tmp_path.rglob("*") if "tfevents" in path.name]


def test_without_tensorboard_it_says_what_to_install(tmp_path):
    (tmp_path / "tensorboard.py").write_text("raise ModuleNotFoundError(name='tensorboard')")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import run_experiment; "
    words = walks.walk_words(tmp_path, "--tensorboard", tmp_path / "board")
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(run_experiment.main({words!r}))"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "tensorboard is not installed; install what --tensorboard needs with" in done.stderr
    assert "pip install -c requirements-lock.txt '.[tensorboard]'" in done.stderr
    assert not (tmp_path / "results").exists()


def test_writing_scalars_imports_no_framework():
    pytest.importorskip("tensorboard", reason="needs '.[tensorboard]'")
    code = "import harness.progress, sys; print({'torch', 'jax', 'tensorflow'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
