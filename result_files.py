"""Names of the result files, the same as the paper's released ones, and how to find and load them.

Every reader of results goes through here: a file that cannot be used is reported as a `Problem`,
with its path and the reason, and never passed over in silence.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

REPO_ROOT = Path(__file__).resolve().parent
PUBLISHED_RESULTS = REPO_ROOT / "published_results.yaml"
TOY_FOLDER = "outputs_toy"
A5_FOLDER = "outputs_A5"

_TOY_LCDE_PATTERN = re.compile(r"lin_cde_mse_(?P<input_dim>\d+)_run_(?P<run>\d+)\.npy")
_TOY_CURVE_PATTERN = re.compile(
    r"(?P<kind>steps|rmse)_100_(?P<model>[A-Za-z0-9-]+)_(?P<nonlinear>True|False)_(?P<depth>\d+)_"
    r"(?P<learning_rate>\d[\d.e+-]*)_(?P<hidden_dim>\d+)_(?P<input_dim>\d+)_run_(?P<run>\d+)\.npy"
)


class ResultFileError(ValueError):
    """A result file exists but its content cannot be used; the message says why."""


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
    """One training run of a sequence model: validation RMSE (records,) at steps (records,)."""

    key: ToyCurveKey
    steps: np.ndarray
    rmse: np.ndarray


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
) -> str:
    """File holding a sequence model's curve on A5; `kind` is 'steps' or 'acc'."""
    settings = f"{length}_{depth}_{float(learning_rate)}_{hidden_dim}"
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
    if not results_dir.is_dir():
        raise NotADirectoryError(f"no such folder: {results_dir}")
    results = ToyResults()
    curve_keys = set()
    for path in sorted((results_dir / TOY_FOLDER).glob("*.npy")):
        if parse_toy_lcde_name(path.name):
            _add_score(results, path)
        elif parsed := parse_toy_curve_name(path.name):
            curve_keys.add(parsed[1])
    for key in sorted(curve_keys):
        _add_curve(results, results_dir / TOY_FOLDER, key)
    results.scores.sort(key=lambda score: (score.input_dim, score.run))
    return results


def _add_score(results: ToyResults, path: Path) -> None:
    input_dim, run = parse_toy_lcde_name(path.name)
    try:
        mse = float(load_array(path, ndim=0))
        if mse <= 0:
            raise ResultFileError(f"holds {mse}, not a positive error")
    except ResultFileError as error:
        results.problems.append(Problem(path, str(error)))
        return
    config = _load_config(results, path.with_suffix(".json"))
    results.scores.append(ToyScore(input_dim, run, mse, config))


def _load_config(results: ToyResults, path: Path) -> dict:
    """The `config` of a run record, or {} where there is no record (released files have none)."""
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        if not isinstance(config, dict):
            raise ResultFileError("its 'config' is not a mapping")
    except (OSError, ValueError, TypeError, KeyError) as error:
        results.problems.append(Problem(path, f"not a usable run record ({error!r})"))
        return {}
    return config


def _add_curve(results: ToyResults, folder: Path, key: ToyCurveKey) -> None:
    arrays = []
    for path in (folder / toy_steps_name(key), folder / toy_rmse_name(key)):
        try:
            arrays.append(load_array(path, ndim=1))
        except ResultFileError as error:
            results.problems.append(Problem(path, str(error)))
    if len(arrays) < 2:
        return
    steps, rmse = arrays
    reason = _curve_defect(steps, rmse)
    if reason:
        results.problems.append(Problem(folder / toy_rmse_name(key), reason))
    else:
        results.curves.append(ToyCurve(key, steps, rmse))


def _curve_defect(steps: np.ndarray, rmse: np.ndarray) -> str | None:
    if len(steps) != len(rmse):
        return f"has {len(rmse)} values for {len(steps)} steps"
    if steps[0] < 0 or (np.diff(steps) <= 0).any():
        return "belongs to steps that do not increase from 0"
    if (rmse <= 0).any():
        return "holds an error that is not positive"
    return None
