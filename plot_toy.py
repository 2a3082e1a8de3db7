"""Figure 1: validation RMSE on the toy task against training steps, from result files alone."""

import argparse
import sys
from pathlib import Path

import matplotlib

from harness.paths import DATA_DIR, TOY_RESULTS
from verdict.command_line import draw_and_watch, output_path, plot_parser, print_problems
from verdict.draw_1 import (
    OUTPUT_NAME,
    draw_figure,
    linear_cde_notes,
    missing_configurations,
    select_lines,
)
from verdict.look import RC, save_figure
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
        type=Path,
        default=DATA_DIR,
        help="folder that holds toy_data/, for the height of 'predicting zero'",
    )
    parser.add_argument(
        "--overlay", choices=["published"], help="add the paper's values, thin and labelled"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Draw the figure. Exit code: 0, 1 (nothing to draw; --strict), 2 (bad arguments)."""
    parser = build_parser()
    args = parser.parse_args(argv)
    output = output_path(parser, args, OUTPUT_NAME)
    published = published_results()["figure_1"]
    return draw_and_watch(
        lambda: _draw_once(parser, args, output, published),
        args.results_dir / TOY_RESULTS,
        args.watch,
    )


def _draw_once(
    parser: argparse.ArgumentParser, args: argparse.Namespace, output: Path, published: dict
) -> int:
    try:
        results = load_toy_results(args.results_dir)
    except NotADirectoryError as error:
        parser.error(f"--results-dir: {error}")
    zero = predicting_zero(args.data_dir, published["predicting_zero"]["rmse"], results.problems)
    print_problems(results.problems)
    lines, notes = select_lines(results, published["sequence_models"]["settings"])
    notes += linear_cde_notes(results.scores, published["linear_cde"]["settings"])
    if not lines and not results.scores:
        print(f"nothing to draw: no toy results in {args.results_dir}", file=sys.stderr)
        return 1
    with matplotlib.rc_context(RC):
        figure = draw_figure(results, lines, zero, published, overlay=bool(args.overlay))
        try:
            written = save_figure(figure, output)
        except OSError as error:
            parser.error(f"cannot write {output}: {error}")
    print("\n".join(notes + [f"wrote {path}" for path in written]))
    missing = missing_configurations(results, lines)
    if missing:
        print("left out, no usable results: " + "; ".join(missing))
    return 1 if args.strict and results.problems else 0


if __name__ == "__main__":
    sys.exit(main())
