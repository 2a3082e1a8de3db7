"""Figure 2: the fewest blocks that solve A5 against sequence length, from result files alone."""

import argparse
import sys
from pathlib import Path

import matplotlib

from harness.paths import A5_RESULTS
from verdict.command_line import draw_and_watch, output_path, plot_parser, print_problems
from verdict.draw_2 import OUTPUT_NAME, draw_curves, draw_figure
from verdict.look import RC, save_figure
from verdict.minimum_blocks import search
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
    parser = build_parser()
    args = parser.parse_args(argv)
    output = output_path(parser, args, OUTPUT_NAME)
    published = published_results()["figure_2"]
    return draw_and_watch(
        lambda: _draw_once(parser, args, output, published),
        args.results_dir / A5_RESULTS,
        args.watch,
    )


def _draw_once(
    parser: argparse.ArgumentParser, args: argparse.Namespace, output: Path, published: dict
) -> int:
    try:
        results = load_a5_results(args.results_dir)
    except NotADirectoryError as error:
        parser.error(f"--results-dir: {error}")
    print_problems(results.problems)
    found = search(results, published)
    if not found.trials:
        print(f"nothing to draw: no A5 results in {args.results_dir}", file=sys.stderr)
        return 1
    if args.table:
        print(blocks_table(found), end="\n\n")
    table = published["min_blocks"]
    figures = {}
    solved = any(cell.blocks is not None for cell in found.cells.values())
    with matplotlib.rc_context(RC):
        if solved:
            figures[output] = draw_figure(found, table if args.overlay else None)
        if args.curves:
            curves = output.with_name(f"{output.stem}_curves.pdf")
            figures[curves] = draw_curves(found, table["solved_above"])
        try:
            written = [path for pdf, figure in figures.items() for path in save_figure(figure, pdf)]
        except OSError as error:
            parser.error(f"cannot write: {error}")
    print("\n".join(found.notes + [f"wrote {path}" for path in written]))
    if not solved:
        above = table["solved_above"]
        print(f"no line to draw: no run's accuracy exceeds {above}", file=sys.stderr)
        return 1
    return 1 if args.strict and results.problems else 0


if __name__ == "__main__":
    sys.exit(main())
