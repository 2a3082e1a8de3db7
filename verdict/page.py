"""The comparison as one page: a self-contained HTML file without scripts or anything to load."""

from collections import defaultdict
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.file_names import configuration_label
from verdict import draw_1, draw_2, figure_1, figure_2, look
from verdict.provenance import Provenance
from verdict.results import LINEAR_CDE, A5Results, ToyResults
from verdict.rows import (
    DISAGREES,
    MEAN,
    NOT_RUN,
    QUESTION,
    VERDICT_RULE,
    WORSE,
    BlocksRow,
    ErrorRow,
    Row,
    accuracy_text,
    answer,
    count_verdicts,
)

TEMPLATES = Path(__file__).with_name("templates")
ALWAYS_COUNTED = (DISAGREES, WORSE)  # that there are none is news
ABSENT = "–"
RULES = {
    "linear-cde": figure_1.LINEAR_CDE_RULE,
    "sequence-models": figure_1.SEQUENCE_MODEL_RULE,
    "blocks": figure_2.RULE,
    "verdicts": VERDICT_RULE,
    "precision": figure_1.PRECISION_NOTE,
}


def page(
    rows: list[Row], toy: ToyResults, a5: A5Results, published: dict, provenance: Provenance
) -> str:
    """The whole page; the same results give the same text."""
    errors = [row for row in rows if isinstance(row, ErrorRow)]
    blocks = [row for row in rows if isinstance(row, BlocksRow)]
    grid = defaultdict(list)
    for row in blocks:
        if row.is_published:
            grid[row.model].append(row)
    return _template().render(
        question=QUESTION,
        answer=answer(rows),
        counts={v: n for v, n in count_verdicts(rows).items() if n or v in ALWAYS_COUNTED},
        problems=[*toy.problems, *a5.problems],
        figures={
            "figure1": _figure_1(toy, published["figure_1"]),
            "figure2": _figure_2(a5, published["figure_2"]),
        },
        linear_cde=[row for row in errors if row.model == LINEAR_CDE],
        sequence_models=[row for row in errors if row.model != LINEAR_CDE],
        lengths=sorted({row.length for row in blocks if row.is_published}),
        grid=grid,
        blocks_run=[row for row in blocks if row.verdict != NOT_RUN or row.note],
        marks=figure_2.MARKS,
        panels=draw_1.PANELS,
        rules=RULES,
        provenance=provenance,
        label=configuration_label,
        accuracy_text=accuracy_text,
    )


def _template():
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": _number, "means_first": _means_first}
    return environment.get_template("page.html.jinja")


def _number(value: float | None, form: str) -> str:
    return ABSENT if value is None else format(value, form)


def _means_first(rows: list[ErrorRow]) -> list[ErrorRow]:
    """Each configuration's mean, then its runs, unless one run is all that the mean is over."""
    ordered = []
    for _, found in groupby(rows, key=lambda row: (row.model, row.depth, row.nonlinear)):
        group = list(found)
        means = [row for row in group if row.run == MEAN]
        runs = [row for row in group if row.run != MEAN]
        alone = len(runs) == 1 and any(mean.ours is not None for mean in means)
        ordered += means if alone else means + runs
    return ordered


def _figure_1(results: ToyResults, published: dict) -> tuple[str, str]:
    """Its caption and its SVG; where there is nothing to draw, a sentence and no SVG."""
    lines, _ = draw_1.select_lines(results, published["sequence_models"]["settings"])
    if not lines and not results.scores:
        return "There are no toy results to draw.", ""
    caption = "Validation RMSE against training steps. Thin: the paper's values."
    missing = draw_1.missing_configurations(results, lines)
    if missing:
        caption += f" Not run: {'; '.join(missing)}."
    # Not from the data: the page must be the same in a clone, which has none.
    zero = published["predicting_zero"]["rmse"]
    with look.house_style():
        figure = draw_1.draw_figure(results, lines, zero, published, overlay=True)
        return caption, look.svg(figure, "figure1", f"Figure 1. {caption}")


def _figure_2(results: A5Results, published: dict) -> tuple[str, str]:
    """As `_figure_1`."""
    found = figure_2.search(results, published)
    if all(cell.blocks is None for cell in found.cells.values()):
        return "No run solves a length, so there is no line to draw.", ""
    caption = "Fewest blocks that solve each sequence length. Thin and dashed: the paper's."
    with look.house_style():
        figure = draw_2.draw_figure(found, published["min_blocks"])
        return caption, look.svg(figure, "figure2", f"Figure 2. {caption}")
