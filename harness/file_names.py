"""Names of the result files, the same as the paper's released ones: made here, and read here.

A key is what a name says of the run that made the file; `names` are those of all its files.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class ToyScoreKey:
    """A run of the Linear CDE on the toy task, which leaves one number."""

    input_dim: int
    run: int

    @property
    def names(self) -> tuple[str, ...]:
        """The file of the validation MSE."""
        return (toy_lcde_name(self.input_dim, self.run),)


@dataclass(frozen=True, order=True)
class ToyCurveKey:
    """A run of a sequence model on the toy task."""

    model: str
    depth: int
    nonlinear: bool
    input_dim: int
    learning_rate: float
    hidden_dim: int
    run: int

    @property
    def names(self) -> tuple[str, ...]:
        """The files of steps and RMSE."""
        return toy_steps_name(self), toy_rmse_name(self)


@dataclass(frozen=True)
class A5ScoreKey:
    """A run of the Linear CDE on A5."""

    length: int

    @property
    def names(self) -> tuple[str, ...]:
        """The files of steps and accuracies."""
        return tuple(a5_lcde_name(self.length, kind) for kind in ("steps", "val_accs"))


@dataclass(frozen=True)
class A5CurveKey:
    """A run of a sequence model on A5; `batch_size` is None where the name is silent."""

    model: str
    length: int
    depth: int
    learning_rate: float
    hidden_dim: int
    seed: int
    batch_size: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The files of steps and accuracies."""
        return tuple(a5_curve_name(**vars(self), kind=kind) for kind in ("steps", "acc"))


Key = ToyScoreKey | ToyCurveKey | A5ScoreKey | A5CurveKey

_RATE = r"(?P<learning_rate>\d[\d.e+-]*)"
_MODEL = r"(?P<model>[A-Za-z0-9-]+)"
_PATTERNS = {
    ToyScoreKey: r"lin_cde_mse_(?P<input_dim>\d+)_run_(?P<run>\d+)\.npy",
    ToyCurveKey: rf"(steps|rmse)_100_{_MODEL}_(?P<nonlinear>True|False)_(?P<depth>\d+)_{_RATE}_"
    r"(?P<hidden_dim>\d+)_(?P<input_dim>\d+)_run_(?P<run>\d+)\.npy",
    A5ScoreKey: r"linear_cde_length_(?P<length>\d+)_(steps|val_accs)\.npy",
    A5CurveKey: rf"{_MODEL}_(?P<length>\d+)_(?P<depth>\d+)_{_RATE}_(?P<hidden_dim>\d+)"
    r"(_(?P<batch_size>[1-9]\d*))?_(steps|acc)_run_(?P<seed>\d+)\.npy",
}
_READ = {
    "model": str,
    "nonlinear": lambda text: text == "True",
    "learning_rate": float,
    "batch_size": lambda text: text and int(text),
}


def parse_name(name: str) -> Key | None:
    """What a file's name says of its run, or None for any other name."""
    for key, pattern in _PATTERNS.items():
        if match := re.fullmatch(pattern, name):
            try:
                return key(**{n: _READ.get(n, int)(text) for n, text in match.groupdict().items()})
            except ValueError:  # digits and dots that are no number
                return None
    return None


def configuration_label(model: str, depth: int, nonlinear: bool) -> str:
    """The name of a sequence-model configuration in figures and tables."""
    return f"{model}, depth {depth}" + (", nonlinear" if nonlinear else "")


def toy_lcde_name(input_dim: int, run: int) -> str:
    """File holding the validation MSE of a Linear CDE run, a 0-d array."""
    return f"lin_cde_mse_{input_dim}_run_{run}.npy"


def toy_steps_name(key: ToyCurveKey) -> str:
    """File holding the steps of a toy-task curve, a 1-d array."""
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
