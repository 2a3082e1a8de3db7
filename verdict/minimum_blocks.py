"""The fewest blocks that solve a length of A5 (Figure 2's number), computed from accuracies alone.

The paper's search tries 1, 2, 3, 4 blocks in turn and lengths in increasing order; a number of
blocks that failed at one length is not tried at longer ones. Runs that are missing or stopped early
are no failures: they leave a range of possible numbers.
"""

from collections import defaultdict
from dataclasses import dataclass

from harness.file_names import configuration_label
from harness.outcomes import FINISHED, diverged, failed
from verdict.results import LINEAR_CDE, A5Curve, A5Results
from verdict.rows import NOT_RUN, departures, unrecorded

NOT_REACHED = "not reached"
UNFINISHED = "unfinished"
MARKS = {NOT_REACHED: "–", UNFINISHED: "…", NOT_RUN: "·"}
OTHER_SETTINGS = " *"  # ends the label of what was not made with the paper's settings
OTHER_SETTINGS_LABEL = "* not the paper's settings"


@dataclass(frozen=True)
class Trial:
    """The run that counts for one model, length and number of blocks.

    `failed` means that it solved nothing to the paper's end, or diverged.
    `other_settings` and `other_schedule` say how its config departs from the paper's: how it was
    trained, and only when it was evaluated and ended; `unrecorded` what its record does not say.
    """

    curve: A5Curve
    solved: bool
    failed: bool
    other_settings: list[str]
    other_schedule: list[str]
    unrecorded: list[str]


@dataclass(frozen=True)
class Cell:
    """What the runs say of one model and length.

    The fewest blocks are from `at_least` to `at_most`; `limit` + 1 stands for 'not reached with
    `limit` blocks'. `evidence` are the runs that say so, by number of blocks: those of this length,
    and failures at shorter lengths.
    """

    length: int
    limit: int
    at_least: int
    at_most: int
    evidence: dict[int, Trial]

    @property
    def decided(self) -> bool:
        """Whether the runs leave no doubt."""
        return self.at_least == self.at_most

    @property
    def blocks(self) -> int | None:
        """The fewest blocks that a run solved the length with, or None."""
        return self.at_most if self.at_most <= self.limit else None

    @property
    def state(self) -> str:
        """The number of blocks, or why there is none."""
        if self.blocks is not None:
            return str(self.blocks)
        if self.decided:
            return NOT_REACHED
        runs = self.evidence.values()
        return UNFINISHED if any(not run.solved and not run.failed for run in runs) else NOT_RUN

    @property
    def deciding(self) -> Trial | None:
        """The run of this length that solved it, else that with the most blocks."""
        here = {d: t for d, t in self.evidence.items() if t.curve.length == self.length}
        return here.get(self.at_most) or here.get(max(here, default=0))

    @property
    def other_settings(self) -> list[str]:
        """How the runs that bear on the number depart from the paper's settings."""
        return sorted({text for run in self._bearing for text in run.other_settings})

    @property
    def remarks(self) -> list[str]:
        """How they depart from the paper's schedule, and which settings are not recorded."""
        texts = (text for run in self._bearing for text in run.other_schedule + run.unrecorded)
        return sorted(set(texts))

    @property
    def _bearing(self) -> list[Trial]:
        return [run for depth, run in self.evidence.items() if depth <= self.at_most]


@dataclass
class Search:
    """The table of Figure 2: `cells` by model and length, and what a reader should know of it.

    `trials` are by model, length and number of blocks, with those that the order leaves out.
    """

    models: list[str]
    lengths: list[int]
    cells: dict[tuple[str, int], Cell]
    trials: dict[tuple[str, int, int], Trial]
    notes: list[str]

    def label(self, model: str) -> str:
        """The model's name, marked where a run that counts had other settings than the paper's."""
        departs = any(self.cells[model, length].other_settings for length in self.lengths)
        return model + (OTHER_SETTINGS if departs else "")


class _Notes:
    """Sentences about runs, with the lengths they share."""

    def __init__(self):
        self.lengths = defaultdict(list)

    def add(self, what: str, curve: A5Curve, why: str = "") -> None:
        label = curve.model
        if curve.model != LINEAR_CDE:
            label = configuration_label(curve.model, curve.depth, nonlinear=False)
        self.lengths[what, label, why].append(curve.length)

    def lines(self) -> list[str]:
        return [
            f"{what}: {label}, length {', '.join(map(str, lengths))}" + (f": {why}" if why else "")
            for (what, label, why), lengths in self.lengths.items()
        ]


