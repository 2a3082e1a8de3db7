"""What the command lines of the figures share."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness.paths import RESULTS_DIR
from verdict.results import Problem


def plot_parser(
    description: str, examples: str, folder: str, default_name: str
) -> argparse.ArgumentParser:
    """The options of every plot script; `folder` holds its results, `default_name` is its PDF."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--results-dir",
        type=Path,
        default=RESULTS_DIR,
        help=f"folder that holds {folder}/ (default: results in the repository)",
    )
    parser.add_argument(
        "--output", type=Path, help=f"PDF to write (default: {default_name} in the results)"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 if any file was unusable")
    parser.add_argument(
        "--watch",
        type=_seconds,
        metavar="SECONDS",
        help="draw again whenever the results change, looking every SECONDS, until Ctrl-C",
    )
    return parser


def output_path(
    parser: argparse.ArgumentParser, args: argparse.Namespace, default_name: str
) -> Path:
    """The PDF to write; ends the program with exit code 2 if it is not a PDF."""
    output = args.output or args.results_dir / default_name
    if output.suffix != ".pdf":
        parser.error(f"--output must end in .pdf, not {output.name!r}")
    return output


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
        try:
            stat = path.stat()
        except FileNotFoundError:  # a temporary file that was renamed since
            continue
        states.append((path, stat.st_mtime_ns, stat.st_size))
    return states


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return seconds
