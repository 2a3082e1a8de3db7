"""The theory in numbers: width, structure, kernel and groups, from result files alone."""

import argparse
import sys

from harness.paths import THEORY_RESULTS
from verdict.command_line import Drawing, plot, plot_parser
from verdict.draw_theory import OUTPUT_NAME, draw_figure, draw_lengths
from verdict.results import load_theory_results

EXAMPLES = """examples:
  python plot_theory.py
  python plot_theory.py --results-dir results/quick --output theory.pdf
  python plot_theory.py --watch 30
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    description = "Draw the theory's figure from whatever result files exist."
    return plot_parser(description, EXAMPLES, THEORY_RESULTS, OUTPUT_NAME)


def main(argv: list[str] | None = None) -> int:
    """Draw the figure. Exit code: 0, 1 (nothing to draw; --strict), 2 (bad arguments)."""
    return plot(build_parser(), argv, _draw)


def _draw(args: argparse.Namespace) -> Drawing:
    results = load_theory_results(args.results_dir)
    if not results.runs:
        return Drawing(results.problems)
    figure, notes = draw_figure(results)
    lengths, words = draw_lengths(results)
    figures = {"": figure} | ({"_lengths": lengths} if lengths else {})
    return Drawing(results.problems, notes + words, figures)


if __name__ == "__main__":
    sys.exit(main())
