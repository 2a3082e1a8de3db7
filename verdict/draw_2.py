"""Figure 2 drawn: the fewest blocks that solve A5 against sequence length, and the curves."""

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from verdict.figure_2 import Search
from verdict.look import MODEL_STYLES
from verdict.results import LINEAR_CDE
from verdict.rows import OTHER_SETTINGS, OTHER_SETTINGS_LABEL

OUTPUT_NAME = "A5_plot_shaded_regions.pdf"
# In the legend's order, each line a little higher than the one before.
MODELS = ("Mamba", "S4", "Transformer", "RNN", LINEAR_CDE)
OFFSETS = {model: 0.1 * place for place, model in enumerate(MODELS)}
PAPER_OFFSET = 0.05  # further up, so that the paper's line shows beside an equal one
LEVELS = (1, 2, 3, 4)
BAND = (-0.12, 0.57)  # around a level
BAND_COLOR = "0.92"
FIGURE_SIZE = (7.5, 5.2)  # inches
MARGINS = {"left": 0.08, "right": 0.98, "bottom": 0.1}
LEGEND_ROW_HEIGHT = 0.043  # of the figure's height
LEGEND_COLUMNS = 3
LONG_LABEL = 20  # characters; three columns of longer ones are wider than the figure
LINE = {"lw": 1.6, "ms": 5.5}
PAPER_LINE = {"lw": 0.7, "ms": 3, "ls": (0, (4, 2)), "mfc": "white", "mew": 0.7}
PAPER = ", paper"
BOUND_LABEL = "hollow: fewer blocks not decided"

PANEL_SIZE = (3.6, 2.9)  # inches, with its title and labels
PANEL_COLUMNS = 3
PANEL_MARGINS = {"left": 0.65, "right": 0.15, "bottom": 0.55, "top": 0.35}  # inches
CURVES_LEGEND_ROW_HEIGHT = 0.22  # inches
CURVES_LEGEND_COLUMN_WIDTH = 1.5  # inches
CURVES_EMPTY_PANEL_STEPS = 1000  # width of a panel whose runs have one record
LENGTH_COLORS = colormaps["viridis"]
LIGHTEST = 0.92  # of the colour map; lighter is lost on white
THRESHOLD_LINE = {"color": "0.4", "ls": (0, (1, 2)), "lw": 1}
DEPTH_LINES = {1: "-", 2: "--", 3: "-.", 4: (0, (1, 1.3))}


def draw_figure(found: Search, published: dict | None) -> Figure:
    """Draw Figure 2; `published`, the paper's table, is drawn as thin lines where given."""
    figure = Figure(figsize=FIGURE_SIZE)
    axes = figure.subplots()
    for level in LEVELS:
        axes.axhspan(level + BAND[0], level + BAND[1], color=BAND_COLOR, lw=0, zorder=0)
    bounds = False
    for model in MODELS:
        bounds |= _draw_model(axes, model, found)
        if published:
            _draw_published(axes, model, published)
    center = sum(BAND) / 2
    axes.set_yticks([level + center for level in LEVELS], map(str, LEVELS))
    axes.set_xticks(found.lengths)
    axes.set(xlabel="sequence length", ylabel="minimum # blocks required")
    axes.set_ylim(LEVELS[0] + BAND[0] - 0.15, LEVELS[-1] + BAND[1] + 0.15)
    axes.set_xlim(found.lengths[0] - 0.6, found.lengths[-1] + 0.6)
    handles, labels = axes.get_legend_handles_labels()
    if bounds:
        handles.append(Line2D([], [], ls="none", marker="o", color="0.3", mfc="white"))
        labels.append(BOUND_LABEL)
    if any(OTHER_SETTINGS in label for label in labels):
        handles.append(Line2D([], [], ls="none"))
        labels.append(OTHER_SETTINGS_LABEL)
    columns = LEGEND_COLUMNS - (max(map(len, labels)) > LONG_LABEL)
    figure.legend(handles, labels, loc="upper center", ncols=columns, frameon=False)
    rows = math.ceil(len(labels) / columns)
    figure.subplots_adjust(**MARGINS, top=0.97 - LEGEND_ROW_HEIGHT * rows)
    return figure


