"""What the figures and the verdict are made from: the results of a folder.

Our own are found by their records, which name their files and their config; released files, which
have no records, by their names. A file that cannot be used is reported as a `Problem`, with its
path and the reason, and never passed over in silence.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from harness.errors import ResultFileError
from harness.file_names import A5CurveKey, A5ScoreKey, Key, ToyCurveKey, ToyScoreKey, parse_name
from harness.outcomes import diverged
from harness.paths import A5_RESULTS, THEORY_RESULTS, TOY_DATA, TOY_RESULTS
from harness.records import Record, read_record

PUBLISHED_RESULTS = Path(__file__).with_name("published_results.yaml")
LINEAR_CDE = "Linear CDE"
TRAIN_FRACTION = 0.8
UNVERIFIED = "unverified: not the file that its record describes"
# Axes of each file of a run of the theory, by its kind.
AXES = {"fields": (1,), "floor": (1,), "algebra": (2,), "kernel": (1,), "exact": (2,)}
AXES |= dict.fromkeys(("trained", "lengths"), (1, 1, 1))
# What its figure needs of the record, and of what type that is not a whole number.
SAID = {
    "fields": ("target", "hidden_dim", "block_size"),
    "algebra": ("block_size",),
    "kernel": ("state_dim",),
    "exact": ("group", "length", "block_size", "exact_margin"),
    "trained": ("group", "length", "block_size"),
    "lengths": ("group", "length", "block_size", "test_length", "order"),
}
SAID_AS = {"target": str, "group": str, "exact_margin": float}
DENSE = ("block_size", "dense")
_KEYS = {TOY_RESULTS: (ToyScoreKey, ToyCurveKey), A5_RESULTS: (A5ScoreKey, A5CurveKey)}


def published_results() -> dict:
    """The paper's numbers, by figure."""
    return yaml.safe_load(PUBLISHED_RESULTS.read_text(encoding="utf-8"))


def published_run(runs: list[dict], model: str, depth: int, length: int) -> dict:
    """The paper's run on A5 of a model, number of blocks and length; {} where unknown."""
    for run in runs:
        if (run["model"], run["depth"]) == (model, depth) and length in run["lengths"]:
            return run
    return {}


def published_stop(config: Mapping[str, Any]) -> int | None:
    """The step at which the paper's run on A5 of a run's config was solved; None where unknown."""
    if config.get("group") != "A5":
        return None
    known = published_results()["figure_2"]["stopping_points"]["runs"]
    model, depth = config.get("model", LINEAR_CDE), config.get("depth", 1)
    return published_run(known, model, depth, config["length"]).get("step")


@dataclass(frozen=True)
class Problem:
    """A file that was skipped, and why; `key` is its run, where that is known."""

    path: Path
    reason: str
    key: Key | None = None

    def __str__(self) -> str:
        """The path, then the reason."""
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class FoundRun:
    """A run whose files are somewhere; `verified`: they are those that its record describes."""

    key: Key
    paths: tuple[Path, ...]
    record: Record | None = None
    verified: bool = True

    @property
    def config(self) -> dict:
        """That of the record, or {} without one: released files have none."""
        return self.record.config if self.record else {}


@dataclass(frozen=True)
class ToyCurve:
    """One training run of a sequence model: validation RMSE (records,) at steps (records,).

    `config` is that of the run's record ({} without one).
    """

    key: ToyCurveKey
    steps: np.ndarray
    rmse: np.ndarray
    config: dict = field(default_factory=dict)

    @property
    def settings(self) -> dict:
        """The config, with what the file name says."""
        return {**self.config, **vars(self.key)}


@dataclass(frozen=True)
class ToyScore:
    """One Linear CDE run: its validation MSE and the `config` of its record ({} without one)."""

    input_dim: int
    run: int
    mse: float
    config: dict


@dataclass
class ToyResults:
    """All toy-task results of one folder, sorted by configuration and run."""

    scores: list[ToyScore] = field(default_factory=list)
    curves: list[ToyCurve] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class A5Curve:
    """One training run on A5: validation accuracy (records,) at steps (records,).

    `config` is that of the run's record, with what the file name says; {} where neither says any.
    `outcome` is how the record says that it ended, None without one.
    """

    model: str
    length: int
    depth: int
    config: dict
    steps: np.ndarray
    accuracies: np.ndarray
    outcome: str | None = None

    @property
    def best(self) -> float:
        """The greatest accuracy of any record."""
        return float(self.accuracies.max())

    @property
    def last_step(self) -> int:
        """The step of the last record."""
        return int(self.steps[-1])


