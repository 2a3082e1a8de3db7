"""The comparison as one page: a self-contained HTML file without scripts or anything to load."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from harness.file_names import LINEAR_CDE, A5Results, Problem, ToyResults, configuration_label
from verdict import draw_1, draw_2, figure_1, figure_2, look
from verdict.minimum_blocks import search
from verdict.provenance import Provenance, RecordGroup
from verdict.rows import (
    DISAGREES,
    MEAN,
    NOT_RUN,
    QUESTION,
    VERDICT_RULE,
    WORSE,
    Row,
    answer,
    count_verdicts,
)

STYLE_SHEET = Path(__file__).with_name("templates") / "report.css"
PAPER = (
    "A reproduction of <cite>Theoretical Foundations of Deep Selective State-Space Models</cite> "
    "(N. Muca Cirone, A. Orvieto, B. Walker, C. Salvi, T. Lyons; NeurIPS 2024, "
    '<a href="https://arxiv.org/abs/2402.19047">arXiv 2402.19047</a>)'
)
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
    sections = [
        _warnings([*toy.problems, *a5.problems]),
        _figure_1_section([r for r in rows if r.figure == 1], toy, published["figure_1"]),
        _figure_2_section([r for r in rows if r.figure == 2], a5, published["figure_2"]),
        _rules_section(),
        _provenance_section(provenance),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{QUESTION}</title>
<style>
{STYLE_SHEET.read_text(encoding="utf-8")}</style>
</head>
<body>
{_header(rows)}
<main>
{_lines(sections)}
</main>
<footer><p>Made from the result files and their records alone.</p></footer>
</body>
</html>
"""


def _lines(parts: Sequence[str]) -> str:
    return "\n".join(part for part in parts if part)


def _section(name: str, title: str, *parts: str) -> str:
    return f'<section id="{name}">\n<h2>{title}</h2>\n{_lines(parts)}\n</section>'


def _css_class(verdict: str) -> str:
    return verdict.replace(" ", "-")


def _header(rows: list[Row]) -> str:
    counts = {v: n for v, n in count_verdicts(rows).items() if n or v in ALWAYS_COUNTED}
    bar = [
        f'<span class="{_css_class(verdict)}" style="flex-grow:{count}"></span>'
        for verdict, count in counts.items()
    ]
    listed = [
        f'<li class="{_css_class(verdict)}"><i></i><b>{count}</b> {verdict}</li>'
        for verdict, count in counts.items()
    ]
    return f"""<header>
<p class="about">{PAPER}</p>
<h1>{QUESTION}</h1>
<p class="answer">{escape(answer(rows))}</p>
<div class="bar" aria-hidden="true">{"".join(bar)}</div>
<ul class="counts">{"".join(listed)}</ul>
</header>"""


def _warnings(problems: list[Problem]) -> str:
    items = [f"<li>{escape(f'{p.path.name}: {p.reason}')}</li>" for p in problems]
    return _section("skipped", "Skipped files", f"<ul>{_lines(items)}</ul>") if items else ""


def _figure_1_section(rows: list[Row], results: ToyResults, published: dict) -> str:
    linear_cde = [row for row in rows if row.model == LINEAR_CDE]
    others = [row for row in rows if row.model != LINEAR_CDE]
    return _section(
        "figure-1",
        "Figure 1: terms of the signature",
        _figure_1(results, published),
        '<div class="columns">',
        *(_mse_table(group, title) for title, group in _by_panel(linear_cde)),
        "</div>",
        *(_rmse_table(group, title) for title, group in _by_panel(others)),
    )


