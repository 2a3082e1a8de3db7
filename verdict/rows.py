"""The paper's numbers beside ours: the rows that comparisons fill, verdicts, the answer."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from harness.file_names import Key
from verdict.results import UNVERIFIED, Problem

AGREES = "agrees"
DISAGREES = "disagrees"
BETTER = "better outside the band"
ROUNDING = "GPU rounding"
WORSE = "worse outside the band"
PARTIAL = "partial"
NOT_RUN = "not run"
NOT_COMPARABLE = "not comparable"
MEAN = "mean"
OTHER_SETTINGS = " *"  # ends the label of what was not made with the paper's settings
OTHER_SETTINGS_LABEL = "* not the paper's settings"
QUESTION = "Does this agree with the paper?"
# In the order in which they are counted: words for one number, for several, style on a terminal.
VERDICTS = {
    AGREES: ("agrees", "agree", "green"),
    DISAGREES: ("disagrees", "disagree", "bold red"),
    ROUNDING: ("differs by GPU rounding", "differ by GPU rounding", "cyan"),
    BETTER: ("is better than its band", "are better than its band", "cyan"),
    WORSE: ("is worse than its band", "are worse than its band", "bold red"),
    PARTIAL: ("is partial", "are partial", "yellow"),
    NOT_COMPARABLE: ("is not comparable", "are not comparable", "yellow"),
    NOT_RUN: ("was not run", "were not run", "dim"),
}
_SO_FAR = {AGREES: "inside the band so far", BETTER: "better so far", WORSE: "worse so far"}
VERDICT_RULE = (
    "Lower is 'better outside the band', higher is 'worse outside the band'. 'partial': training "
    "stopped early, so the step is the last published one it recorded, and the note says how it "
    "compares at that step. 'not comparable': the settings are not the paper's, or a file is not "
    "the one that its record describes ('unverified')."
)


@dataclass(frozen=True)
class ErrorRow:
    """An error of the paper on the toy task beside ours; None where there is none.

    `run` is a run's number or 'mean'. `paper_min` and `paper_max` are over the paper's runs, `low`
    and `high` the limits of 'agrees'. `relative_difference` is from what decides: the same run's
    number, the nearest end of the paper's range or predicting zero. `step` is our value's; where
    that is not the last one, `so_far` is the verdict at that step.
    """

    figure: ClassVar[int] = 1
    model: str
    depth: int | None
    nonlinear: bool | None
    input_dim: int
    run: int | str
    quantity: str
    step: int | None = None
    ours: float | None = None
    paper: float | None = None
    paper_min: float | None = None
    paper_max: float | None = None
    relative_difference: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = NOT_RUN
    so_far: str | None = None
    precision: str | None = None
    note: str = ""

    @property
    def is_published(self) -> bool:
        """Whether it stands for a number of the paper, not for one more run of ours."""
        return self.run == MEAN or (self.quantity == "MSE" and self.paper is not None)

    @property
    def paper_number(self) -> float | None:
        """The paper's to set beside ours: a single run stands beside the range, not the mean."""
        return self.paper if self.run == MEAN or self.paper_min is None else None

    @property
    def difference(self) -> str:
        """The relative difference in words."""
        if self.relative_difference == 0 and self.quantity == "RMSE":
            return "inside"
        return "-" if self.relative_difference is None else f"{self.relative_difference:+.1%}"


@dataclass(frozen=True)
class BlocksRow:
    """A number of blocks of the paper on A5 beside ours; None where there is none.

    `state` and `paper_state` are numbers of blocks or why there is none, and the accuracies are the
    last records of the runs that decided; where the paper's is known as a range only, it is a
    mapping with min and max. `depth` is that of a run which the paper does not have.
    """

    figure: ClassVar[int] = 2
    model: str
    length: int
    depth: int | None = None
    quantity: str = "minimum blocks"
    ours: int | None = None
    state: str | None = None
    step: int | None = None
    accuracy: float | None = None
    paper: int | None = None
    paper_state: str | None = None
    paper_step: int | None = None
    paper_accuracy: float | dict[str, float] | None = None
    difference: int | None = None
    verdict: str = NOT_RUN
    note: str = ""

    @property
    def is_published(self) -> bool:
        """Whether it stands for a number of the paper, not for one more run of ours."""
        return self.paper_state is not None


Row = ErrorRow | BlocksRow


def count_verdicts(rows: list[Row]) -> dict[str, int]:
    """How many of the paper's numbers got each verdict, in a fixed order."""
    counts = Counter(row.verdict for row in rows if row.is_published)
    return {verdict: counts[verdict] for verdict in VERDICTS}


def answer(rows: list[Row]) -> str:
    """Whether our numbers agree with the paper's, in a sentence."""
    counts = count_verdicts(rows)
    total = sum(counts.values())
    published = [row for row in rows if row.is_published]
    so_far = Counter(row.so_far for row in published if isinstance(row, ErrorRow))
    phrases = {v: f"{count} {VERDICTS[v][count > 1]}" for v, count in counts.items() if count}
    if known := [f"{so_far[v]} {words}" for v, words in _SO_FAR.items() if so_far[v]]:
        phrases[PARTIAL] += f" ({', '.join(known)})"
    *others, last = phrases.values()
    listed = f"{', '.join(others)} and {last}" if others else last
    return f"{_lead(counts, so_far)}: of the paper's {total} numbers, {listed}."


def _lead(counts: dict[str, int], so_far: Counter) -> str:
    if not any(counts[v] for v in (AGREES, DISAGREES, ROUNDING, BETTER, WORSE, PARTIAL)):
        return "Not known yet"
    if counts[DISAGREES] or counts[WORSE] or so_far[WORSE]:
        return "Not everywhere"
    words = "it agrees or is better" if counts[BETTER] or so_far[BETTER] else "yes"
    complete = counts[AGREES] + counts[ROUNDING] + counts[BETTER] == sum(counts.values())
    return words[0].upper() + words[1:] if complete else f"As far as it was run, {words}"


def defects(problems: list[Problem]) -> dict[Key, str]:
    """Why files were unusable, by the run they belong to."""
    return {problem.key: problem.reason for problem in problems if problem.key is not None}


def verdict_without_result(reasons: Iterable[str]) -> str:
    """The verdict on a number whose result is missing or, for these reasons, unusable."""
    return NOT_COMPARABLE if any(UNVERIFIED in reason for reason in reasons) else NOT_RUN


def departures(config: dict, settings: dict) -> list[str]:
    """How `config` differs from the paper's `settings`, one phrase a setting it has."""
    return [
        f"{name} {config[name]}, paper {value}"
        for name, value in settings.items()
        if name in config and config[name] != value
    ]


def unrecorded(config: dict, settings: dict) -> list[str]:
    """Which of the paper's settings a record's config lacks, as one phrase."""
    names = [name for name in settings if name not in config]
    return [f"not recorded: {', '.join(names)}"] if names else []


def accuracy_text(accuracy: float | dict[str, float]) -> str:
    """An accuracy, or a range of them."""
    if not isinstance(accuracy, dict):
        return f"{accuracy:.4f}"
    low = f"{accuracy['min']:.4f}"
    return f"{low} to {accuracy['max']:.4f}" if "max" in accuracy else f"{low} or more"
