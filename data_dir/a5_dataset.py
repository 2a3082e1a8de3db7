"""Load the word problem's CSV files as arrays, checked row by row; make the ones that are missing.

A file is read in blocks of whole lines. A block in the exact form that the generator writes is
parsed by array operations; any other block goes line by line, which accepts what is unusual but
right and names the first line that is wrong.
"""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_dir.finite_groups import Group
from data_dir.generate_a5_dataset import (
    DEFAULT_SAMPLES,
    DEFAULT_SEED,
    HEADER,
    check_arguments,
    csv_name,
    write_dataset,
)
from harness.errors import DataError
from harness.locks import waiting

Arrays = tuple[np.ndarray, np.ndarray]
_BLOCK_BYTES = 1 << 20  # small enough for a block's arrays to stay in cache


def announce_on_stderr(message: str) -> None:
    """Show one line of progress without touching standard output."""
    print(message, file=sys.stderr, flush=True)


def load_word_problem(
    folder: Path,
    group: Group,
    length: int,
    *,
    seed: int = DEFAULT_SEED,
    samples: int = DEFAULT_SAMPLES,
    announce: Callable[[str], None] = announce_on_stderr,
) -> Arrays:
    """Load `folder/{group}={length}.csv`, generating it with `seed` and `samples` if missing.

    Returns inputs and targets, uint8 (rows, length). A file that is there is read as it is,
    whatever its seed column.

    Raises:
        DataError: the file is malformed, holds another number of rows, or a target is not the
            running product of its input.
        ValueError: length or samples below 1, or a negative seed.
        OSError: the file cannot be read or written.
    """
    check_arguments(length, samples, seed)
    path = Path(folder) / csv_name(group.name, length)
    expected = min(samples, group.order**length)
    if not path.exists():
        with waiting(path.parent, f".{path.name}"):  # another process may be writing it
            if not path.exists():
                announce(f"writing {expected:,} sequences to {path}, which is missing")
                write_dataset(path, group, length, samples, seed)
    inputs, targets = read_csv(path, group, length)
    if len(inputs) != expected:
        raise DataError(
            f"{path}: {len(inputs):,} sequences where {expected:,} are asked for; "
            f"ask for samples={len(inputs)}, or remove the file to have it made again"
        )
    return inputs, targets


def split(
    inputs: np.ndarray, targets: np.ndarray, train_fraction: float, rng: np.random.Generator
) -> tuple[Arrays, Arrays]:
    """Shuffle the rows, then cut: (train inputs, train targets), (validation inputs, targets).

    The paper's fraction is 0.8. `rng` comes from the run's seed.

    Raises:
        ValueError: the fraction leaves one side without rows.
    """
    train_rows = round(train_fraction * len(inputs))
    if not 0 < train_rows < len(inputs):
        raise ValueError(
            f"a training fraction of {train_fraction} leaves one side of {len(inputs)} rows empty"
        )
    order = rng.permutation(len(inputs))
    train, validation = order[:train_rows], order[train_rows:]
    return (inputs[train], targets[train]), (inputs[validation], targets[validation])


