"""Does this agree with the paper? Every number of its figures beside ours, with a verdict."""

import argparse
import sys
from functools import partial
from pathlib import Path

from harness.atomic_files import atomic_write
from harness.process import on_standard_streams
from verdict import draw_1, draw_2, figure_1, figure_2, page
from verdict.command_line import print_problems, results_parser
from verdict.provenance import load_provenance
from verdict.results import ToyResults, load_a5_results, load_toy_results, published_results
from verdict.rows import DISAGREES, WORSE
from verdict.tables import as_json, as_markdown, print_text

PICTURES = {
    title: str(Path(name).with_suffix(".png"))
    for title, name in (("Figure 1", draw_1.OUTPUT_NAME), ("Figure 2", draw_2.OUTPUT_NAME))
}
REPORTS = ("REPORT.md", "report.html")
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


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = results_parser(DESCRIPTION, EXAMPLES, "outputs_toy/ and outputs_A5/")
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
    return on_standard_streams(partial(compare, argv))


def compare(argv: list[str] | None) -> int:
    """`main`, on standard streams. Raises: OutputError."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        toy, a5 = load_toy_results(args.results_dir), load_a5_results(args.results_dir)
    except NotADirectoryError as error:
        parser.error(f"--results-dir: {error}")
    tf32_dir = args.results_dir / "tf32"
    tf32 = load_toy_results(tf32_dir) if tf32_dir.is_dir() else ToyResults()
    problems = toy.problems + a5.problems + tf32.problems
    print_problems(problems)
    if not (toy.scores or toy.curves or a5.curves or problems):
        print(f"nothing to compare: no results in {args.results_dir}", file=sys.stderr)
        return 1
    published = published_results()
    rows, in_tf32 = (figure_1.compare(found, published["figure_1"]) for found in (toy, tf32))
    rows = figure_1.beside_tf32(rows, in_tf32)
    rows += figure_2.compare(a5, published["figure_2"])
    provenance = load_provenance(args.results_dir)
    html = partial(page.page, rows, toy, a5, published, provenance)
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
                parser.error(f"cannot write {args.results_dir / name}: {error}")
            print(f"wrote {args.results_dir / name}", file=sys.stderr)
    failed = bool(problems) or any(row.verdict in (WORSE, DISAGREES) for row in rows)
    return 1 if args.strict and failed else 0


if __name__ == "__main__":
    sys.exit(main())
