"""Figure 1: validation RMSE on the toy task against training steps, from result files alone."""

import argparse
import sys

from harness.paths import DATA_DIR, TOY_RESULTS, path_argument
from verdict.command_line import Drawing, plot, plot_parser
from verdict.draw_1 import (
    OUTPUT_NAME,
    draw_figure,
    linear_cde_notes,
    missing_configurations,
    select_lines,
)
from verdict.results import load_toy_results, predicting_zero, published_results

EXAMPLES = """examples:
  python plot_toy.py
  python plot_toy.py --results-dir results --output figure_1.pdf
  python plot_toy.py --overlay published
  python plot_toy.py --watch 30
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    description = "Draw Figure 1 from whatever result files exist."
    parser = plot_parser(description, EXAMPLES, TOY_RESULTS, OUTPUT_NAME)
    parser.add_argument(
        "--data-dir",
        type=path_argument,
        default=DATA_DIR,
        help="folder that holds toy_data/, for the height of 'predicting zero'",
    )
    parser.add_argument(
        "--overlay", choices=["published"], help="add the paper's values, thin and labelled"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Draw the figure. Exit code: 0, 1 (nothing to draw; --strict), 2 (bad arguments)."""
    return plot(build_parser(), argv, _draw)


def _draw(args: argparse.Namespace) -> Drawing:
    published = published_results()["figure_1"]
    results = load_toy_results(args.results_dir)
    zero = predicting_zero(args.data_dir, published["predicting_zero"]["rmse"], results.problems)
    lines, notes = select_lines(results, published["sequence_models"]["settings"])
    notes += linear_cde_notes(results.scores, published["linear_cde"]["settings"])
    if not lines and not results.scores:
        return Drawing(results.problems, notes)
    left_out = missing_configurations(results, lines)
    if left_out:
        notes.append("left out, no usable results: " + "; ".join(left_out))
    figure = draw_figure(results, lines, zero, published, overlay=bool(args.overlay))
    return Drawing(results.problems, notes, {"": figure})


if __name__ == "__main__":
    sys.exit(main())
