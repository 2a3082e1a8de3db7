"""Names of the result files, the same as the paper's released ones, and how to find and load them.

Every reader of results goes through here: a file that cannot be used is reported as a `Problem`,
with its path and the reason, and never passed over in silence.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harness.errors import ResultFileError
from harness.paths import A5_RESULTS, ROOT, TOY_RESULTS

PUBLISHED_RESULTS = ROOT / "verdict" / "published_results.yaml"

_TOY_LCDE_PATTERN = re.compile(r"lin_cde_mse_(?P<input_dim>\d+)_run_(?P<run>\d+)\.npy")
_TOY_CURVE_PATTERN = re.compile(
    r"(?P<kind>steps|rmse)_100_(?P<model>[A-Za-z0-9-]+)_(?P<nonlinear>True|False)_(?P<depth>\d+)_"
    r"(?P<learning_rate>\d[\d.e+-]*)_(?P<hidden_dim>\d+)_(?P<input_dim>\d+)_run_(?P<run>\d+)\.npy"
)
_A5_LCDE_PATTERN = re.compile(r"linear_cde_length_(?P<length>\d+)_(?P<kind>steps|val_accs)\.npy")
_A5_CURVE_PATTERN = re.compile(
    r"(?P<model>[A-Za-z0-9-]+)_(?P<length>\d+)_(?P<depth>\d+)_(?P<learning_rate>\d[\d.e+-]*)_"
    r"(?P<hidden_dim>\d+)(_(?P<batch_size>\d+))?_(?P<kind>steps|acc)_run_(?P<seed>\d+)\.npy"
)

LINEAR_CDE = "Linear CDE"


@dataclass(frozen=True)
class Problem:
    """A file that was skipped, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        """The path, then the reason."""
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, order=True)
class ToyCurveKey:
    """What the name of a toy-task curve says about the run that made it."""

    model: str
    depth: int
    nonlinear: bool
    input_dim: int
    learning_rate: float
    hidden_dim: int
    run: int


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
class A5CurveKey:
    """What the name of a sequence model's A5 file says; `batch_size` is None where it is silent."""

    model: str
    length: int
    depth: int
    learning_rate: float
    hidden_dim: int
    seed: int
    batch_size: int | None = None


@dataclass(frozen=True)
class A5Curve:
    """One training run on A5: validation accuracy (records,) at steps (records,).

    `config` is that of the run's record, with what the file name says; {} where neither says any.
    """

    model: str
    length: int
    depth: int
    config: dict
    steps: np.ndarray
    accuracies: np.ndarray

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


def configuration_label(model: str, depth: int, nonlinear: bool) -> str:
    """The name of a sequence-model configuration in figures and tables."""
    return f"{model}, depth {depth}" + (", nonlinear" if nonlinear else "")


def departures(config: dict, settings: dict) -> list[str]:
    """How `config` differs from the paper's `settings`, one phrase a setting it has."""
    return [
        f"{name} {config[name]}, paper {value}"
        for name, value in settings.items()
        if name in config and config[name] != value
    ]


def toy_lcde_name(input_dim: int, run: int) -> str:
    """File holding the Linear CDE's validation MSE on the toy task, a 0-d array."""
    return f"lin_cde_mse_{input_dim}_run_{run}.npy"


def toy_steps_name(key: ToyCurveKey) -> str:
    """File holding the steps at which a toy-task run was evaluated, a 1-d array."""
    return f"steps_{_toy_curve_stem(key)}.npy"


def toy_rmse_name(key: ToyCurveKey) -> str:
    """File holding the validation RMSE at those steps, a 1-d array."""
    return f"rmse_{_toy_curve_stem(key)}.npy"


def _toy_curve_stem(key: ToyCurveKey) -> str:
    settings = f"{bool(key.nonlinear)}_{key.depth}_{float(key.learning_rate)}_{key.hidden_dim}"
    return f"100_{key.model}_{settings}_{key.input_dim}_run_{key.run}"


