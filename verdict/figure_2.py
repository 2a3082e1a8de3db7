"""The fewest blocks that solve A5 (Figure 2), computed from accuracies alone, beside the paper's.

The paper's search tries 1, 2, 3, 4 blocks in turn and lengths in increasing order; a number of
blocks that failed at one length is not tried at longer ones. Runs that are missing or stopped early
are no failures: they leave a range of possible numbers.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.file_names import Key, configuration_label
from harness.outcomes import FINISHED, diverged, failed
from verdict.results import LINEAR_CDE, A5Curve, A5Results, Problem, published_run
from verdict.rows import (
    AGREES,
    DISAGREES,
    NOT_COMPARABLE,
    NOT_RUN,
    OTHER_SETTINGS,
    PARTIAL,
    BlocksRow,
    departures,
    unrecorded,
    verdict_without_result,
)

NOT_REACHED = "not reached"
UNFINISHED = "unfinished"
MARKS = {NOT_REACHED: "–", UNFINISHED: "…", NOT_RUN: "·"}
# Sentences about runs, in two parts, with the lengths that stand between.
Notes = defaultdict[tuple[str, str], list[int]]
RULE = (
    "Figure 2: the fewest blocks whose accuracy exceeds 0.9, tried in turn; a number of blocks "
    "that failed at a shorter length is not tried. The same number, or 'not reached' for both, "
    "agrees. 'partial': runs are missing or stopped early, and the paper's number is still "
    "possible; if it is not, 'disagrees'. Accuracies are those of the last record. Settings of the "
    "schedule (eval_interval, stop_accuracy, max_steps, epochs) say only when a run is evaluated "
    "and ends: they are noted, and the numbers of blocks are compared, steps and accuracies are "
    "shown only."
)


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
    def bearing(self) -> list[Trial]:
        """The runs that bear on the number."""
        return [run for depth, run in self.evidence.items() if depth <= self.at_most]

    @property
    def other_settings(self) -> list[str]:
        """How they depart from the paper's settings."""
        return sorted({text for run in self.bearing for text in run.other_settings})


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


def search(results: A5Results, published: dict) -> Search:
    """Compute the table; `published` is the part figure_2 of published_results.yaml.

    Lengths are the paper's and any others there are results for.
    """
    models = list(published["min_blocks"]["models"])
    notes = defaultdict(list)
    trials = _select_trials(results, published, notes)
    lengths = sorted({*published["min_blocks"]["lengths"], *(length for _, length, _ in trials)})
    cells = {}
    for model in models:
        cells |= _search_model(model, lengths, trials, _part(model, published)["max_blocks"], notes)
    said = [f"{what}{', '.join(map(str, n))}{why}" for (what, why), n in notes.items()]
    return Search(models, lengths, cells, trials, said)


def in_figure_2(curve: A5Curve, published: dict) -> bool:
    """Whether the paper has such a model and number of blocks."""
    known = curve.model in published["min_blocks"]["models"]
    return known and 1 <= curve.depth <= _part(curve.model, published)["max_blocks"]


def _note(notes: Notes, what: str, curve: A5Curve, why: Sequence[str] = ()) -> None:
    label = curve.model
    if curve.model != LINEAR_CDE:
        label = configuration_label(curve.model, curve.depth, nonlinear=False)
    notes[f"{what}: {label}, length ", f": {'; '.join(why)}" if why else ""].append(curve.length)


def _select_trials(
    results: A5Results, published: dict, notes: Notes
) -> dict[tuple[str, int, int], Trial]:
    """One run for each model, length and number of blocks: the paper's settings where there are."""
    groups = defaultdict(list)
    for curve in results.curves:
        if not in_figure_2(curve, published):
            _note(notes, "not part of Figure 2, left out", curve)
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
                what = f"not the paper's settings, {fate}"
                _note(notes, what, trial.curve, trial.other_settings)
            if trial.other_schedule:
                _note(notes, "not the paper's schedule", trial.curve, trial.other_schedule)
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
    model: str, lengths: list[int], trials: dict, limit: int, notes: Notes
) -> dict[tuple[str, int], Cell]:
    cells = {}
    failures = {}
    for length in lengths:
        here = {d: trial for (m, n, d), trial in trials.items() if (m, n) == (model, length)}
        for depth in failures.keys() & here.keys():
            _note(notes, "not counted, failed at a shorter length", here.pop(depth).curve)
        evidence = failures | here
        failures = {d: t for d, t in evidence.items() if t.failed}
        at_least = min(depth for depth in range(1, limit + 2) if depth not in failures)
        at_most = min((d for d, t in evidence.items() if t.solved), default=limit + 1)
        cell = Cell(length, limit, at_least, at_most, evidence)
        if cell.blocks is not None and not cell.decided:
            _note(notes, "upper bound, fewer blocks not decided", cell.deciding.curve)
        cells[model, length] = cell
    return cells


