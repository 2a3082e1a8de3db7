"""What `-e theory` measured, from its result files and their records."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import ResultFileError
from harness.outcomes import diverged
from harness.paths import THEORY_RESULTS
from harness.records import Record, read_record
from verdict.results import UNVERIFIED, Problem, load_array

# Axes of each file of a run, by its kind.
AXES = {"fields": (1,), "floor": (1,), "algebra": (2,), "kernel": (1,), "exact": (2,)}
AXES |= dict.fromkeys(("trained", "lengths"), (1, 1, 1))


@dataclass(frozen=True)
class Measured:
    """One run: its record's `config`, the arrays of its files, and what else the record says."""

    config: dict[str, Any]
    values: tuple[np.ndarray, ...]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class TheoryResults:
    """All runs of one folder, in the order of their files' names, and what could not be used."""

    runs: list[Measured] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def of(self, kind: str, **config: Any) -> list[Measured]:
        """The runs of a kind whose config says this."""
        wanted = {"kind": kind, **config}.items()
        return [run for run in self.runs if wanted <= run.config.items()]


def load_theory_results(results_dir: Path) -> TheoryResults:
    """Load every run under `results_dir`/outputs_theory; what is unusable is in `problems`.

    Raises: NotADirectoryError, if `results_dir` is missing; without results there are no runs.
    """
    if not results_dir.is_dir():
        raise NotADirectoryError(f"no such folder: {results_dir}")
    results, folder = TheoryResults(), results_dir / THEORY_RESULTS
    recorded = set()
    for path in sorted(folder.glob("*.json")):
        try:
            record = read_record(path)
            recorded |= {path.with_name(name) for name in record.files}
            if diverged(record.outcome):
                results.problems.append(Problem(path, f"its training {record.outcome}"))
            elif record.files:
                values = tuple(_arrays(path, record))
                results.runs.append(Measured(record.config, values, record.model_extra))
        except ResultFileError as error:
            results.problems.append(Problem(path, str(error)))
    strangers = sorted(set(folder.glob("*.npy")) - recorded)
    results.problems += [Problem(path, "has no record") for path in strangers]
    return results


def _arrays(path: Path, record: Record) -> Iterator[np.ndarray]:
    """The arrays of a record's files. Raises: ResultFileError."""
    kind = record.config.get("kind")
    if kind not in AXES or len(AXES[kind]) != len(record.files):
        raise ResultFileError(f"not the record of a run of {', '.join(AXES)}")
    for name, ndim in zip(record.files, AXES[kind], strict=True):
        file = path.with_name(name)
        if file.exists() and not record.describes(file):
            raise ResultFileError(f"{name} is {UNVERIFIED}")
        yield load_array(file, ndim)