def _draw_model(axes: Axes, model: str, found: Search) -> bool:
    """Draw a model's line if it has one; returns whether a point of it is an upper bound."""
    cells = [found.cells[model, length] for length in found.lengths]
    if all(cell.blocks is None for cell in cells):
        return False
    heights = np.array([cell.blocks for cell in cells], dtype=float) + OFFSETS[model]  # NaN: a gap
    known = sum(cell.blocks is not None or cell.decided for cell in cells)
    label = found.label(model)
    if known < len(cells):  # tells a line that ends so from one that ends at a failure
        label += f" ({known} of {len(cells)} lengths)"
    axes.plot(found.lengths, heights, label=label, **LINE, **MODEL_STYLES[model])
    hollow = [cell.blocks is not None and not cell.decided for cell in cells]
    style = MODEL_STYLES[model] | {"ls": "none", "mfc": "white", "ms": LINE["ms"]}
    axes.plot(np.array(found.lengths)[hollow], heights[hollow], **style)
    return any(hollow)


def _draw_published(axes: Axes, model: str, published: dict) -> None:
    offset = OFFSETS[model] + PAPER_OFFSET
    heights = np.array(published["models"][model], dtype=float) + offset
    style = MODEL_STYLES[model] | PAPER_LINE
    axes.plot(published["lengths"], heights, label=model + PAPER, **style)


def draw_curves(found: Search, solved_above: float) -> Figure:
    """Validation accuracy against step: a panel per model, a line per length and depth."""
    models = [model for model in MODELS if any(key[0] == model for key in found.trials)]
    lengths = sorted({length for _, length, _ in found.trials})
    shades = LENGTH_COLORS(np.linspace(0, LIGHTEST, len(lengths)))
    colors = dict(zip(lengths, shades, strict=True))
    legend = _curves_legend(found, colors, solved_above)

    columns = min(PANEL_COLUMNS, len(models))
    rows = math.ceil(len(models) / columns)
    # One panel is drawn as wide as two, so that the legend fits.
    width = PANEL_SIZE[0] * max(2, columns)
    legend_columns = min(int(width / CURVES_LEGEND_COLUMN_WIDTH), len(legend))
    top = CURVES_LEGEND_ROW_HEIGHT * (math.ceil(len(legend) / legend_columns) + 0.5)
    figure = Figure(figsize=(width, PANEL_SIZE[1] * rows + top))
    for place, model in enumerate(models):
        left = width / columns * (place % columns)
        bottom = PANEL_SIZE[1] * (rows - 1 - place // columns)
        axes = _add_panel(figure, left, bottom, width / columns)
        _draw_panel(axes, model, found, colors, solved_above)
    figure.legend(
        legend.values(), legend.keys(), loc="upper center", ncols=legend_columns, frameon=False
    )
    return figure


def _add_panel(figure: Figure, left: float, bottom: float, panel_width: float) -> Axes:
    """Axes at a place in inches. By hand, since matplotlib's own layout takes a second."""
    width, height = figure.get_size_inches()
    margins = PANEL_MARGINS
    return figure.add_axes(
        (
            (left + margins["left"]) / width,
            (bottom + margins["bottom"]) / height,
            (panel_width - margins["left"] - margins["right"]) / width,
            (PANEL_SIZE[1] - margins["bottom"] - margins["top"]) / height,
        )
    )


def _draw_panel(axes: Axes, model: str, found: Search, colors: dict, solved_above: float) -> None:
    last_step = CURVES_EMPTY_PANEL_STEPS
    for (owner, length, depth), trial in found.trials.items():
        if owner == model:
            curve = trial.curve
            style = {"color": colors[length], "ls": DEPTH_LINES[depth], "lw": 1.4}
            axes.plot(curve.steps, curve.accuracies, **style)
            axes.plot(curve.steps[-1:], curve.accuracies[-1:], marker=".", color=colors[length])
            last_step = max(last_step, curve.last_step)
    axes.axhline(solved_above, **THRESHOLD_LINE)
    axes.set(title=model, xlabel="training steps", ylabel="validation accuracy")
    axes.set(xlim=(0, 1.03 * last_step), ylim=(0, 1.03))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25, lw=0.5)


def _curves_legend(found: Search, colors: dict, solved_above: float) -> dict[str, Line2D]:
    handles = {f"length {n}": Line2D([], [], color=color) for n, color in colors.items()}
    depths = sorted({depth for _, _, depth in found.trials})
    if len(depths) > 1:
        for depth in depths:
            name = f"{depth} block" + ("s" if depth > 1 else "")
            handles[name] = Line2D([], [], color="black", ls=DEPTH_LINES[depth])
    return handles | {f"solved above {solved_above:g}": Line2D([], [], **THRESHOLD_LINE)}
