"""The data of both experiments as NumPy arrays, checked; what is missing is made."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from data_dir.toy_fingerprints import check_fingerprint
from harness.errors import DataError
from harness.locks import waiting
from harness.paths import TOY_DATA


@dataclass(frozen=True)
class ToyDataset:
    """Scaled paths and the signature coefficient of each.

    paths: (N, n, d) float32 in [-1, 1]; labels: (N,) float32 in [-1, 1]; the first `num_train`
    paths train, the others validate.
    """

    paths: Float[np.ndarray, "N n d"]
    labels: Float[np.ndarray, " N"]
    num_train: int


def load_toy_dataset(
    data_dir: Path,
    input_dim: int,
    *,
    num_paths: int,
    train_fraction: float,
    paper_data: bool,
    announce: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> ToyDataset:
    """Load the first `num_paths` toy paths in `input_dim` dimensions; make the files if both miss.

    With `paper_data` the whole files must have the paper's fingerprint; without, any finite
    float32 data of the right shape will do.
    Raises: DataError, naming the file and what is wrong; ModuleNotFoundError, when data are to be
    made and JAX is not installed.
    """
    folder = data_dir / TOY_DATA
    paths_file, labels_file = folder / f"data_{input_dim}.npy", folder / f"labels_{input_dim}.npy"
    if not (paths_file.exists() and labels_file.exists()):
        with waiting(folder, f".{paths_file.name}"):  # another process may be making them
            if not paths_file.exists() and not labels_file.exists():
                announce(f"making the {input_dim}D toy data in {folder} (a few seconds)")
                from data_dir.generate_toy_dataset import write_toy_dataset

                write_toy_dataset(folder, input_dim)
    paths, labels = _load_float32(paths_file), _load_float32(labels_file)
    if paths.ndim != 3 or paths.shape[2] != input_dim or len(paths) == 0 or paths.shape[1] < 2:
        raise DataError(f"{paths_file}: shape {paths.shape}, expected (paths, points, {input_dim})")
    if labels.shape != paths.shape[:1]:
        raise DataError(f"{labels_file}: shape {labels.shape}, expected {paths.shape[:1]}")
    if paper_data:
        check_fingerprint(paths, labels, str(paths_file))
    if len(paths) < num_paths:
        raise DataError(f"{paths_file}: {len(paths)} paths, num_paths asks for {num_paths}")
    num_train = int(train_fraction * num_paths)
    return ToyDataset(paths[:num_paths], labels[:num_paths], num_train)


def _load_float32(path: Path) -> np.ndarray:
    remedy = "delete it to have the paper's data made again"
    if not path.exists():
        raise DataError(
            f"{path}: missing, though its partner is there; delete that to make both again"
        )
    try:
        with path.open("rb") as handle:
            array = np.lib.format.read_array(handle, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error}); {remedy}") from None
    if array.dtype != np.float32:
        raise DataError(f"{path}: dtype {array.dtype}, expected float32; {remedy}")
    broken = np.flatnonzero(~np.isfinite(array).all(axis=tuple(range(1, array.ndim))))
    if len(broken):
        raise DataError(
            f"{path}: {len(broken)} rows hold NaN or infinity, first {broken[0]}; {remedy}"
        )
    return array
