"""Commands of light runs, for tests that kill, starve and disturb real processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from harness.locks import Lock
from harness.paths import ROOT

LIGHT_EXPERIMENT = Path(__file__).with_name("light_experiment")
SETTINGS = {
    "lengths": [4],
    "depths": [1],
    "search": False,
    "epochs": 300,  # steps, here
    "hidden_dim": 1000,
    "num_heads": 1,
    "eval_interval": 50,
    "checkpoint_interval": 10,
    "stop_accuracy": 1.0,
}
# Those that a test may have left.
STARTED: list[subprocess.Popen] = []


def walk_words(folder: Path, *words, **settings) -> list:
    """The command line of walks whose data and results are below a folder."""
    found = ["-m", "SequenceModel", "-e", "A5", "-n", "RNN", "--device", "cpu"]
    found += ["--data-dir", folder / "data", "--results-dir", folder / "results", *words]
    for key, value in {**SETTINGS, **settings}.items():
        found += ["--set", f"{key}={json.dumps(value)}"]
    return [str(word) for word in found]


def environment(**variables) -> dict[str, str]:
    """In which the light experiment is found."""
    path = os.pathsep.join([str(LIGHT_EXPERIMENT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, **variables}


def start(folder: Path, *words, variables=None, through=(), **settings) -> subprocess.Popen:
    """Start it in a process of its own; through: a command that is given this one."""
    command = [
        *through,
        sys.executable,
        ROOT / "run_experiment.py",
        *walk_words(folder, *words, **settings),
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment(**(variables or {})), **pipes)
    STARTED.append(process)
    return process


def start_held(folder: Path, step: int, *words, variables=None, **settings) -> subprocess.Popen:
    """Start it, and return once it waits before a step, where it stays until it is let go."""
    held = {"HOLD": f"{step}:{folder / 'held'}"}
    process = start(folder, *words, variables={**held, **(variables or {})}, **settings)
    while not (folder / "held").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def let_go(folder: Path) -> None:
    """Let a run that is held go on."""
    (folder / "held").unlink()


def finish(folder: Path, *words, variables=None, **settings) -> subprocess.CompletedProcess:
    """Do it in a process of its own, to the end."""
    process = start(folder, *words, variables=variables, **settings)
    out, errors = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def results(folder: Path) -> dict[str, object]:
    """What runs came to: the bytes of their arrays and, by record, all but time and origin."""
    found: dict[str, object] = {}
    for path in sorted((folder / "results" / "outputs_A5").iterdir()):
        if path.suffix == ".npy":
            found[path.name] = path.read_bytes()
        else:
            record = json.loads(path.read_text())
            del record["provenance"]
            record.get("history", {}).pop("seconds", None)
            found[path.name] = record
    return found


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint of any run, 0 without any."""
    found = (folder / "results" / "checkpoints").glob("*/step_*.npz")
    return max((int(path.stem.removeprefix("step_")) for path in found), default=0)


def worker_pids(folder: Path) -> list[int]:
    """The processes that hold a run's lock."""
    files = (folder / "results" / "locks").glob("*.lock")
    owners = (Lock(path.parent, path.name.removesuffix(".lock")).holder() for path in files)
    return [int(words.split()[1]) for words in owners if words and words.startswith("process ")]