def a5_lcde_name(length: int, kind: str) -> str:
    """File holding the Linear CDE's curve on A5; `kind` is 'steps' or 'val_accs'."""
    return f"linear_cde_length_{length}_{kind}.npy"


def a5_curve_name(
    model: str,
    length: int,
    depth: int,
    learning_rate: float,
    hidden_dim: int,
    kind: str,
    seed: int,
    batch_size: int | None = None,
) -> str:
    """File holding a sequence model's curve on A5; `kind` is 'steps' or 'acc'."""
    settings = f"{length}_{depth}_{float(learning_rate)}_{hidden_dim}"
    settings += "" if batch_size is None else f"_{batch_size}"
    return f"{model}_{settings}_{kind}_run_{seed}.npy"


def parse_toy_lcde_name(name: str) -> tuple[int, int] | None:
    """Input dimension and run that a Linear CDE file name states, or None for any other name."""
    match = _TOY_LCDE_PATTERN.fullmatch(name)
    return (int(match["input_dim"]), int(match["run"])) if match else None


def parse_toy_curve_name(name: str) -> tuple[str, ToyCurveKey] | None:
    """Kind ('steps' or 'rmse') and key that a curve's file name states, or None for other names."""
    match = _TOY_CURVE_PATTERN.fullmatch(name)
    if match is None:
        return None
    try:
        learning_rate = float(match["learning_rate"])
    except ValueError:
        return None
    key = ToyCurveKey(
        model=match["model"],
        depth=int(match["depth"]),
        nonlinear=match["nonlinear"] == "True",
        input_dim=int(match["input_dim"]),
        learning_rate=learning_rate,
        hidden_dim=int(match["hidden_dim"]),
        run=int(match["run"]),
    )
    return match["kind"], key


def parse_a5_lcde_name(name: str) -> tuple[str, int] | None:
    """Kind ('steps' or 'val_accs') and length that a file name states, or None for other names."""
    match = _A5_LCDE_PATTERN.fullmatch(name)
    return (match["kind"], int(match["length"])) if match else None


def parse_a5_curve_name(name: str) -> tuple[str, A5CurveKey] | None:
    """Kind ('steps' or 'acc') and key that a file name states, or None for other names."""
    match = _A5_CURVE_PATTERN.fullmatch(name)
    if match is None:
        return None
    try:
        learning_rate = float(match["learning_rate"])
    except ValueError:
        return None
    key = A5CurveKey(
        model=match["model"],
        length=int(match["length"]),
        depth=int(match["depth"]),
        learning_rate=learning_rate,
        hidden_dim=int(match["hidden_dim"]),
        seed=int(match["seed"]),
        batch_size=int(match["batch_size"]) if match["batch_size"] else None,
    )
    return match["kind"], key


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


def load_toy_results(results_dir: Path) -> ToyResults:
    """Load every toy-task result under `results_dir`/outputs_toy.

    Unusable files are listed in `problems`. Raises NotADirectoryError if `results_dir` is missing;
    a folder without results is not an error.
    """
    results = ToyResults()
    curve_keys = set()
    for path in _npy_files(results_dir, TOY_RESULTS):
        if parse_toy_lcde_name(path.name):
            _add_score(results, path)
        elif parsed := parse_toy_curve_name(path.name):
            curve_keys.add(parsed[1])
    for key in sorted(curve_keys):
        paths = [results_dir / TOY_RESULTS / name(key) for name in (toy_steps_name, toy_rmse_name)]
        if curve := _load_curve(*paths, _rmse_defect, results.problems):
            config = _load_config(paths[0].with_suffix(".json"), results.problems)
            results.curves.append(ToyCurve(key, *curve, config))
    results.scores.sort(key=lambda score: (score.input_dim, score.run))
    return results


