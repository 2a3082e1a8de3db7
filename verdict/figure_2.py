"""The fewest blocks that solve A5 (Figure 2): ours beside the paper's."""

from collections import defaultdict
from dataclasses import replace

from harness.file_names import A5CurveKey, A5ScoreKey
from verdict.minimum_blocks import NOT_REACHED, Cell, in_figure_2, search
from verdict.results import LINEAR_CDE, A5Results, Problem
from verdict.rows import (
    AGREES,
    DISAGREES,
    NOT_COMPARABLE,
    PARTIAL,
    BlocksRow,
    verdict_without_result,
)

RULE = (
    "Figure 2: the fewest blocks whose accuracy exceeds 0.9, tried in turn; a number of blocks "
    "that failed at a shorter length is not tried. The same number, or 'not reached' for both, "
    "agrees. 'partial': runs are missing or stopped early, and the paper's number is still "
    "possible; if it is not, 'disagrees'. Accuracies are those of the last record. Settings of the "
    "schedule (eval_interval, stop_accuracy, max_steps, epochs) say only when a run is evaluated "
    "and ends: they are noted, and the numbers of blocks are compared, steps and accuracies are "
    "shown only."
)


def compare(results: A5Results, published: dict) -> list[BlocksRow]:
    """A row for each model and length; `published` is that part of published_results.yaml."""
    table = published["min_blocks"]
    found = search(results, published)
    unusable = _unusable(results.problems)
    rows = []
    for model in found.models:
        paper = dict(zip(table["lengths"], table["models"][model], strict=True))
        for length in found.lengths:
            cell = found.cells[model, length]
            row = _ours(model, cell)
            if length in paper:
                row = _beside_paper(row, cell, paper[length], published)
                rows.append(_judge(row, cell, unusable[model, length]))
            elif cell.deciding:
                note = "the paper has no such length"
                rows.append(replace(row, verdict=NOT_COMPARABLE, note=note))
    return rows + _unpublished_rows(results, published)


def _ours(model: str, cell: Cell) -> BlocksRow:
    row = BlocksRow(model, cell.length, ours=cell.blocks, state=cell.state)
    if cell.deciding is None:
        return row
    curve = cell.deciding.curve
    return replace(row, step=curve.last_step, accuracy=float(curve.accuracies[-1]))


def _beside_paper(row: BlocksRow, cell: Cell, paper: int | None, published: dict) -> BlocksRow:
    row = replace(row, paper=paper, paper_state=NOT_REACHED if paper is None else str(paper))
    depth = cell.limit if paper is None else paper
    if paper is None:
        step = published["failures"]["step"]
        records = [
            {**run, "step": step, "lengths": [run["length"]]}
            for run in published["failures"]["runs"]
        ]
    else:
        records = published["stopping_points"]["runs"]
    for run in records:
        if (run["model"], run["depth"]) == (row.model, depth) and row.length in run["lengths"]:
            return replace(row, paper_step=run["step"], paper_accuracy=run["accuracy"])
    return row


def _judge(row: BlocksRow, cell: Cell, unusable: list[Problem]) -> BlocksRow:
    """Decide; `unusable` are the files of this model and length that were skipped."""
    notes = [f"{problem.path.name}: {problem.reason}" for problem in unusable]
    if not cell.decided and cell.deciding is None:
        return replace(row, verdict=verdict_without_result(notes), note="; ".join(notes))
    notes = [*cell.other_settings, *cell.remarks, *notes]
    if not cell.decided:
        notes.insert(0, _possible(cell))
    row = replace(row, note="; ".join(notes))
    if cell.other_settings or any(problem.path.suffix == ".json" for problem in unusable):
        return replace(row, verdict=NOT_COMPARABLE)
    if None not in (row.ours, row.paper):
        row = replace(row, difference=row.ours - row.paper)
    paper = cell.limit + 1 if row.paper is None else row.paper
    if not cell.at_least <= paper <= cell.at_most:
        return replace(row, verdict=DISAGREES)
    return replace(row, verdict=AGREES if cell.decided else PARTIAL)


def _possible(cell: Cell) -> str:
    if cell.blocks is None:
        return f"{cell.at_least} or more are possible"
    return f"{cell.at_least} to {cell.at_most} are possible"


def _unusable(problems: list[Problem]) -> dict[tuple[str, int], list[Problem]]:
    """Skipped files by model and length."""
    unusable = defaultdict(list)
    for problem in problems:
        match problem.key:
            case A5ScoreKey(length):
                unusable[LINEAR_CDE, length].append(problem)
            case A5CurveKey(model, length):
                unusable[model, length].append(problem)
    return unusable


def _unpublished_rows(results: A5Results, published: dict) -> list[BlocksRow]:
    """Runs of models and numbers of blocks that the paper does not have."""
    return [
        BlocksRow(
            curve.model,
            curve.length,
            curve.depth,
            "accuracy",
            step=curve.last_step,
            accuracy=float(curve.accuracies[-1]),
            verdict=NOT_COMPARABLE,
            note="the paper has no such configuration",
        )
        for curve in results.curves
        if not in_figure_2(curve, published)
    ]