def _by_panel(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """The rows of each input dimension, with its name in the figure."""
    return [
        (
            draw_1.PANELS.get(input_dim, f"{input_dim}D"),
            [r for r in rows if r.input_dim == input_dim],
        )
        for input_dim in sorted({row.input_dim for row in rows})
    ]


def _mse_table(rows: list[Row], panel: str) -> str:
    precision = ", ".join(sorted({row.precision for row in rows if row.precision}))
    return _table(
        f"{panel}: Linear CDE, validation MSE {_note('linear-cde')}",
        ["run", "ours", "paper", "difference", f"verdict {_note('verdicts')}"],
        [_mse_line(row) for row in rows],
        f"Ours in {escape(precision)}. {_note('precision')}" if precision else "",
    )


def _rmse_table(rows: list[Row], panel: str) -> str:
    return _table(
        f"{panel}: sequence models, validation RMSE {_note('sequence-models')}",
        ["model", "ours", "paper", "difference", f"verdict {_note('verdicts')}"],
        [_rmse_line(row) for row in _means_first(rows)],
        "The paper's mean and range over its runs. Bold: the mean over ours.",
    )


def _figure_1(results: ToyResults, published: dict) -> str:
    lines, _ = draw_1.select_lines(results, published["sequence_models"]["settings"])
    if not lines and not results.scores:
        return '<p class="caption">There are no toy results to draw.</p>'
    caption = "Validation RMSE against training steps. Thin: the paper's values."
    missing = draw_1.missing_configurations(results, lines)
    if missing:
        caption += f" Not run: {'; '.join(missing)}."
    # Not from the data: the page must be the same in a clone, which has none.
    zero = published["predicting_zero"]["rmse"]
    with matplotlib.rc_context(look.RC):
        figure = draw_1.draw_figure(results, lines, zero, published, overlay=True)
        return _picture(figure, "figure1", "Figure 1", caption)


def _figure_2_section(rows: list[Row], results: A5Results, published: dict) -> str:
    shown = [row for row in rows if row.verdict != NOT_RUN or row.note]
    details = _table(
        "Each number that was run",
        ["model, length", "blocks", "accuracy", "paper's", f"verdict {_note('blocks')}"],
        [_blocks_line(row) for row in shown],
        "Accuracy is that of the last record of the run that decides.",
        "details",
    )
    return _section(
        "figure-2",
        "Figure 2: the A5 word problem",
        _figure_2(results, published),
        _grid([row for row in rows if row.is_published]),
        details if shown else "",
    )


def _figure_2(results: A5Results, published: dict) -> str:
    found = search(results, published)
    if all(cell.blocks is None for cell in found.cells.values()):
        return '<p class="caption">No run solves a length, so there is no line to draw.</p>'
    caption = "Fewest blocks that solve each sequence length. Thin and dashed: the paper's."
    with matplotlib.rc_context(look.RC):
        figure = draw_2.draw_figure(found, published["min_blocks"])
        return _picture(figure, "figure2", "Figure 2", caption)


def _picture(figure: Figure, name: str, title: str, caption: str) -> str:
    svg = look.svg(figure, name, f"{title}. {caption}")
    return f"""<figure id="{name}">
<div class="picture">
{svg}
</div>
<figcaption class="caption">{escape(caption)}</figcaption>
</figure>"""


def _table(
    caption: str, headings: list[str], lines: list[str], remark: str = "", css_class: str = ""
) -> str:
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    return f"""<table class="{css_class}">
<caption>{caption}<small>{remark}</small></caption>
<thead><tr>{head}</tr></thead>
<tbody>
{_lines(lines)}
</tbody>
</table>"""


def _line(name: str, cells: list[str], css_class: str = "") -> str:
    """A table row; `name` is escaped here, the cells are HTML."""
    data = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="{css_class}"><th scope="row">{escape(name)}</th>{data}</tr>'


def _means_first(rows: list[Row]) -> list[Row]:
    """Each configuration's mean, then its runs, unless one run is all that the mean is over."""
    configurations = {}
    for row in rows:
        configurations.setdefault((row.model, row.depth, row.nonlinear), []).append(row)
    ordered = []
    for group in configurations.values():
        means = [row for row in group if row.run == MEAN]
        runs = [row for row in group if row.run != MEAN]
        alone = len(runs) == 1 and any(mean.ours is not None for mean in means)
        ordered += means if alone else means + runs
    return ordered


def _mse_line(row: Row) -> str:
    cells = [_number(row.ours, ".4e"), _number(row.paper, ".4e"), _change(row), _verdict(row)]
    return _line(str(row.run), cells, "mean" if row.run == MEAN else "")


def _rmse_line(row: Row) -> str:
    ours = _number(row.ours, ".4f") + (
        "" if row.ours is None else f"<small>step {row.step:,}</small>"
    )
    paper = _number(row.paper, ".4f")
    if row.paper_min is not None:
        paper += f"<small>{row.paper_min:.4f}–{row.paper_max:.4f}</small>"
    name = configuration_label(row.model, row.depth, row.nonlinear)
    name += "" if row.run == MEAN else f", run {row.run}"
    css_class = "one-run" if row.run != MEAN else "" if row.ours is None else "mean"
    return _line(name, [ours, paper, _change(row), _verdict(row)], css_class)


def _blocks_line(row: Row) -> str:
    model = row.model
    if row.depth is not None:
        model = configuration_label(row.model, row.depth, nonlinear=False)
    cells = [
        f"{row.state or ABSENT}<small>paper {row.paper_state or ABSENT}</small>",
        _record(row.accuracy, row.step),
        _record(row.paper_accuracy, row.paper_step),
        _verdict(row),
    ]
    return _line(f"{model}, {row.length}", cells)


def _number(value: float | None, form: str) -> str:
    return ABSENT if value is None else format(value, form)


def _change(row: Row) -> str:
    return _number(row.relative_difference, "+.1%")


def _record(accuracy: float | dict[str, float] | None, step: int | None) -> str:
    if accuracy is None:
        return ABSENT
    return f"{figure_2.accuracy_text(accuracy)}<small>step {step:,}</small>"


def _verdict(row: Row) -> str:
    note = f"<small>{escape(row.note)}</small>" if row.note else ""
    return f'<span class="verdict {_css_class(row.verdict)}">{row.verdict}</span>{note}'


def _grid(rows: list[Row]) -> str:
    """All numbers of Figure 2: a row for each model, a column for each length."""
    models = list(dict.fromkeys(row.model for row in rows))
    lengths = sorted({row.length for row in rows})
    head = "".join(f'<th scope="col">{length}</th>' for length in lengths)
    lines = []
    for model in models:
        cells = "".join(_grid_cell(row) for row in rows if row.model == model)
        lines.append(f'<tr><th class="name" scope="row">{model}</th>{cells}</tr>')
    marks = ", ".join(f"{mark} {state}" for state, mark in draw_2.MARKS.items())
    return f"""<table class="grid">
<caption>Fewest blocks by length {_note("blocks")}
<small>Ours, and below it the paper's; {marks}</small></caption>
<thead><tr><th class="name"></th>{head}</tr></thead>
<tbody>
{_lines(lines)}
</tbody>
</table>"""


def _grid_cell(row: Row) -> str:
    ours, paper = (draw_2.MARKS.get(state, state) for state in (row.state, row.paper_state))
    title = f"{row.model}, length {row.length}: {row.verdict}"
    return (
        f'<td class="{_css_class(row.verdict)}" title="{escape(title)}">'
        f"<b>{ours}</b><small>{paper}</small></td>"
    )


def _note(name: str) -> str:
    """The number of a rule, which leads to it."""
    number = list(RULES).index(name) + 1
    return f'<sup><a href="#rule-{name}" aria-label="rule {number}">{number}</a></sup>'


def _rules_section() -> str:
    items = [f'<li id="rule-{name}">{escape(text)}</li>' for name, text in RULES.items()]
    return _section("rules", "How each verdict is reached", f"<ol>\n{_lines(items)}\n</ol>")


def _provenance_section(provenance: Provenance) -> str:
    parts = [_group(group) for group in provenance.groups]
    if provenance.unrecorded:
        names = escape("; ".join(provenance.unrecorded))
        parts.append(f'<p class="caption">Without a record of how they were made: {names}.</p>')
    return _section("made", "How each result was made", *parts)


def _group(group: RecordGroup) -> str:
    config = "".join(
        f"<span>{escape(name)} <b>{escape(str(value))}</b></span>"
        for name, value in group.config.items()
    )
    lines = [
        _line(run.label, [escape(x) for x in (run.outcome, run.wall_time, run.date, run.commit)])
        for run in group.runs
    ]
    experiment = escape(group.experiment[0].upper() + group.experiment[1:])
    return f"""<div class="group">
<h3>{experiment}</h3>
<p class="caption">{escape(group.hardware)}<br>{escape(group.software)}</p>
<p class="config">{config}</p>
{_table("", ["run", "outcome", "wall time", "date", "commit"], lines)}
</div>"""