def load_a5_results(results_dir: Path) -> A5Results:
    """Load every A5 result under `results_dir`/outputs_A5; errors as `load_toy_results`."""
    results = A5Results()
    lengths, keys = set(), set()
    for path in _npy_files(results_dir, A5_RESULTS):
        if lcde := parse_a5_lcde_name(path.name):
            lengths.add(lcde[1])
        elif parsed := parse_a5_curve_name(path.name):
            keys.add(parsed[1])
    for length in lengths:
        names = [a5_lcde_name(length, kind) for kind in ("steps", "val_accs")]
        _add_a5_curve(results, results_dir, names, (LINEAR_CDE, length, 1), {})
    for key in keys:
        names = [a5_curve_name(**vars(key), kind=kind) for kind in ("steps", "acc")]
        config = {name: value for name, value in vars(key).items() if value is not None}
        _add_a5_curve(results, results_dir, names, (key.model, key.length, key.depth), config)
    results.curves.sort(key=lambda c: (c.model, c.length, c.depth, str(sorted(c.config.items()))))
    results.problems.sort(key=lambda problem: problem.path)
    return results


def _npy_files(results_dir: Path, folder: str) -> list[Path]:
    if not results_dir.is_dir():
        raise NotADirectoryError(f"no such folder: {results_dir}")
    return sorted((results_dir / folder).glob("*.npy"))


def _add_score(results: ToyResults, path: Path) -> None:
    input_dim, run = parse_toy_lcde_name(path.name)
    try:
        mse = float(load_array(path, ndim=0))
        if mse <= 0:
            raise ResultFileError(f"holds {mse}, not a positive error")
    except ResultFileError as error:
        results.problems.append(Problem(path, str(error)))
        return
    config = _load_config(path.with_suffix(".json"), results.problems)
    results.scores.append(ToyScore(input_dim, run, mse, config))


def _add_a5_curve(
    results: A5Results, results_dir: Path, names: list[str], cell: tuple, config: dict
) -> None:
    """Load one run; `names` are its two files, `cell` its model, length and depth."""
    paths = [results_dir / A5_RESULTS / name for name in names]
    if curve := _load_curve(*paths, _accuracy_defect, results.problems):
        record = _load_config(paths[0].with_suffix(".json"), results.problems)
        results.curves.append(A5Curve(*cell, {**record, **config}, *curve))


def _load_config(path: Path, problems: list[Problem]) -> dict:
    """The `config` of a run record, or {} where there is no record (released files have none)."""
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        if not isinstance(config, dict):
            raise ResultFileError("its 'config' is not a mapping")
    except (OSError, ValueError, TypeError, KeyError) as error:
        problems.append(Problem(path, f"not a usable run record ({error!r})"))
        return {}
    return config


def _load_curve(
    steps_path: Path,
    values_path: Path,
    values_defect: Callable[[np.ndarray], str | None],
    problems: list[Problem],
) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps and values (records,) of one run, or None with the reason among `problems`."""
    arrays = []
    for path in (steps_path, values_path):
        try:
            arrays.append(load_array(path, ndim=1))
        except ResultFileError as error:
            problems.append(Problem(path, str(error)))
    if len(arrays) < 2:
        return None
    steps, values = arrays
    if len(steps) != len(values):
        reason = f"has {len(values)} values for {len(steps)} steps"
    elif steps[0] < 0 or (np.diff(steps) <= 0).any():
        reason = "belongs to steps that do not increase from 0"
    else:
        reason = values_defect(values)
    if reason:
        problems.append(Problem(values_path, reason))
        return None
    return steps, values


def _rmse_defect(rmse: np.ndarray) -> str | None:
    return "holds an error that is not positive" if (rmse <= 0).any() else None


def _accuracy_defect(accuracies: np.ndarray) -> str | None:
    outside = ((accuracies < 0) | (accuracies > 1)).any()
    return "holds an accuracy that is not between 0 and 1" if outside else None