@dataclass
class A5Results:
    """All A5 results of one folder, sorted by model, length and depth."""

    curves: list[A5Curve] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """One run of the theory: config and arrays, and in `details` what else its record says."""

    config: dict[str, Any]
    values: tuple[np.ndarray, ...]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class TheoryResults:
    """All runs of the theory of one folder, in the order of their files' names."""

    runs: list[Measured] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def of(self, kind: str, **config: Any) -> list[Measured]:
        """The runs of a kind whose config says this."""
        wanted = {"kind": kind, **config}.items()
        return [run for run in self.runs if wanted <= run.config.items()]


def find_runs(results_dir: Path, folder: str) -> tuple[list[FoundRun], list[Problem]]:
    """The runs of one task, and what is wrong with their records.

    The run of a record that cannot be used is found by name.
    Raises: NotADirectoryError if `results_dir` is missing.
    """
    if not results_dir.is_dir():
        raise NotADirectoryError(f"no such folder: {results_dir}")
    runs, problems = [], []
    for path in sorted((results_dir / folder).glob("*.json")):
        try:
            record = read_record(path)
            if record.files:  # a run that was not needed has none
                key = _recorded_key(record, folder)
                paths = tuple(path.with_name(name) for name in record.files)
                others = [p for p in paths if p.exists() and not record.describes(p)]
                problems += [Problem(p, UNVERIFIED, key) for p in others]
                runs.append(FoundRun(key, paths, record, verified=not others))
        except (FileNotFoundError, ResultFileError) as error:  # a link whose file is gone
            problems.append(Problem(path, str(error), parse_name(f"{path.stem}.npy")))
    recorded = {path for run in runs for path in run.paths}
    others = set((results_dir / folder).glob("*.npy")) - recorded
    for key in {parse_name(path.name) for path in others} - {None}:
        runs.append(FoundRun(key, key.paths(results_dir / folder)))
    return runs, problems


def _recorded_key(record: Record, folder: str) -> Key:
    """The run that a record's config is of. Raises: ResultFileError."""
    scores, curves = _KEYS[folder]
    kind = curves if "model" in record.config else scores
    said = {f.name: record.config[f.name] for f in fields(kind) if f.name in record.config}
    with suppress(TypeError, ValueError):
        key = kind(**said)
        if parse_name(key.names[0]) == key and len(key.names) == len(record.files):
            return key
    needed = ", ".join(field.name for field in fields(kind) if field.default is MISSING)
    raise ResultFileError(f"not the record of one run by {needed}")


def load_toy_results(results_dir: Path) -> ToyResults:
    """Load every toy-task result under `results_dir`/outputs_toy.

    Unusable files are listed in `problems`. Raises NotADirectoryError if `results_dir` is missing;
    a folder without results is not an error.
    """
    runs, problems = _load_runs(results_dir, TOY_RESULTS)
    results = ToyResults(problems=problems)
    for run, values in runs:
        if isinstance(run.key, ToyCurveKey):
            results.curves.append(ToyCurve(run.key, *values, run.config))
        else:
            score = ToyScore(run.key.input_dim, run.key.run, float(values[0]), run.config)
            results.scores.append(score)
    results.scores.sort(key=lambda score: (score.input_dim, score.run))
    results.curves.sort(key=lambda curve: curve.key)
    return results


def load_a5_results(results_dir: Path) -> A5Results:
    """Load every A5 result under `results_dir`/outputs_A5; errors as `load_toy_results`."""
    runs, problems = _load_runs(results_dir, A5_RESULTS)
    results = A5Results(problems=problems)
    for run, values in runs:
        named = vars(run.key) if isinstance(run.key, A5CurveKey) else {}
        model, depth = named.get("model", LINEAR_CDE), named.get("depth", 1)
        config = run.config | {name: value for name, value in named.items() if value is not None}
        outcome = run.record.outcome if run.record else None
        results.curves.append(A5Curve(model, run.key.length, depth, config, *values, outcome))
    results.curves.sort(key=lambda c: (c.model, c.length, c.depth, str(sorted(c.config.items()))))
    return results