def read_csv(path: Path, group: Group, length: int) -> Arrays:
    """Read and check one file of the benchmark; returns inputs and targets, uint8 (rows, length).

    Lines may end in a line feed or in carriage return and line feed.

    Raises:
        DataError: with the file and the first bad line, counted from 1.
        OSError: the file cannot be read.
    """
    parts: list[Arrays] = []
    next_line = 1
    for block in _blocks_of_lines(path):
        if next_line == 1:
            block = _without_header(path, block)
            next_line = 2
        part = _parse_block(block, group, length)
        if part is None:
            part = _parse_lines(path, next_line, block, group, length)
        parts.append(part)
        next_line += len(part[0])
    if next_line <= 2:
        raise DataError(f"{path}, line {next_line}: the file ends before its first sequence")
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _blocks_of_lines(path: Path) -> Iterator[bytes]:
    """The file in blocks of about a megabyte that end where a line ends, line feeds only."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            block += file.readline()
            yield block.replace(b"\r\n", b"\n")


def _without_header(path: Path, block: bytes) -> bytes:
    if not block.startswith(HEADER):
        first_line = io.BytesIO(block).readline(80).decode(errors="backslashreplace")
        raise DataError(f"{path}, line 1: the header is {first_line!r}, not {HEADER.decode()!r}")
    return block.removeprefix(HEADER)


def _parse_block(block: bytes, group: Group, length: int) -> Arrays | None:
    """Parse lines in the generator's exact form, by array operations; None for any other block.

    A number is what stands between two separators, so the positions of the separators give the
    length of every number, and the bytes before a separator are its digits.
    """
    characters = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(characters < ord("0"))
    fields = 1 + 2 * length
    pattern = b"," + b" " * (length - 1) + b"," + b" " * (length - 1) + b"\n"
    rows = len(ends) // fields
    is_whole = block.endswith(b"\n") or not block
    if not is_whole or characters[ends].tobytes() != pattern * rows:
        return None
    if characters.max(initial=0) > ord("9"):
        return None

    widths = np.diff(ends, prepend=-1).reshape(rows, fields)[:, 1:] - 1  # without the seed
    ends = ends.reshape(rows, fields)[:, 1:]
    if widths.min(initial=1) < 1 or widths.max(initial=1) > 3:
        return None
    digits = characters - np.uint8(ord("0"))
    numbers = digits[ends - 1].astype(np.uint16)
    for place in range(2, widths.max(initial=1) + 1):
        numbers += np.where(widths >= place, digits[ends - place], 0) * np.uint16(10 ** (place - 1))
    if numbers.max(initial=0) >= group.order:
        return None

    inputs, targets = np.split(numbers.astype(np.uint8), 2, axis=1)
    if not np.array_equal(group.running_products(inputs), targets):
        return None
    return inputs, targets


def _parse_lines(path: Path, first_line: int, block: bytes, group: Group, length: int) -> Arrays:
    """Parse line by line; raises DataError with the number of the first bad line."""
    rows = []
    for offset, line in enumerate(io.BytesIO(block)):
        try:
            rows.append(_parse_line(line, group, length))
        except ValueError as error:
            raise DataError(f"{path}, line {first_line + offset}: {error}") from None
    numbers = np.array(rows, dtype=np.uint8)
    return numbers[:, 0], numbers[:, 1]


def _parse_line(line: bytes, group: Group, length: int) -> tuple[list[int], list[int]]:
    """Parse and check one row; raises ValueError saying what is wrong with it."""
    if not line.endswith(b"\n"):
        raise ValueError("the file ends in the middle of this line")
    columns = line[:-1].split(b",")
    if len(columns) != 3:
        raise ValueError(f"3 columns expected (seed, input, target), found {len(columns)}")
    inputs = _parse_numbers("input", columns[1], group, length)
    targets = _parse_numbers("target", columns[2], group, length)
    products = group.running_products(np.array([inputs]))[0].tolist()
    for position, (product, target) in enumerate(zip(products, targets, strict=True), start=1):
        if product != target:
            raise ValueError(
                f"target {position} is {target}, but the running product in {group.name} is "
                f"{product}"
            )
    return inputs, targets


def _parse_numbers(column: str, text: bytes, group: Group, length: int) -> list[int]:
    tokens = text.split(b" ")
    if len(tokens) != length:
        raise ValueError(f"{length} numbers expected in {column}, found {len(tokens)}")
    for token in tokens:
        if not token.isdigit() or int(token) >= group.order:
            shown = token[:20].decode(errors="backslashreplace")
            raise ValueError(
                f"{shown!r} in {column} is not a number from 0 to {group.order - 1} ({group.name})"
            )
    return [int(token) for token in tokens]
