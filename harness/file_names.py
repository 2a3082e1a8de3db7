"""Names of the result files, the same as the paper's released ones: made here, and read here.

A key is what a name says of the run that made the file; `names` are those of all its files, in a
curve first the steps.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import FiniteFloat, TypeAdapter, ValidationError


@dataclass(frozen=True)
class Key:
    """A run, whose fields stand in the names of its files."""

    templates: ClassVar[tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all its files; a field that is None is left out."""
        names = (template.format(**vars(self)) for template in self.templates)
        return tuple(name.replace("_None", "") for name in names)

    def paths(self, folder: Path) -> tuple[Path, ...]:
        """Its files in a folder."""
        return tuple(folder / name for name in self.names)


@dataclass(frozen=True, order=True)
class ToyScoreKey(Key):
    """A run of the Linear CDE on the toy task, which leaves one number: the validation MSE."""

    templates = ("lin_cde_mse_{input_dim}_run_{run}.npy",)
    input_dim: int
    run: int


@dataclass(frozen=True, order=True)
class ToyCurveKey(Key):
    """A run of a sequence model on the toy task."""

    templates = tuple(
        f"{kind}_100_{{model}}_{{nonlinear}}_{{depth}}_{{learning_rate}}_{{hidden_dim}}"
        "_{input_dim}_run_{run}.npy"
        for kind in ("steps", "rmse")
    )
    model: str
    depth: int
    nonlinear: bool
    input_dim: int
    learning_rate: FiniteFloat
    hidden_dim: int
    run: int


@dataclass(frozen=True)
class A5ScoreKey(Key):
    """A run of the Linear CDE on A5."""

    templates = ("linear_cde_length_{length}_steps.npy", "linear_cde_length_{length}_val_accs.npy")
    length: int


@dataclass(frozen=True)
class A5CurveKey(Key):
    """A run of a sequence model on A5; `batch_size` is None where the name is silent."""

    templates = tuple(
        f"{{model}}_{{length}}_{{depth}}_{{learning_rate}}_{{hidden_dim}}_{{batch_size}}_{kind}"
        "_run_{seed}.npy"
        for kind in ("steps", "acc")
    )
    model: str
    length: int
    depth: int
    learning_rate: FiniteFloat
    hidden_dim: int
    seed: int
    batch_size: int | None = None


def parse_name(name: str) -> Key | None:
    """What a file's name says of its run, or None for any other name."""
    for kind in (ToyScoreKey, ToyCurveKey, A5ScoreKey, A5CurveKey):
        for template in kind.templates:
            # Every field may be absent here; a key without one that it needs is refused below.
            value = r"(?:\1(?P<\2>[A-Za-z0-9][A-Za-z0-9.-]*))?"
            pattern = re.sub(r"(_?)\\\{(\w+)\\\}", value, re.escape(template))
            if match := re.fullmatch(pattern, name):
                texts = {field: text for field, text in match.groupdict().items() if text}
                with suppress(ValidationError):
                    key = TypeAdapter(kind).validate_strings(texts)
                    return key if name in key.names else None
    return None


def configuration_label(model: str, depth: int, nonlinear: bool) -> str:
    """The name of a sequence-model configuration in figures and tables."""
    return f"{model}, depth {depth}" + (", nonlinear" if nonlinear else "")
