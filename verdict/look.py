"""What the figures share: one look, the same bytes for the same input, and one command line."""

import argparse
import html
import io
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from harness.atomic_files import atomic_write
from harness.file_names import Problem
from harness.paths import RESULTS_DIR

# Okabe and Ito's palette: the same hue and marker for a model in every figure.
MODEL_STYLES = {
    "Mamba": {"color": "#D55E00", "marker": "o"},
    "S4": {"color": "#0072B2", "marker": "s"},
    "Transformer": {"color": "#CC79A7", "marker": "^"},
    "RNN": {"color": "#000000", "marker": "v"},
    "Linear CDE": {"color": "#009E73", "marker": "D"},
}
OTHER_SETTINGS = " *"  # ends the label of a line that was not made with the paper's settings
OTHER_SETTINGS_LABEL = "* not the paper's settings"
PNG_DPI = 160
RC = {"pdf.fonttype": 42, "font.family": "DejaVu Sans", "font.size": 10}


def save_figure(figure: Figure, pdf: Path) -> list[Path]:
    """Write `pdf` and a PNG beside it; the same figure gives the same bytes. Raises: OSError."""
    png = pdf.with_suffix(".png")
    with atomic_write(pdf) as file:
        figure.savefig(file, format="pdf", metadata={"CreationDate": None})
    with atomic_write(png) as file:
        figure.savefig(file, format="png", dpi=PNG_DPI)
    return [pdf, png]


def svg(figure: Figure, name: str, label: str) -> str:
    """An <svg> element for a page; `name` starts all its ids, `label` is read out in its place.

    Letters are outlines, so that it looks the same without the font. The same figure gives the same
    text.
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    text = buffer.getvalue()
    # Every figure of Matplotlib's has an axes_1 and a glyph of each letter.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", text[text.index("<svg") :])
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1).strip()


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
