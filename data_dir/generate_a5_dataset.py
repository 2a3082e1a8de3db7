"""Write the A5 word problem as CSV files, in the format of the published benchmark.

The benchmark is Merrill, Petty and Sabharwal, The Illusion of State in State-Space Models (arXiv
2404.08819). An input is a sequence of L elements of a group, its target the L running products.
Each file, such as `A5=2.csv` or `A4_x_Z5=2.csv`, has the header `seed,input,target` and one
sequence a row; the elements are numbers separated by spaces, and every row ends in a line feed.
"""

import argparse
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_dir.finite_groups import GROUP_NAMES, Group, group
from harness.atomic_files import atomic_write
from harness.paths import DATA_DIR, WORD_DATA, path_argument
from harness.process import on_standard_streams

HEADER = b"seed,input,target\n"
DEFAULT_LENGTHS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 18, 20)
DEFAULT_SAMPLES = 1_000_000
DEFAULT_SEED = 946607  # gives A5=2.csv the digest of the published file
_TOKENS_PER_CHUNK = 1 << 20

_EXAMPLES = """examples:
  python data_dir/generate_a5_dataset.py
      every length of Figure 2, 1,000,000 sequences each (0.9 GB)
  python data_dir/generate_a5_dataset.py --lengths 2 3 --seed 946607 --output DIR
      DIR/A5=2.csv (identical to the published file) and DIR/A5=3.csv
  python data_dir/generate_a5_dataset.py --group S5 --lengths 5 --samples 20000
"""


def csv_name(group_name: str, length: int) -> str:
    """The benchmark's file name for one group and sequence length, as in `A4_x_Z5=2.csv`."""
    return f"{group_name.replace('x', '_x_')}={length}.csv"


def all_sequences(order: int, length: int) -> np.ndarray:
    """Every sequence of 0..order-1, uint8 (order**length, length); the last position runs fastest.

    This is the row order of the published file for L = 2.
    """
    positions = np.indices((order,) * length, dtype=np.uint8)
    return np.ascontiguousarray(positions.reshape(length, -1).T)


