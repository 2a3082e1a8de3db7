"""The toy data as NumPy arrays, checked; what is missing is made."""

import hashlib
import io
import sys
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
    paths train, the others validate. digests: SHA-256 of both files, by name.
    """

    paths: Float[np.ndarray, "N n d"]
    labels: Float[np.ndarray, " N"]
    num_train: int
    digests: dict[str, str]


def training_paths(train_fraction: float, num_paths: int) -> int:
    """How many paths train. Raises: ValueError, where all of them would, or none."""
    training = int(train_fraction * num_paths)
    if not 0 < training < num_paths:
        raise ValueError(
            f"train_fraction: {train_fraction} of num_paths: {num_paths} is {training} to train on "
            f"(allowed: 1 to {num_paths - 1})"
        )
    return training


def load_toy_dataset(
    data_dir: Path, input_dim: int, *, num_paths: int, train_fraction: float, paper_data: bool
) -> ToyDataset:
    """Load the first `num_paths` toy paths in `input_dim` dimensions; make the files if both miss.

    With `paper_data` the whole files must be the paper's; without, any real numbers of the right
    shape will do, as float32.
    Raises: DataError, naming the file and what is wrong; ValueError, as `training_paths`;
    ModuleNotFoundError, when data are to be made and JAX is not installed.
    """
    folder = data_dir / TOY_DATA
    files = [folder / f"{kind}_{input_dim}.npy" for kind in ("data", "labels")]
    if not all(file.exists() for file in files):
        with waiting(folder, f".{files[0].name}"):  # another process may be making them
            if not any(file.exists() for file in files):
                print(f"making the {input_dim}D toy data in {folder}", file=sys.stderr)
                from data_dir.generate_toy_dataset import write_toy_dataset

                write_toy_dataset(folder, input_dim)
    try:
        (paths, labels), hashes = zip(*map(_load_float32, files), strict=True)
        _check_shapes(paths, labels, input_dim, num_paths, files)
        if paper_data:
            check_fingerprint(paths, labels, (str(files[0]), str(files[1])))
    except DataError as error:
        remedy = (
            "paper_data: true takes the paper's data alone: set paper_data: false to use your own, "
            "or move both files elsewhere to have the paper's made"
            if paper_data
            else "paper_data is false: the files are your own, and stay as they are"
        )
        raise DataError(f"{error}; {remedy}") from None
    digests = {file.name: sha256 for file, sha256 in zip(files, hashes, strict=True)}
    num_train = training_paths(train_fraction, num_paths)
    return ToyDataset(paths[:num_paths], labels[:num_paths], num_train, digests)


def _check_shapes(
    paths: np.ndarray, labels: np.ndarray, input_dim: int, num_paths: int, files: list[Path]
) -> None:
    if paths.ndim != 3 or paths.shape[2] != input_dim or len(paths) == 0 or paths.shape[1] < 2:
        raise DataError(f"{files[0]}: shape {paths.shape}, expected (paths, points, {input_dim})")
    if labels.shape != paths.shape[:1]:
        raise DataError(f"{files[1]}: shape {labels.shape}, expected {paths.shape[:1]}")
    if len(paths) < num_paths:
        raise DataError(f"{files[0]}: {len(paths)} paths, num_paths asks for {num_paths}")


def _load_float32(path: Path) -> tuple[np.ndarray, str]:
    """A file's numbers, and its SHA-256."""
    try:
        content = path.read_bytes()
        array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: missing, though its partner is there") from None
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error})") from None
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: dtype {array.dtype}, expected real numbers (float32)")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    broken = np.argwhere(~np.isfinite(array))
    if len(broken):
        place = ", ".join(map(str, broken[0]))
        raise DataError(
            f"{path}: {len(broken)} numbers are NaN, infinite or too large for float32, the first "
            f"at [{place}]"
        )
    return array, hashlib.sha256(content).hexdigest()