def _load_runs(
    results_dir: Path, folder: str
) -> tuple[list[tuple[FoundRun, list[np.ndarray]]], list[Problem]]:
    """The runs of one task with the arrays of their files, and what is unusable, by path."""
    runs, problems = find_runs(results_dir, folder)
    usable = [run for run in runs if run.verified and isinstance(run.key, _KEYS[folder])]
    loaded = [(run, values) for run in usable if (values := _values(run, problems))]
    return loaded, sorted(problems, key=lambda problem: problem.path)


def _values(run: FoundRun, problems: list[Problem]) -> list[np.ndarray]:
    """The arrays of a run's files, or none with the reasons among `problems`."""
    values, found = [], []
    for path in run.paths:
        try:
            values.append(load_array(path, ndim=0 if isinstance(run.key, ToyScoreKey) else 1))
        except ResultFileError as error:
            found.append(Problem(path, str(error), run.key))
    if not found and (reason := _defect(run.key, values[0], values[-1])):
        found.append(Problem(run.paths[-1], reason, run.key))
    problems += found
    return [] if found else values


def _defect(key: Key, steps: np.ndarray, values: np.ndarray) -> str | None:
    """What is wrong with the steps and values (records,) of a run, or with its MSE, then both."""
    if isinstance(key, ToyScoreKey):
        return f"holds {values}, not a positive error" if values <= 0 else None
    if len(steps) != len(values):
        return f"has {len(values)} values for {len(steps)} steps"
    if steps[0] < 0 or (np.diff(steps) <= 0).any():
        return "belongs to steps that do not increase from 0"
    if isinstance(key, ToyCurveKey):
        return "holds an error that is not positive" if (values <= 0).any() else None
    outside = ((values < 0) | (values > 1)).any()
    return "holds an accuracy that is not between 0 and 1" if outside else None


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
                values = tuple(_theory_arrays(path, record))
                results.runs.append(Measured(record.config, values, record.model_extra))
        except (FileNotFoundError, ResultFileError) as error:
            results.problems.append(Problem(path, str(error)))
    strangers = sorted(set(folder.glob("*.npy")) - recorded)
    results.problems += [Problem(path, "has no record") for path in strangers]
    return results


def _theory_arrays(path: Path, record: Record) -> Iterator[np.ndarray]:
    """The arrays of a record's files. Raises: ResultFileError."""
    kind = record.config.get("kind")
    if str(kind) not in AXES or len(AXES[kind]) != len(record.files):
        raise ResultFileError(f"not the record of a run of {', '.join(AXES)}")
    said = {**record.model_extra, **record.config}
    for key in SAID.get(kind, ()):
        expected = SAID_AS.get(key, int)
        if not isinstance(said.get(key), expected) and (key, said.get(key)) != DENSE:
            raise ResultFileError(f"{key}: {said.get(key)!r} is not of a run of {kind}")
    for name, ndim in zip(record.files, AXES[kind], strict=True):
        file = path.with_name(name)
        if file.exists() and not record.describes(file):
            raise ResultFileError(f"{name} is {UNVERIFIED}")
        yield load_array(file, ndim)


def load_array(path: Path, ndim: int) -> np.ndarray:
    """Load a float64 array of `ndim` axes; ResultFileError if the file is anything else."""
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise ResultFileError("is missing") from error
    except Exception as error:  # a damaged header makes NumPy raise almost anything
        raise ResultFileError(f"not a readable .npy file ({error})") from error
    if array.dtype.kind not in "fiu":
        raise ResultFileError("does not hold an array of real numbers")
    if array.ndim != ndim or array.size == 0:
        raise ResultFileError(f"has shape {array.shape}, expected {ndim} axes and some content")
    if not np.isfinite(array).all():
        raise ResultFileError("holds NaN or infinite values")
    return array.astype(np.float64)


def predicting_zero(data_dir: Path, stored: dict[int, float], problems: list[Problem]) -> dict:
    """RMS of the validation labels by input dimension: from the data, else the stored figure."""
    rms = dict(stored)
    for input_dim in stored:
        path = data_dir / TOY_DATA / f"labels_{input_dim}.npy"
        if path.exists():
            try:
                labels = load_array(path, ndim=1)
            except ResultFileError as error:
                problems.append(Problem(path, str(error)))
                continue
            validation = labels[int(TRAIN_FRACTION * len(labels)) :]
            rms[input_dim] = float(np.sqrt(np.mean(validation**2)))
    # Six digits are the same from the data and stored: a figure changes when results do.
    return {input_dim: float(f"{value:.6g}") for input_dim, value in rms.items()}