def compare(results: A5Results, published: dict) -> list[BlocksRow]:
    """A row for each model and length; `published` is that part of published_results.yaml."""
    table = published["min_blocks"]
    found = search(results, published)
    rows = []
    for model in found.models:
        paper = dict(zip(table["lengths"], table["models"][model], strict=True))
        for length in found.lengths:
            cell = found.cells[model, length]
            row = BlocksRow(model, length, ours=cell.blocks, state=cell.state)
            if cell.deciding:
                row = _with_last_record(row, cell.deciding.curve)
            if length in paper:
                row = _beside_paper(row, cell, paper[length], published)
                here = [p for p in results.problems if _is_of(p.key, model, length)]
                rows.append(_judge(row, cell, here))
            elif cell.deciding:
                note = "the paper has no such length"
                rows.append(replace(row, verdict=NOT_COMPARABLE, note=note))
    return rows + _unpublished_rows(results, published)


def _is_of(key: Key | None, model: str, length: int) -> bool:
    return (getattr(key, "model", LINEAR_CDE), getattr(key, "length", None)) == (model, length)


def _with_last_record(row: BlocksRow, curve: A5Curve) -> BlocksRow:
    return replace(row, step=curve.last_step, accuracy=float(curve.accuracies[-1]))


def _beside_paper(row: BlocksRow, cell: Cell, paper: int | None, published: dict) -> BlocksRow:
    known = published["failures" if paper is None else "stopping_points"]["runs"]
    run = published_run(known, row.model, cell.limit if paper is None else paper, row.length)
    return replace(
        row,
        paper=paper,
        paper_state=NOT_REACHED if paper is None else str(paper),
        paper_step=run.get("step"),
        paper_accuracy=run.get("accuracy"),
    )


def _judge(row: BlocksRow, cell: Cell, unusable: list[Problem]) -> BlocksRow:
    """Decide; `unusable` are the files of this model and length that were skipped."""
    notes = [f"{problem.path.name}: {problem.reason}" for problem in unusable]
    if not cell.decided and cell.deciding is None:
        return replace(row, verdict=verdict_without_result(notes), note="; ".join(notes))
    remarks = {text for run in cell.bearing for text in run.other_schedule + run.unrecorded}
    notes = [*cell.other_settings, *sorted(remarks), *notes]
    if not cell.decided:
        upper = "or more" if cell.blocks is None else f"to {cell.at_most}"
        notes.insert(0, f"{cell.at_least} {upper} are possible")
    row = replace(row, note="; ".join(notes))
    if cell.other_settings or any(problem.path.suffix == ".json" for problem in unusable):
        return replace(row, verdict=NOT_COMPARABLE)
    if None not in (row.ours, row.paper):
        row = replace(row, difference=row.ours - row.paper)
    paper = cell.limit + 1 if row.paper is None else row.paper
    if not cell.at_least <= paper <= cell.at_most:
        return replace(row, verdict=DISAGREES)
    return replace(row, verdict=AGREES if cell.decided else PARTIAL)


def _unpublished_rows(results: A5Results, published: dict) -> list[BlocksRow]:
    """Runs of models and numbers of blocks that the paper does not have."""
    note = "the paper has no such configuration"
    others = [curve for curve in results.curves if not in_figure_2(curve, published)]
    blank = BlocksRow("", 0, quantity="accuracy", verdict=NOT_COMPARABLE, note=note)
    return [
        _with_last_record(replace(blank, model=c.model, length=c.length, depth=c.depth), c)
        for c in others
    ]
