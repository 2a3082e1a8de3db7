"""The toy data of Figure 1: scaled integer random walks and one coefficient of their signature.

Bit-identical to the released experiments (paper, section 5.1): one key for every path dimension,
drawn with JAX's non-partitionable Threefry layout whatever the installed JAX's default is.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_dir.toy_fingerprints import check_fingerprint, load_fingerprints
from harness.atomic_files import npy_bytes, write_together
from harness.errors import DataError, UnavailableError
from harness.paths import DATA_DIR, TOY_DATA, path_argument
from harness.process import on_standard_streams

if TYPE_CHECKING:
    import jax

SEED = 1234
LABEL_BATCH = 10_000


def random_walks(input_dim: int, num_paths: int, length: int) -> np.ndarray:
    """Integer random walks (num_paths, length, input_dim), float32: sums of rounded normals."""
    import jax

    with (
        jax.default_device(_cpu()),
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(False),
    ):
        steps = jax.random.normal(
            jax.random.PRNGKey(SEED), (num_paths, length, input_dim), "float32"
        )
        return np.cumsum(np.rint(np.asarray(steps)), axis=1, dtype=np.float32)


def _cpu() -> "jax.Device":
    """Where the data are made. Raises: UnavailableError, where JAX_PLATFORMS leaves it out."""
    import jax

    try:
        return jax.devices("cpu")[0]
    except (RuntimeError, AssertionError):
        platforms = jax.config.jax_platforms
        raise UnavailableError(
            f"JAX_PLATFORMS={platforms}: the toy data are made on the CPU, use {platforms},cpu"
        ) from None


def signature_coefficient(paths: np.ndarray) -> np.ndarray:
    """The signature's (1, ..., d) coefficient of each path, by `signax`.

    paths: (N, n, d) float32. Returns (N,) float32. For d = 2 the iterated integral of dX^1 dX^2,
    for d = 3 of dX^1 dX^2 dX^3; the path starts at its first point.
    """
    import jax
    import signax

    depth = paths.shape[2]

    @jax.jit
    def coefficient(batch: jax.Array) -> jax.Array:
        top_level = signax.signature(batch, depth, flatten=False)[-1]
        return top_level[(slice(None), *range(depth))]

    with jax.default_device(_cpu()):
        starts = range(0, len(paths), LABEL_BATCH)
        parts = [np.asarray(coefficient(paths[i : i + LABEL_BATCH])) for i in starts]
    return np.concatenate(parts)


def make_toy_dataset(input_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Make the paper's toy data: paths (100000, 100, d) in [-1, 1] and labels (100000,), float32.

    Both are divided by their largest absolute value over all paths, train and validation.
    Raises: DataError, when the result is not the paper's data.
    """
    num_paths, length = load_fingerprints()["shape"]
    walks = random_walks(input_dim, num_paths, length)
    data = walks / np.max(np.abs(walks))
    labels = signature_coefficient(data)
    labels = labels / np.max(np.abs(labels))
    names = (f"data_{input_dim}.npy as generated", f"labels_{input_dim}.npy as generated")
    check_fingerprint(data, labels, names)
    return data, labels


def write_toy_dataset(folder: Path, input_dim: int) -> None:
    """Make the data for one path dimension and write `data_{d}.npy` and `labels_{d}.npy`.

    Raises: DataError, OSError. Existing files are replaced only by verified data.
    """
    arrays = zip(("data", "labels"), make_toy_dataset(input_dim), strict=True)
    write_together([(folder / f"{kind}_{input_dim}.npy", npy_bytes(x)) for kind, x in arrays])


def main(argv: list[str] | None = None) -> int:
    """Write the toy data from the command line. Returns the exit code."""
    return on_standard_streams(partial(_write, argv))


def _write(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        description="Make the toy data of Figure 1, bit-identical to the paper's.",
        epilog="example: python data_dir/generate_toy_dataset.py --output data_dir/toy_data",
    )
    parser.add_argument("--output", type=path_argument, default=DATA_DIR / TOY_DATA, metavar="DIR")
    parser.add_argument("--input-dims", type=int, nargs="+", choices=[2, 3], default=[2, 3])
    arguments = parser.parse_args(argv)
    try:
        for input_dim in arguments.input_dims:
            write_toy_dataset(arguments.output, input_dim)
            print(f"wrote {arguments.output}/data_{input_dim}.npy and labels_{input_dim}.npy")
    except UnavailableError as error:
        parser.error(str(error))
    except ModuleNotFoundError as error:
        print(f"error: the toy data need {error.name}: pip install '.[jax]'", file=sys.stderr)
        return 1
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
