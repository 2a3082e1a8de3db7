"""Load the word problem's CSV files as arrays, checked row by row; make those that are missing."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_dir.finite_groups import Group
from data_dir.generate_a5_dataset import (
    DEFAULT_SAMPLES,
    DEFAULT_SEED,
    HEADER,
    csv_name,
    write_dataset,
)
from harness.errors import DataError
from harness.locks import waiting

Arrays = tuple[np.ndarray, np.ndarray]
_BLOCK_BYTES = 1 << 20  # small enough for a block's arrays to stay in cache


@dataclass(frozen=True)
class WordProblem:
    """One file's rows: inputs and targets, uint8 (rows, length), and what identifies the file.

    seeds: the different values of its seed column; digest: its name and SHA-256.
    """

    inputs: np.ndarray
    targets: np.ndarray
    seeds: frozenset[str]
    digest: dict[str, str]


def load_word_problem(
    folder: Path,
    group: Group,
    length: int,
    *,
    seed: int = DEFAULT_SEED,
    samples: int = DEFAULT_SAMPLES,
) -> WordProblem:
    """Load a group's file of one length, generating it with `seed` and `samples` if missing.

    A file that is there is read as it is. Standard error shows what is made, and warns of a seed
    column that does not have `seed`.
    Raises: DataError, as `read_csv`, or where the file holds another number of rows; ValueError, as
    `make_sequences`, where there is no file; OSError.
    """
    path = Path(folder) / csv_name(group.name, length)
    former = path.with_name(f"{group.name}={length}.csv")
    expected = min(samples, group.order**length)
    if not path.exists() and former.exists():
        _announce(f"reading {former}; the published benchmark's name is {path.name}")
        path = former
    if not path.exists():
        with waiting(path.parent, f".{path.name}"):  # another process may be writing it
            if not path.exists():
                _announce(f"writing {expected:,} sequences to {path}, which is missing")
                write_dataset(path, group, length, samples, seed)
    rows = read_csv(path, group, length)
    if len(rows.inputs) != expected:
        raise DataError(
            f"{path}: {len(rows.inputs):,} sequences where {expected:,} are asked for; set "
            f"samples to {len(rows.inputs)} to use it, or move it to have {expected:,} made"
        )
    if rows.seeds != {str(seed)}:
        shown = ", ".join(sorted(rows.seeds)[:3])
        _announce(f"warning: {path} is read as it is: its seed column has {shown}, not {seed}")
    return rows


def _announce(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def training_rows(train_fraction: float, rows: int) -> int:
    """How many of the rows train. Raises: ValueError, where all of them would, or none."""
    training = round(train_fraction * rows)
    if not 0 < training < rows:
        raise ValueError(
            f"train_fraction: {train_fraction} of {rows:,} sequences is {training:,} to train on "
            f"(allowed: 1 to {rows - 1:,})"
        )
    return training


def split(
    inputs: np.ndarray, targets: np.ndarray, train_fraction: float, rng: np.random.Generator
) -> tuple[Arrays, Arrays]:
    """Shuffle the rows, then cut: (train inputs, train targets), (validation inputs, targets).

    The paper's fraction is 0.8. `rng` comes from the run's seed. Raises: ValueError, as
    `training_rows`.
    """
    cut = training_rows(train_fraction, len(inputs))
    order = rng.permutation(len(inputs))
    train, validation = order[:cut], order[cut:]
    return (inputs[train], targets[train]), (inputs[validation], targets[validation])


def read_csv(path: Path, group: Group, length: int) -> WordProblem:
    """Read and check one file of the benchmark.

    Lines may end in a line feed or in carriage return and line feed. Raises: OSError; DataError,
    with the file and the first bad line, counted from 1: it is malformed, a target is not the
    running product of its input, or a sequence is there twice.
    """
    seeds, parts = set(), []
    sha256, next_line = hashlib.sha256(), 2
    with path.open("rb") as file:
        header = file.readline(80)
        if header and header.replace(b"\r\n", b"\n") != HEADER:
            shown = header.decode(errors="backslashreplace")
            raise DataError(f"{path}, line 1: the header is {shown!r}, not {HEADER.decode()!r}")
        sha256.update(header)
        while lines := file.readlines(_BLOCK_BYTES):
            sha256.update(b"".join(lines))
            try:
                found, *part = _parse(lines, group, length)
            except ValueError:
                fault = _first_fault(lines, next_line, group, length)
                raise DataError(f"{path}, line {fault}") from None
            seeds |= found
            parts.append(part)
            next_line += len(lines)
    if not parts:
        line = 2 if header else 1
        raise DataError(f"{path}, line {line}: the file ends before its first sequence")
    inputs, targets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    _check_distinct(inputs, path)
    names = frozenset(seed.decode(errors="backslashreplace") for seed in seeds)
    return WordProblem(inputs, targets, names, {path.name: sha256.hexdigest()})


def _parse(
    lines: Sequence[bytes], group: Group, length: int
) -> tuple[set[bytes], np.ndarray, np.ndarray]:
    """Seeds, inputs and targets of lines. Raises: ValueError, which says of a single one why."""
    if not lines[-1].endswith(b"\n"):
        raise ValueError("the file ends in the middle of this line")
    rows = [line[:-1].removesuffix(b"\r").split(b",") for line in lines]
    for count in {len(row) for row in rows} - {3}:
        raise ValueError(f"3 columns expected (seed, input, target), found {count}")
    seeds, *columns = zip(*rows, strict=True)
    inputs = _parse_numbers("input", columns[0], group, length)
    targets = _parse_numbers("target", columns[1], group, length)
    products = group.running_products(inputs)
    for row, i in np.argwhere(products != targets):
        raise ValueError(
            f"target {i + 1} is {targets[row, i]}, but the running product in {group.name} is "
            f"{products[row, i]}"
        )
    return set(seeds), inputs, targets


def _parse_numbers(column: str, texts: Sequence[bytes], group: Group, length: int) -> np.ndarray:
    for count in {text.count(b" ") + 1 for text in texts} - {length}:
        raise ValueError(f"{length} numbers expected in {column}, found {count}")
    text = b" ".join(texts)
    if not text.translate(None, b"0123456789 "):
        numbers = np.fromstring(text, np.int64, sep=" ")
        if len(numbers) == len(texts) * length and numbers.max() < group.order:
            return numbers.astype(np.uint8).reshape(-1, length)
    wrong = [x for x in text.split(b" ") if not x.isdigit() or float(x) >= group.order]
    shown = wrong[0][:20].decode(errors="backslashreplace")
    raise ValueError(
        f"{shown!r} in {column} is not a number from 0 to {group.order - 1} ({group.name})"
    )


def _first_fault(lines: Sequence[bytes], number: int, group: Group, length: int) -> str:
    """Number and fault of the first bad line; `number` is that of the first line."""
    for i, line in enumerate(lines, start=number):
        try:
            _parse([line], group, length)
        except ValueError as error:
            return f"{i}: {error}"
    raise AssertionError("every line is right by itself")


def _check_distinct(inputs: np.ndarray, path: Path) -> None:
    line_of: dict[bytes, int] = {}
    for line, row in enumerate(inputs.view(f"V{inputs.shape[1]}").ravel().tolist(), start=2):
        first = line_of.setdefault(row, line)
        if first != line:
            raise DataError(f"{path}, line {line}: the sequence of line {first} again")
