"""Figure 2: the fewest blocks that solve A5 against sequence length, from result files alone."""

import argparse
import sys

from harness.paths import A5_RESULTS
from verdict.command_line import Drawing, plot, plot_parser
from verdict.draw_2 import OUTPUT_NAME, draw_curves, draw_figure
from verdict.figure_2 import search
from verdict.results import load_a5_results, published_results
from verdict.tables import blocks_table

EXAMPLES = """examples:
  python plot_A5.py
  python plot_A5.py --results-dir results --output figure_2.pdf --table
  python plot_A5.py --overlay published
  python plot_A5.py --curves --watch 60
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    description = "Draw Figure 2 from whatever result files exist."
    parser = plot_parser(description, EXAMPLES, A5_RESULTS, OUTPUT_NAME)
    parser.add_argument(
        "--table", action="store_true", help="print the minimum numbers of blocks as markdown"
    )
    parser.add_argument(
        "--overlay", choices=["published"], help="add the paper's lines, thin and labelled"
    )
    parser.add_argument(
        "--curves",
        action="store_true",
        help="also draw accuracy against step, in a file whose name ends in _curves.pdf",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Draw the figure. Exit code: 0, 1 (nothing to draw; --strict), 2 (bad arguments)."""
    return plot(build_parser(), argv, _draw)


def _draw(args: argparse.Namespace) -> Drawing:
    published = published_results()["figure_2"]
    results = load_a5_results(args.results_dir)
    found = search(results, published)
    if not found.trials:
        return Drawing(results.problems, found.notes)
    table = published["min_blocks"]
    drawing = Drawing(results.problems, found.notes)
    if args.table:
        drawing.notes = [blocks_table(found) + "\n", *found.notes]
    if any(cell.blocks is not None for cell in found.cells.values()):
        drawing.figures[""] = draw_figure(found, table if args.overlay else None)
    else:
        drawing.missing = f"no line to draw: no run's accuracy exceeds {table['solved_above']}"
    if args.curves:
        drawing.figures["_curves"] = draw_curves(found, table["solved_above"])
    return drawing


if __name__ == "__main__":
    sys.exit(main())
