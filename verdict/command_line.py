"""What the command lines of the figures share."""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from harness.paths import RESULTS_DIR, path_argument
from harness.process import on_standard_streams
from verdict.look import house_style, save_figure
from verdict.results import Problem


def results_parser(description: str, examples: str, folders: str) -> argparse.ArgumentParser:
    """A parser of --results-dir, which holds `folders`."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--results-dir",
        type=path_argument,
        default=RESULTS_DIR,
        help=f"folder that holds {folders} (default: results in the repository)",
    )
    return parser


def plot_parser(
    description: str, examples: str, folder: str, default_name: str
) -> argparse.ArgumentParser:
    """The options of every plot script; `folder` holds its results, `default_name` is its PDF."""
    parser = results_parser(description, examples, f"{folder}/")
    parser.add_argument(
        "--output",
        type=path_argument,
        help=f"PDF to write (default: {default_name} in the results)",
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 if any file was unusable")
    parser.add_argument(
        "--watch",
        type=_seconds,
        metavar="SECONDS",
        help="draw again whenever the results change, looking every SECONDS, until Ctrl-C",
    )
    parser.set_defaults(folder=folder, default_name=default_name)
    return parser


@dataclass
class Drawing:
    """What a door has drawn: figures by the end of their names, and what there is to say.

    `missing` says why the figure itself is not among them, where there were results.
    """

    problems: list[Problem]
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    missing: str = ""


def plot(
    parser: argparse.ArgumentParser, argv: list[str] | None, draw: Callable[..., Drawing]
) -> int:
    """A plot script: draw, say what was skipped, write, and again with --watch.

    parser: from `plot_parser`; draw: is given its arguments.
    Exit code: 0, 1 (nothing to draw; --strict), 2 (bad arguments), or `on_standard_streams`'.
    """
    return on_standard_streams(lambda: _plot(parser, parser.parse_args(argv), draw))


def _plot(
    parser: argparse.ArgumentParser, args: argparse.Namespace, draw: Callable[..., Drawing]
) -> int:
    output = args.output or args.results_dir / args.default_name
    if output.suffix != ".pdf":
        parser.error(f"--output must end in .pdf, not {output.name!r}")

    def draw_once() -> int:
        with house_style():
            try:
                drawing = draw(args)
            except NotADirectoryError as error:
                parser.error(f"--results-dir: {error}")
            print_problems(drawing.problems)
            written = _write(parser, output, drawing.figures)
        print("".join(f"{line}\n" for line in written + drawing.notes), end="")
        missing = drawing.missing
        if not (missing or drawing.figures):
            kind = args.folder.removeprefix("outputs_")
            missing = f"nothing to draw: no {kind} results in {args.results_dir}"
        if missing:
            print(missing, file=sys.stderr)
        return int(bool(missing or (args.strict and drawing.problems)))

    return draw_and_watch(draw_once, args.results_dir / args.folder, args.watch)


def _write(parser: argparse.ArgumentParser, output: Path, figures: dict[str, Figure]) -> list[str]:
    lines = []
    for ending, figure in figures.items():
        pdf = output.with_name(f"{output.stem}{ending}.pdf")
        try:
            lines += [f"wrote {path}" for path in save_figure(figure, pdf)]
        except OSError as error:
            parser.error(f"cannot write {pdf}: {error}")
    return lines


def print_problems(problems: list[Problem]) -> None:
    """Warn of every file that was skipped."""
    for problem in problems:
        print(f"warning: skipped {problem}", file=sys.stderr)


def draw_and_watch(draw: Callable[[], int], folder: Path, seconds: float | None) -> int:
    """Call `draw`, which returns an exit code, once or, with `seconds`, at each change of `folder`.

    Returns the last exit code, with `seconds` after Ctrl-C.
    """
    if seconds is None:
        return draw()
    code = 0
    try:
        while True:
            drawn = _fingerprint(folder)
            code = draw()
            sys.stdout.flush()
            while _fingerprint(folder) == drawn:
                time.sleep(seconds)
    except KeyboardInterrupt:
        return code


def _fingerprint(folder: Path) -> list[tuple[Path, int, int]]:
    """Changes whenever a file of the folder does."""
    states = []
    for path in sorted(folder.glob("*")):
        with suppress(FileNotFoundError):  # a temporary file that was renamed since
            states.append((path, path.stat().st_mtime_ns, path.stat().st_size))
    return states


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
