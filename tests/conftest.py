"""What the tests share: checks too slow or too strict for users, and small inputs."""

import shutil
import subprocess
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from experiments.lcde_toy import Config as LCDEToyConfig
from experiments.schema import load_config
from harness.paths import CONFIG_FOLDER

# From here on these modules check every annotated shape and dtype when a function is called.
CHECKED = ["linear_cde", "kernels.shared_flows", "kernels.token_cde", "data_dir.datasets"]
if find_spec("jax"):
    CHECKED += ["experiments.lcde_training"]
if find_spec("torch"):
    CHECKED += ["torch_layers", "torch_sequence_models", "experiments.ssm_training"]
install_import_hook(CHECKED, "beartype.beartype")

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

if find_spec("jax"):
    from jax import config

    config.update("jax_numpy_rank_promotion", "raise")
    config.update("jax_numpy_dtype_promotion", "strict")


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


@pytest.fixture
def wait_for_checkpoint():
    """Wait until a run in another process has saved a checkpoint of a step or a later one."""

    def wait(results_dir: Path, step: int, process: subprocess.Popen) -> None:
        while process.poll() is None:
            found = (results_dir / "checkpoints").glob("*/step_*.npz")
            if max((int(path.stem.removeprefix("step_")) for path in found), default=0) >= step:
                return
            time.sleep(0.01)
        raise AssertionError("the run ended before it was killed")

    return wait
