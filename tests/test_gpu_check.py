"""The script for whoever has a GPU runs through without one: all of it but the hardware."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from harness.paths import ROOT

pytestmark = pytest.mark.skipif(
    "GPU_CHECK" not in os.environ or not all(map(find_spec, ("torch", "triton", "jax"))),
    reason="takes minutes: GPU_CHECK=1 runs it, where PyTorch, Triton and JAX are installed",
)


def test_every_part_of_the_check_runs_through_at_tiny_sizes(tmp_path):
    command = [sys.executable, ROOT / "tests/gpu/check.py", "--tiny", "--workers", "2"]
    done = subprocess.run(
        [*command, "--output", tmp_path],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "check.json").read_text())
    parts = {"scan", "flows", "training", "scan times", "step times", "evidence"}
    assert set(found) == {"machine", *parts}
    assert {row["backend"] for row in found["step times"]} == {"triton", "reference"}
    assert {run["outcome"] for run in found["evidence"]["runs"]} == {"finished"}
    assert (tmp_path / "results.tar.gz").exists()