def search(results: A5Results, published: dict) -> Search:
    """Compute the table; `published` is the part figure_2 of published_results.yaml.

    Lengths are the paper's and any others there are results for.
    """
    models = list(published["min_blocks"]["models"])
    notes = _Notes()
    trials = _select_trials(results, published, notes)
    lengths = sorted({*published["min_blocks"]["lengths"], *(length for _, length, _ in trials)})
    cells = {}
    for model in models:
        cells |= _search_model(model, lengths, trials, _part(model, published)["max_blocks"], notes)
    return Search(models, lengths, cells, trials, notes.lines())


def in_figure_2(curve: A5Curve, published: dict) -> bool:
    """Whether the paper has such a model and number of blocks."""
    known = curve.model in published["min_blocks"]["models"]
    return known and 1 <= curve.depth <= _part(curve.model, published)["max_blocks"]


def _select_trials(
    results: A5Results, published: dict, notes: _Notes
) -> dict[tuple[str, int, int], Trial]:
    """One run for each model, length and number of blocks: the paper's settings where there are."""
    groups = defaultdict(list)
    for curve in results.curves:
        if not in_figure_2(curve, published):
            notes.add("not part of Figure 2, left out", curve)
            continue
        groups[curve.model, curve.length, curve.depth].append(_trial(curve, published))
    chosen = {}
    for key, group in sorted(groups.items()):
        # Where no run has the paper's settings, the runs of one other setting are taken.
        settings = min((trial.other_settings for trial in group), key=lambda s: (len(s), s))
        same = [trial for trial in group if trial.other_settings == settings]
        chosen[key] = max(same, key=lambda trial: trial.curve.best)
        for trial in group:
            fate = "used" if trial.other_settings == settings else "left out"
            if trial.other_settings:
                why = "; ".join(trial.other_settings)
                notes.add(f"not the paper's settings, {fate}", trial.curve, why)
            if trial.other_schedule:
                notes.add("not the paper's schedule", trial.curve, "; ".join(trial.other_schedule))
    return chosen


def _trial(curve: A5Curve, published: dict) -> Trial:
    part = _part(curve.model, published)
    settings = _settings(curve, published)
    batch_size = curve.config.get("batch_size") or settings["batch_size"]
    solved = curve.best > published["min_blocks"]["solved_above"]
    # A released file has no record: how far it goes says how it ended.
    at_the_end = curve.last_step >= _last_record(part, curve.length, batch_size)
    ended = failed(curve.outcome or FINISHED) and (at_the_end or diverged(curve.outcome))
    return Trial(
        curve,
        solved=solved,
        failed=ended and not solved,
        other_settings=departures(curve.config, settings),
        other_schedule=departures(curve.config, part["schedule"]),
        unrecorded=unrecorded(curve.config, settings) if curve.outcome else [],
    )


def _part(model: str, published: dict) -> dict:
    return published["linear_cde" if model == LINEAR_CDE else "sequence_models"]


def _settings(curve: A5Curve, published: dict) -> dict:
    """The paper's settings for a run of this model, length and number of blocks."""
    part = _part(curve.model, published)
    if curve.model == LINEAR_CDE:
        return part["settings"]
    learning_rate = part["learning_rates"][curve.model][curve.depth - 1]
    batch_size = part["other_batch_sizes"].get(curve.model, {}).get(curve.length)
    other = {"batch_size": batch_size} if batch_size else {}
    return {**part["settings"], "learning_rate": learning_rate, **other}


def _last_record(part: dict, length: int, batch_size: int) -> int:
    """The step of the last record of a run that solves nothing and goes on to the paper's end."""
    schedule = part["schedule"]
    end = schedule.get("max_steps")
    if end is None:
        sequences = part["train_sequences"].get(length, part["train_sequences"]["longer"])
        end = schedule["epochs"] * (sequences // batch_size)
    return (end - 1) // schedule["eval_interval"] * schedule["eval_interval"]


def _search_model(
    model: str, lengths: list[int], trials: dict, limit: int, notes: _Notes
) -> dict[tuple[str, int], Cell]:
    cells = {}
    failures = {}
    for length in lengths:
        here = {
            depth: trials[model, length, depth]
            for depth in range(1, limit + 1)
            if (model, length, depth) in trials
        }
        for depth in failures.keys() & here.keys():
            notes.add("not counted, failed at a shorter length", here.pop(depth).curve)
        evidence = failures | here
        failures = {d: t for d, t in evidence.items() if t.failed}
        solved = [depth for depth, trial in evidence.items() if trial.solved]
        possible = [depth for depth in range(1, limit + 1) if depth not in failures]
        at_least, at_most = min([*possible, limit + 1]), min([*solved, limit + 1])
        cell = Cell(length, limit, at_least, at_most, evidence)
        if cell.blocks is not None and not cell.decided:
            notes.add("upper bound, fewer blocks not decided", cell.deciding.curve)
        cells[model, length] = cell
    return cells
