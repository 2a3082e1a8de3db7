"""What the figures share: one look, and the same bytes for the same input."""

import html
import io
import re
from contextlib import AbstractContextManager
from pathlib import Path

from matplotlib import rc_context, rcParamsDefault
from matplotlib.figure import Figure

from harness.atomic_files import atomic_write

# Okabe and Ito's palette: the same hue and marker for a model in every figure.
MODEL_STYLES = {
    "Mamba": {"color": "#D55E00", "marker": "o"},
    "S4": {"color": "#0072B2", "marker": "s"},
    "Transformer": {"color": "#CC79A7", "marker": "^"},
    "RNN": {"color": "#000000", "marker": "v"},
    "Linear CDE": {"color": "#009E73", "marker": "D"},
}
PNG_DPI = 160
RC = {"pdf.fonttype": 42, "font.family": "DejaVu Sans", "font.size": 10}


def house_style() -> AbstractContextManager[None]:
    """Figures made inside look the same whatever a user's matplotlibrc says."""
    return rc_context({k: v for k, v in rcParamsDefault.items() if k != "backend"} | RC)


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
