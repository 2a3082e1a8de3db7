"""Freed memory stays with the process once it is asked to, and only then."""

import importlib.util
import platform
import subprocess
import sys

import pytest

from harness.paths import ROOT

# Another process: the setting holds until a process ends.
KEPT_AFTER_FREEING = """
import sys
from pathlib import Path
import numpy as np
from experiments.devices import torch_numbers
from kernels.allocator import keep_freed_memory

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

if sys.argv[1] == "keep":
    assert keep_freed_memory()
if sys.argv[1] == "sequence models":
    torch_numbers("float32")
before = resident_mib()
block = np.ones(2**26, dtype=np.uint8)
del block
print(resident_mib() - before)
"""


def kept_mib(word):
    done = subprocess.run(
        [sys.executable, "-c", KEPT_AFTER_FREEING, word],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's allocator")
def test_a_freed_block_of_64_mib_is_kept_only_when_asked():
    assert kept_mib("keep") > 60
    assert kept_mib("default") < 5


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's allocator")
def test_training_of_sequence_models_keeps_it():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs the PyTorch environment")
    assert kept_mib("sequence models") > 60
