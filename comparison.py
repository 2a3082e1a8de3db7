"""One number of the paper beside ours: the row that every comparison fills, and its verdicts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from result_files import Problem

AGREES = "agrees"
DISAGREES = "disagrees"
BETTER = "better outside the band"
WORSE = "worse outside the band"
PARTIAL = "partial"
NOT_RUN = "not run"
NOT_COMPARABLE = "not comparable"
VERDICT_STYLES = {
    AGREES: "green",
    DISAGREES: "bold red",
    BETTER: "cyan",
    WORSE: "bold red",
    PARTIAL: "yellow",
    NOT_COMPARABLE: "yellow",
    NOT_RUN: "dim",
}


@dataclass(frozen=True)
class Row:
    """One number of the paper beside ours; None where there is none.

    `run` is a run's number or 'mean'. `low` and `high` are the limits of 'agrees'. `step` is our
    value's. In Figure 2 `state` and `paper_state` are numbers of blocks or why there is none, and
    the accuracies are the last records of the runs that decided; where the paper's is known as a
    range only, it is a mapping with min and max.
    """

    figure: int
    model: str
    depth: int | None
    nonlinear: bool | None
    input_dim: int | None
    length: int | None
    run: int | str | None
    quantity: str
    step: int | None = None
    ours: float | None = None
    paper: float | None = None
    relative_difference: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = NOT_RUN
    precision: str | None = None
    note: str = ""
    difference: int | None = None
    state: str | None = None
    paper_state: str | None = None
    accuracy: float | None = None
    paper_step: int | None = None
    paper_accuracy: float | dict[str, float] | None = None


def defects(problems: list[Problem], parse: Callable[[str], Any]) -> dict[Any, str]:
    """Why files were unusable, by what `parse` reads in their names."""
    parsed = [(parse(p.path.with_suffix(".npy").name), p.reason) for p in problems]
    return {identity: reason for identity, reason in parsed if identity is not None}
