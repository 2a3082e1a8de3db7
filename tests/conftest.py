"""What the tests share: checks too slow or too strict for users, and small inputs."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

import walks
from experiments.lcde_toy import Config as LCDEToyConfig
from experiments.schema import load_config
from harness.machine import available_cores
from harness.paths import CONFIG_FOLDER, ROOT

# From here on these modules check every annotated shape and dtype when a function is called.
CHECKED = ["linear_cde", "kernels.shared_flows", "kernels.token_cde", "data_dir.datasets"]
if find_spec("jax"):
    CHECKED += ["experiments.lcde_training"]
if find_spec("torch"):
    CHECKED += ["torch_layers", "torch_sequence_models", "experiments.ssm_training"]
install_import_hook(CHECKED, "beartype.beartype")

# Tests may be started in the background of a shell, which has Ctrl-C ignored, or by what ignores or
# blocks other signals. Processes inherit that, so here it ends.
signal.pthread_sigmask(signal.SIG_SETMASK, [])
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    if signal.getsignal(number) is signal.SIG_IGN:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

# Workers share the cores, and of a test's small products a second thread would mostly wait, busily.
# Tests of more threads ask for them.
os.environ["OMP_NUM_THREADS"] = "1"

if find_spec("jax"):
    # A command that a test starts, and a worker, loads what another has compiled.
    if "PYTEST_XDIST_WORKER" not in os.environ:
        COMPILED = TemporaryDirectory(prefix="compiled_by_tests_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**30)  # without one JAX takes no lock
    from jax import config

    config.update("jax_numpy_rank_promotion", "raise")
    config.update("jax_numpy_dtype_promotion", "strict")


# From a minute of one core downwards. Begun first, so that workers with a file each end together.
LONGEST = ("cluster", "lcde_a5", "scan_builds", "triton_scan", "linear_cde", "theory", "toy_data")
LONGEST += ("replay", "wiring", "devices", "run_experiment", "plots", "faults", "local_launcher")


def pytest_xdist_auto_num_workers():
    return available_cores() + 1  # tests that wait for processes and clusters leave a core idle


def pytest_collection_modifyitems(items):
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
def jax():
    """The module; tests that need it are skipped where it is not installed."""
    return pytest.importorskip("jax", reason="needs the JAX environment")


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every session."""
    return np.random.default_rng(2402_19047)


@pytest.fixture
def toy_config():
    """Make the paper's config of the Linear CDE on the toy task, with changes."""

    def make(**changes) -> LCDEToyConfig:
        overrides = {key: (value, "test") for key, value in changes.items()}
        return load_config(LCDEToyConfig, CONFIG_FOLDER / "lcde_toy.yaml", overrides)

    return make


@pytest.fixture
def lattice_walks(rng):
    """Draw float32 walks (N, n, d) in [-1, 1] with steps of -1, 0 or 1, scaled."""

    def draw(num_paths: int, length: int, input_dim: int) -> np.ndarray:
        steps = rng.integers(-1, 2, (num_paths, length, input_dim))
        walks = np.cumsum(steps, axis=1)
        return (walks / np.max(np.abs(walks))).astype(np.float32)

    return draw


@pytest.fixture
def write_toy_files():
    """Write `data_{d}.npy` and `labels_{d}.npy` as a data folder has them; returns their paths."""

    def write(data_dir: Path, paths: np.ndarray, labels: np.ndarray) -> tuple[Path, Path]:
        folder = data_dir / "toy_data"
        folder.mkdir(parents=True, exist_ok=True)
        input_dim = paths.shape[-1]
        files = folder / f"data_{input_dim}.npy", folder / f"labels_{input_dim}.npy"
        for file, array in zip(files, (paths, labels), strict=True):
            np.save(file, array)
        return files

    return write


@pytest.fixture
def mount_disk():
    """Mount an empty disk of so many KiB on a folder; skip with the reason where that fails."""
    with ExitStack() as mounted:

        def mount(folder: Path, kib: int) -> None:
            if not shutil.which("mount"):
                pytest.skip("needs the mount command")
            command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"needs the right to mount a file system: {done.stderr.strip()}")
            mounted.callback(subprocess.run, ["umount", folder], check=True)

        yield mount


# The command, but killed after an update as a scheduler kills it, at no moment of its choosing.
KILLED_AT_A_STEP = """
import os, signal, sys
from experiments.training_loop import Progress
from run_experiment import main

def count_and_die(progress, loss):
    add_loss(progress, loss)
    if progress.step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)

add_loss, Progress.add_loss = Progress.add_loss, count_and_die
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def killed_at_step():
    """Do a run in another process, and kill it right after a step; not at a time, which varies."""

    def kill(step: int, words: Sequence[str]) -> None:
        command = [sys.executable, "-c", KILLED_AT_A_STEP, str(step), *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr

    return kill


@pytest.fixture(autouse=True)
def no_process_left():
    """End what a test that failed has left, so that it disturbs no other."""
    yield
    for process in walks.STARTED:
        if process.poll() is None:
            process.kill()
            process.communicate()
    walks.STARTED.clear()
