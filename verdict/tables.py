"""The comparison as text, markdown and JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.file_names import configuration_label
from verdict import figure_1, figure_2
from verdict.figure_2 import MARKS, NOT_REACHED, UNFINISHED, Search
from verdict.provenance import Provenance, RecordGroup
from verdict.results import LINEAR_CDE
from verdict.rows import (
    NOT_RUN,
    OTHER_SETTINGS,
    OTHER_SETTINGS_LABEL,
    QUESTION,
    VERDICT_RULE,
    VERDICTS,
    BlocksRow,
    ErrorRow,
    Row,
    accuracy_text,
    answer,
)

MIN_WIDTH = 110  # columns of text where the output is not a terminal
WRAPPED = ("model", "agrees within", "verdict", "note")  # columns that a narrow terminal may fold
RULES = [figure_1.LINEAR_CDE_RULE, figure_1.SEQUENCE_MODEL_RULE, VERDICT_RULE, figure_2.RULE]
LEGEND_LINES = {
    NOT_REACHED: f"{MARKS[NOT_REACHED]}: not reached with 4 blocks ({LINEAR_CDE}: with 1)",
    UNFINISHED: f"{MARKS[UNFINISHED]}: unfinished, a run that could decide it stopped early",
    NOT_RUN: f"{MARKS[NOT_RUN]}: not run, or not with enough numbers of blocks",
}


def as_json(rows: list[Row]) -> str:
    """A list of objects, one a row, with the fields of its kind."""
    return json.dumps(
        [{"figure": row.figure, **asdict(row)} for row in rows], indent=1, allow_nan=False
    )


def tables(rows: list[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, headings and cells of the tables that text and markdown share."""
    errors = [row for row in rows if isinstance(row, ErrorRow)]
    linear_cde = [row for row in errors if row.model == LINEAR_CDE]
    others = [row for row in errors if row.model != LINEAR_CDE]
    common = ["input", "run", "ours", "paper", "difference"]
    limits = ["at step", "paper's range", "agrees within"]
    blocks = ["model", "length", *common[2:], "our accuracy", "paper's accuracy"]
    return [
        (
            "Figure 1, Linear CDE: validation MSE",
            [*common, "verdict", "precision", "note"],
            [[*_numbers(r, ".4e"), r.verdict, r.precision or "-", r.note] for r in linear_cde],
        ),
        (
            "Figure 1, sequence models: validation RMSE",
            ["model", *common[:-1], "from range", *limits, "verdict", "note"],
            [[*_sequence_model(r), r.verdict, r.note] for r in others],
        ),
        (
            "Figure 2, A5: fewest blocks",
            [*blocks, "verdict", "note"],
            [[*_blocks(r), r.verdict, r.note] for r in rows if isinstance(r, BlocksRow)],
        ),
    ]


def _numbers(row: ErrorRow, form: str) -> list[str]:
    ours, paper = ("-" if x is None else format(x, form) for x in (row.ours, row.paper_number))
    return [f"{row.input_dim}D", str(row.run), ours, paper, row.difference]


def _sequence_model(row: ErrorRow) -> list[str]:
    name = configuration_label(row.model, row.depth, row.nonlinear)
    ranges = [(row.paper_min, row.paper_max), (row.low, row.high)]
    shown = ["-" if low is None else f"{low:.4f} to {high:.4f}" for low, high in ranges]
    return [name, *_numbers(row, ".4f"), f"{row.step:,}", *shown]


def _blocks(row: BlocksRow) -> list[str]:
    model = row.model if row.depth is None else configuration_label(row.model, row.depth, False)
    return [
        model,
        str(row.length),
        row.state or "-",
        row.paper_state or "-",
        "-" if row.difference is None else f"{row.difference:+d}",
        _record(row.accuracy, row.step),
        _record(row.paper_accuracy, row.paper_step),
    ]


def _record(accuracy: float | dict[str, float] | None, step: int | None) -> str:
    return "-" if accuracy is None else f"{accuracy_text(accuracy)} at step {step:,}"


def footnotes(rows: list[Row]) -> list[str]:
    """The rules behind the verdicts, and what explains a difference in these rows."""
    precise = any(isinstance(row, ErrorRow) and row.precision for row in rows)
    return RULES + [figure_1.PRECISION_NOTE] * precise


def as_markdown(rows: list[Row], provenance: Provenance, pictures: Mapping[str, str]) -> str:
    """The answer, the tables, the rules, how the results were made; `pictures`: title to file."""
    parts = [
        f"# {QUESTION}",
        f"**{answer(rows)}**",
        *(f"![{title}]({name})" for title, name in pictures.items()),
        *(part for table in tables(rows) for part in (f"## {table[0]}", _table(*table[1:]))),
        "## How each verdict is reached",
        "\n".join(f"- {rule}" for rule in footnotes(rows)),
        "## How each result was made",
        *(part for group in provenance.groups for part in _group(group)),
    ]
    if runs := provenance.unrecorded:
        parts.append(f"Without a record of how they were made: {'; '.join(runs)}.")
    return "\n\n".join(parts)


def _table(headings: list[str], cells: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *cells]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _group(group: RecordGroup) -> list[str]:
    config = ", ".join(f"{name} {value}" for name, value in group.config.items())
    runs = [[r.label, r.outcome, r.wall_time, r.date, r.commit] for r in group.runs]
    return [
        f"### {group.experiment[0].upper()}{group.experiment[1:]}",
        f"{group.hardware}; {group.software}.",
        f"Config: {config}.",
        _table(["run", "outcome", "wall time", "date", "commit"], runs),
    ]


def blocks_table(found: Search) -> str:
    """The fewest blocks by model and length as markdown, with a line for each mark it uses."""
    rows, used = [], set()
    for model in found.models:
        states = [found.cells[model, length].state for length in found.lengths]
        used |= set(states)
        rows.append([found.label(model), *(MARKS.get(state, state) for state in states)])
    legend = [line for state, line in LEGEND_LINES.items() if state in used]
    if any(row[0].endswith(OTHER_SETTINGS) for row in rows):
        legend.append(OTHER_SETTINGS_LABEL.replace("*", r"\*"))
    return "\n\n".join([_table(["model", *map(str, found.lengths)], rows), *legend])


def print_text(rows: list[Row]) -> None:
    """Print the tables to the terminal, as wide as they need where the output is not one."""
    built = [_rich_table(*table) for table in tables(rows)]
    console = Console(highlight=False)
    if not console.is_terminal:
        wide = Console(width=10_000)
        console.width = max(MIN_WIDTH, *(wide.measure(table).maximum for table in built))
    for table in built:
        console.print(table)
    for paragraph in [*footnotes(rows), f"{QUESTION} {answer(rows)}"]:
        console.print(Text(paragraph), width=min(console.width, MIN_WIDTH))


def _rich_table(title: str, headings: list[str], cells: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading not in WRAPPED)
    for _, section in groupby(cells, key=itemgetter(0)):
        lines = list(section)
        for line in lines:
            table.add_row(*(Text(cell, style=VERDICTS.get(cell, [""])[-1]) for cell in line))
        if len(lines) > 1:
            table.add_section()
    return table