def distinct_sequences(order: int, length: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` <= order**length different sequences, uniformly without replacement.

    Returns uint8 (count, length): the first `count` different values of a stream of independent
    uniform draws, which is a uniform draw without replacement. Compares whole rows as bytes, so
    order**length may exceed any integer type.
    """
    drawn: dict[bytes, None] = {}
    while len(drawn) < count:
        more = rng.integers(order, size=(count, length), dtype=np.uint8)
        drawn |= dict.fromkeys(more.view(f"V{length}").ravel().tolist())
    rows = b"".join(list(drawn)[:count])
    return np.frombuffer(rows, dtype=np.uint8).reshape(count, length)


def check_arguments(length: int, samples: int, seed: int) -> None:
    """Raise ValueError unless a file can be made for these."""
    if length < 1:
        raise ValueError(f"a sequence length must be at least 1, not {length}")
    if samples < 1:
        raise ValueError(f"the number of samples must be at least 1, not {samples}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative, but is {seed}")


def make_sequences(word_group: Group, length: int, samples: int, seed: int) -> np.ndarray:
    """The inputs of one file: every sequence if there are at most `samples`, else that many.

    Returns uint8 (rows, length), the same for the same arguments on every machine. Each length
    draws from a stream of its own. Raises: ValueError, as `check_arguments`.
    """
    check_arguments(length, samples, seed)
    if word_group.order**length <= samples:
        return all_sequences(word_group.order, length)
    rng = np.random.default_rng([seed, length])
    return distinct_sequences(word_group.order, length, samples, rng)


def format_rows(seed: int, inputs: np.ndarray, targets: np.ndarray) -> bytes:
    """Rows of the CSV file for uint8 arrays (rows, L), without a Python loop over rows.

    Every number is laid out in a cell of three characters and its separator; the unused characters
    are zero bytes, and deleting those leaves the text.
    """
    rows, length = inputs.shape
    text_of = np.array([str(number) for number in range(256)], dtype="S3")
    digits = text_of.view(np.uint8).reshape(256, 3)
    separators = b" " * (length - 1) + b"," + b" " * (length - 1) + b"\n"
    seed_cell = np.frombuffer(f"{seed},".encode(), dtype=np.uint8)

    cells = np.empty((rows, 2 * length, 4), dtype=np.uint8)
    cells[:, :length, :3] = digits[inputs]
    cells[:, length:, :3] = digits[targets]
    cells[:, :, 3] = np.frombuffer(separators, dtype=np.uint8)
    seed_column = np.broadcast_to(seed_cell, (rows, len(seed_cell)))
    characters = np.concatenate([seed_column, cells.reshape(rows, -1)], axis=1)
    return characters.tobytes().translate(None, delete=b"\0")


def write_dataset(path: Path, word_group: Group, length: int, samples: int, seed: int) -> int:
    """Write one CSV file and return its number of sequences. An existing file is replaced.

    The file appears at once and whole: after an error, a full disk or Ctrl-C there is none.
    Raises: ValueError, as `make_sequences`; OSError.
    """
    inputs = make_sequences(word_group, length, samples, seed)
    rows_per_chunk = max(1, _TOKENS_PER_CHUNK // length)
    with atomic_write(path) as file:
        file.write(HEADER)
        for start in range(0, len(inputs), rows_per_chunk):
            chunk = inputs[start : start + rows_per_chunk]
            file.write(format_rows(seed, chunk, word_group.running_products(chunk)))
    return len(inputs)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Write the word problem of a finite group (A5 by default) as CSV files.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    lengths_help = "sequence lengths, one file each (default: 2 and the 14 of Figure 2)"
    add("--lengths", type=int, nargs="+", default=DEFAULT_LENGTHS, metavar="L", help=lengths_help)
    samples_help = "sequences per file, or all where there are fewer (default: %(default)s)"
    add("--samples", type=int, default=DEFAULT_SAMPLES, metavar="N", help=samples_help)
    seed_help = "seed of the draw, and the file's first column (default: %(default)s)"
    add("--seed", type=int, default=DEFAULT_SEED, help=seed_help)
    add("--group", default="A5", help=f"{', '.join(GROUP_NAMES)} (default: %(default)s)")
    output_help = "folder of the files (default: data_dir/illusion of this repository)"
    add(
        "--output",
        type=path_argument,
        default=DATA_DIR / WORD_DATA,
        metavar="DIR",
        help=output_help,
    )
    add("--overwrite", action="store_true", help="replace existing files")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write the requested files. Returns 0, 1 when one cannot be written, 130 after Ctrl-C.

    Raises: SystemExit, with code 2 before any file is written, for arguments without sense.
    """
    return on_standard_streams(partial(_write, argv))


def _write(argv: list[str] | None) -> int:
    parser = _build_parser()
    arguments = parser.parse_args(argv)
    samples, seed = arguments.samples, arguments.seed
    try:
        word_group = group(arguments.group)
        for length in arguments.lengths:
            check_arguments(length, samples, seed)
    except ValueError as error:
        parser.error(str(error))
    paths = {
        length: arguments.output / csv_name(word_group.name, length) for length in arguments.lengths
    }
    existing = [str(path) for path in paths.values() if path.exists()]
    if existing and not arguments.overwrite:
        parser.error(f"already there (replace with --overwrite): {', '.join(existing)}")

    try:
        for length, path in paths.items():
            print(f"writing {path.name} ...", end=" ", flush=True)
            start = time.perf_counter()
            rows = write_dataset(path, word_group, length, samples, seed)
            print(f"{rows:,} sequences, {time.perf_counter() - start:.1f} s", flush=True)
    except (OSError, MemoryError) as error:
        print(f"\nerror: cannot write {path}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: no half-written file is left behind", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # A scheduler's SIGTERM then cleans up as an error does, instead of leaving a temporary file.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise SystemExit(main())
