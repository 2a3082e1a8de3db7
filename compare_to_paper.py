"""Does this agree with the paper? Every number of its figures beside ours, with a verdict."""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

import plot_A5
import plot_toy
from harness.atomic_files import atomic_write
from harness.file_names import (
    LINEAR_CDE,
    PUBLISHED_RESULTS,
    configuration_label,
    load_a5_results,
    load_toy_results,
)
from harness.paths import RESULTS_DIR
from verdict import figure_1, figure_2, page
from verdict.provenance import Provenance, RecordGroup, load_provenance
from verdict.rows import (
    DISAGREES,
    QUESTION,
    VERDICT_RULE,
    VERDICT_STYLES,
    WORSE,
    Row,
    answer,
)

MIN_WIDTH = 110  # columns of text where the output is not a terminal
WRAPPED = ("model", "agrees within", "verdict", "note")  # columns that a narrow terminal may fold
PICTURES = {
    title: str(Path(name).with_suffix(".png"))
    for title, name in (("Figure 1", plot_toy.OUTPUT_NAME), ("Figure 2", plot_A5.OUTPUT_NAME))
}
REPORTS = ("REPORT.md", "report.html")
RULES = [
    figure_1.LINEAR_CDE_RULE,
    figure_1.SEQUENCE_MODEL_RULE,
    VERDICT_RULE,
    figure_2.RULE,
]
DESCRIPTION = """Print the paper's numbers, ours, and whether they agree.

Exit code: 0 whatever the verdicts; 1 without any result file; with --strict, 1 if any verdict is
'worse outside the band' or 'disagrees' or any result file is unusable ('better outside the band'
does not fail); 2 for bad arguments."""
EXAMPLES = """examples:
  python compare_to_paper.py
  python compare_to_paper.py --results-dir results/tf32 --format markdown
  python compare_to_paper.py --format json --strict
  python compare_to_paper.py --format html > report.html
  python compare_to_paper.py --report
"""


def as_json(rows: list[Row]) -> str:
    """A list of objects, one a row."""
    return json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False)


def tables(rows: list[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, headings and cells of the tables that text and markdown share."""
    figure_1 = [row for row in rows if row.figure == 1]
    linear_cde = [row for row in figure_1 if row.model == LINEAR_CDE]
    others = [row for row in figure_1 if row.model != LINEAR_CDE]
    common = ["input", "run", "ours", "paper", "difference"]
    limits = ["at step", "paper's range", "agrees within"]
    return [
        (
            "Figure 1, Linear CDE: validation MSE",
            [*common, "verdict", "precision", "note"],
            [[*_numbers(r, ".4e"), r.verdict, r.precision or "-", r.note] for r in linear_cde],
        ),
        (
            "Figure 1, sequence models: validation RMSE",
            ["model", *common, *limits, "verdict", "note"],
            [[_name(r), *_numbers(r, ".4f"), *_limits(r), r.verdict, r.note] for r in others],
        ),
        figure_2.table([row for row in rows if row.figure == 2]),
    ]


def _name(row: Row) -> str:
    return configuration_label(row.model, row.depth, row.nonlinear)


def _numbers(row: Row, form: str) -> list[str]:
    ours, paper = ("-" if x is None else format(x, form) for x in (row.ours, row.paper))
    change = "-" if row.relative_difference is None else f"{row.relative_difference:+.1%}"
    return [f"{row.input_dim}D", str(row.run), ours, paper, change]


def _limits(row: Row) -> list[str]:
    ranges = [(row.paper_min, row.paper_max), (row.low, row.high)]
    shown = ["-" if low is None else f"{low:.4f} to {high:.4f}" for low, high in ranges]
    return [f"{row.step:,}", *shown]


def footnotes(rows: list[Row]) -> list[str]:
    """The rules behind the verdicts, and what explains a difference in these rows."""
    return RULES + ([figure_1.PRECISION_NOTE] if any(row.precision for row in rows) else [])


def as_markdown(rows: list[Row], provenance: Provenance, pictures: Mapping[str, str]) -> str:
    """The answer, the tables, the rules, how the results were made; `pictures`: title to file."""
    return "\n\n".join(
        [
            f"# {QUESTION}",
            f"**{answer(rows)}**",
            *(f"![{title}]({name})" for title, name in pictures.items()),
            *(part for table in tables(rows) for part in (f"## {table[0]}", _table(*table[1:]))),
            "## How each verdict is reached",
            "\n".join(f"- {rule}" for rule in footnotes(rows)),
            "## How each result was made",
            *(part for group in provenance.groups for part in _group(group)),
            *_unrecorded(provenance),
        ]
    )


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


def _unrecorded(provenance: Provenance) -> list[str]:
    runs = provenance.unrecorded
    return [f"Without a record of how they were made: {'; '.join(runs)}."] if runs else []


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
    in_section = 0
    for line, following in zip(cells, [*cells[1:], None], strict=True):
        styled = [Text(cell, style=VERDICT_STYLES.get(cell, "")) for cell in line]
        in_section += 1
        ends = following is not None and following[0] != line[0]
        table.add_row(*styled, end_section=ends and in_section > 1)
        in_section = 0 if ends else in_section
    return table


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--results-dir",
        type=Path,
        default=RESULTS_DIR,
        help="folder that holds outputs_toy/ and outputs_A5/ (default: results in the repository)",
    )
    parser.add_argument(
        "--format", choices=("text", "markdown", "json", "html"), default="text", help="of stdout"
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help=f"also write {' and '.join(REPORTS)} in the results folder",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help=f"exit 1 if any verdict is {WORSE!r} or {DISAGREES!r}, or any result file is unusable",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the comparison. Exit code: 0, 1 (no results; --strict), 2 (bad arguments)."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        toy, a5 = load_toy_results(args.results_dir), load_a5_results(args.results_dir)
    except NotADirectoryError as error:
        parser.error(f"--results-dir: {error}")
    problems = toy.problems + a5.problems
    for problem in problems:
        print(f"warning: skipped {problem}", file=sys.stderr)
    if not (toy.scores or toy.curves or a5.curves or problems):
        print(f"nothing to compare: no results in {args.results_dir}", file=sys.stderr)
        return 1
    published = yaml.safe_load(PUBLISHED_RESULTS.read_text(encoding="utf-8"))
    rows = figure_1.compare(toy, published["figure_1"])
    rows += figure_2.compare(a5, published["figure_2"])
    provenance = load_provenance(args.results_dir)

    def html() -> str:
        return page.page(rows, toy, a5, published, provenance)

    if args.format == "text":
        print_text(rows)
    elif args.format == "html":
        print(html(), end="")
    else:
        print(as_json(rows) if args.format == "json" else as_markdown(rows, provenance, {}))
    if args.report:
        pictures = {t: name for t, name in PICTURES.items() if (args.results_dir / name).exists()}
        markdown = as_markdown(rows, provenance, pictures) + "\n"
        for name, text in zip(REPORTS, (markdown, html()), strict=True):
            try:
                with atomic_write(args.results_dir / name, "w") as file:
                    file.write(text)
            except OSError as error:
                parser.error(f"cannot write: {error}")
            print(f"wrote {args.results_dir / name}", file=sys.stderr)
    failed = bool(problems) or any(row.verdict in (WORSE, DISAGREES) for row in rows)
    return 1 if args.strict and failed else 0


if __name__ == "__main__":
    sys.exit(main())
