"""Figure 1 drawn: validation RMSE on the toy task against training steps."""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from harness.file_names import configuration_label
from verdict.look import MODEL_STYLES
from verdict.minimum_blocks import OTHER_SETTINGS, OTHER_SETTINGS_LABEL
from verdict.results import ToyCurve, ToyResults, ToyScore
from verdict.rows import departures

PANELS = {2: "Area (2D)", 3: "Volume (3D)"}
Y_LIMITS = (1e-4, 0.15)
FIGURE_SIZE = (10, 4.03)  # inches, without the legend
MARGINS = {"left": 0.07, "right": 0.985, "wspace": 0.14}
OVERLAY_MARGINS = MARGINS | {"right": 0.91, "wspace": 0.33}  # with a strip beside each panel
MARGIN_HEIGHTS = {"bottom": 0.53, "top": 0.45}  # inches, without the legend
LEGEND_ROW_HEIGHT = 0.216  # inches
LEGEND_COLUMNS = 3
MARKERS_PER_LINE = 8
ZERO_LABEL = "predicting zero"
LCDE_LABEL = "random Linear CDE"
LCDE_COLOR = MODEL_STYLES["Linear CDE"]["color"]
CROSS = {"marker": "x", "ls": "none", "ms": 7, "mew": 1.8}
END_LABEL = "a run ends early"
PAPER_LINE = {"lw": 0.7, "ms": 4, "ls": (0, (2, 2)), "mfc": "white", "mew": 0.7}
PAPER_BAND_WIDTH = 0.7  # points
PAPER = ", paper"
STRIP = (1.025, 0, 0.14, 1)  # of the panel it stands beside: left, bottom, width, height
OUTPUT_NAME = "rmse_subplots.pdf"

DOTS = (0, (1, 1.3))
# A hue and a marker per model, darker and more solid with each step up.
STYLES = {
    ("Mamba", 1, False): MODEL_STYLES["Mamba"] | {"color": "#E69F00", "ls": DOTS, "mfc": "white"},
    ("Mamba", 2, False): MODEL_STYLES["Mamba"] | {"color": "#D55E00", "ls": "-.", "mfc": "white"},
    ("Mamba", 2, True): MODEL_STYLES["Mamba"] | {"color": "#7F3300", "ls": "-"},
    ("S4", 1, False): MODEL_STYLES["S4"] | {"color": "#56B4E9", "ls": DOTS, "mfc": "white"},
    ("S4", 2, False): MODEL_STYLES["S4"] | {"color": "#0072B2", "ls": "-.", "mfc": "white"},
    ("S4", 2, True): MODEL_STYLES["S4"] | {"color": "#003B5C", "ls": "-"},
}


@dataclass(frozen=True)
class Line:
    """One configuration's runs in one panel."""

    configuration: tuple[str, int, bool]
    input_dim: int
    curves: list[ToyCurve]
    label: str


@dataclass(frozen=True)
class Summary:
    """Mean, least and greatest value over the runs recorded at each step, all (records,)."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def summarise(curves: list[ToyCurve]) -> Summary:
    """Combine runs that may have stopped at different steps."""
    values = defaultdict(list)
    for curve in curves:
        for step, rmse in zip(curve.steps, curve.rmse, strict=True):
            values[step].append(rmse)
    steps = sorted(values)
    columns = [(np.mean(values[s]), np.min(values[s]), np.max(values[s])) for s in steps]
    mean, low, high = np.array(columns).T
    return Summary(np.array(steps), mean, low, high)


def select_lines(results: ToyResults, settings: dict) -> tuple[list[Line], list[str]]:
    """Choose the lines to draw, and say in notes what was not chosen or is not the paper's.

    A line holds one set of training settings: the paper's where there are such runs.
    """
    groups = defaultdict(lambda: defaultdict(list))
    for curve in results.curves:
        key = curve.key
        group = groups[(key.model, key.depth, key.nonlinear), key.input_dim]
        group[tuple(departures(curve.settings, settings))].append(curve)
    lines, notes = [], []
    for (configuration, input_dim), group in sorted(groups.items()):
        label = configuration_label(*configuration)
        if configuration not in STYLES or input_dim not in PANELS:
            notes.append(f"not part of Figure 1, left out: {label} ({input_dim}D)")
            continue
        chosen = min(group, key=lambda differences: (len(differences), differences))
        for differences in sorted(filter(None, group)):
            fate = "drawn" if differences == chosen else "left out"
            notes.append(
                f"not the paper's settings, {fate}: {label} ({input_dim}D): "
                + "; ".join(differences)
            )
        label += OTHER_SETTINGS if chosen else ""
        lines.append(Line(configuration, input_dim, group[chosen], label))
    return lines, notes


def linear_cde_notes(scores: list[ToyScore], settings: dict) -> list[str]:
    """Say which Linear CDE results were not made with the paper's settings."""
    runs = defaultdict(list)
    for score in scores:
        if differences := departures(score.config, settings):
            runs[score.input_dim, "; ".join(differences)].append(str(score.run))
    return [
        f"not the paper's settings, drawn: {LCDE_LABEL} ({input_dim}D) run {', '.join(numbers)}: "
        + differences
        for (input_dim, differences), numbers in runs.items()
    ]


def missing_configurations(results: ToyResults, lines: list[Line]) -> list[str]:
    """Name what the paper's figure shows and these results lack, with its panels."""
    present = {(configuration_label(*line.configuration), line.input_dim) for line in lines}
    present |= {(LCDE_LABEL, score.input_dim) for score in results.scores}
    missing = []
    for label in [configuration_label(*configuration) for configuration in STYLES] + [LCDE_LABEL]:
        panels = [f"{d}D" for d in PANELS if (label, d) not in present]
        if panels:
            missing.append(f"{label} ({', '.join(panels)})")
    return missing


def draw_figure(
    results: ToyResults, lines: list[Line], zero: dict, published: dict, overlay: bool = False
) -> Figure:
    """Draw both panels; `zero` maps input dimension to the RMS of the labels.

    `overlay` adds the paper's values: at the steps they are known for, and the last ones in a strip
    beside the panel, which shows them however short our runs are.
    """
    paper_last_step = published["sequence_models"]["last_step"]
    last_step = max((curve.steps[-1] for line in lines for curve in line.curves), default=0)
    lowest = min([Y_LIMITS[0]] + [0.8 * math.sqrt(score.mse) for score in results.scores])
    figure = Figure(figsize=FIGURE_SIZE)
    for axes, (input_dim, title) in zip(
        figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True
    ):
        for line in lines:
            if line.input_dim == input_dim:
                _draw_line(axes, line, paper_last_step)
        axes.axhline(zero[input_dim], color="black", ls=(0, (6, 3)), lw=1.2, label=ZERO_LABEL)
        _draw_linear_cde(axes, results, input_dim, published["linear_cde"]["settings"])
        axes.set(title=title, xlabel="Training steps", yscale="log", ylim=(lowest, Y_LIMITS[1]))
        axes.set_xlim(0, 1.02 * (last_step or paper_last_step))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25, lw=0.5)
        axes.tick_params(labelleft=True)
        if overlay:
            _draw_published(axes, input_dim, published)
    figure.axes[0].set_ylabel("Validation RMSE")
    legend_height = LEGEND_ROW_HEIGHT * _add_legend(figure)
    # By hand, since matplotlib's own layout takes a second.
    width, height = FIGURE_SIZE[0], FIGURE_SIZE[1] + legend_height
    figure.set_size_inches(width, height)
    figure.subplots_adjust(
        **(OVERLAY_MARGINS if overlay else MARGINS),
        bottom=MARGIN_HEIGHTS["bottom"] / height,
        top=1 - (MARGIN_HEIGHTS["top"] + legend_height) / height,
    )
    return figure


def _draw_line(axes: Axes, line: Line, paper_last_step: int) -> None:
    summary = summarise(line.curves)
    style = STYLES[line.configuration]
    every = max(1, len(summary.steps) // MARKERS_PER_LINE)
    # Staggered, so that the markers of lines that lie on each other do not hide each other.
    first = every * list(STYLES).index(line.configuration) // len(STYLES)
    marks = {"ms": 4.5, "markevery": (first, every)}
    axes.plot(summary.steps, summary.mean, lw=1.4, label=line.label, **marks, **style)
    if len(line.curves) > 1:
        axes.fill_between(
            summary.steps, summary.low, summary.high, color=style["color"], alpha=0.2, lw=0
        )
    ends = sorted({c.steps[-1] for c in line.curves if c.steps[-1] < paper_last_step})
    if ends:
        heights = summary.mean[np.searchsorted(summary.steps, ends)]
        axes.plot(ends, heights, color=style["color"], **CROSS)


def _draw_linear_cde(axes: Axes, results: ToyResults, input_dim: int, settings: dict) -> None:
    scores = [score for score in results.scores if score.input_dim == input_dim]
    if not scores:
        return
    rmse = np.sqrt([score.mse for score in scores])
    departed = any(departures(score.config, settings) for score in scores)
    label = LCDE_LABEL + (OTHER_SETTINGS if departed else "")
    axes.axhline(rmse.mean(), color=LCDE_COLOR, ls=(0, (3, 1.5)), lw=1.8, label=label)
    if len(rmse) > 1:
        axes.axhspan(rmse.min(), rmse.max(), color=LCDE_COLOR, alpha=0.2, lw=0)


def _draw_published(axes: Axes, input_dim: int, published: dict) -> None:
    """The paper's values: mean as hollow marker, range over runs as a vertical line."""
    last_step = published["sequence_models"]["last_step"]
    strip = axes.inset_axes(STRIP, sharey=axes)
    strip.tick_params(which="both", left=False, labelleft=False, bottom=False, labelbottom=False)
    strip.grid(axis="y", alpha=0.25, lw=0.5)
    strip.set(xlim=(-1, len(STYLES)), facecolor="0.97")
    strip.set_title(f"paper,\n{EngFormatter(sep='')(last_step)}", fontsize=8)
    for curve in published["sequence_models"]["curves"]:
        configuration = (curve["model"], curve["depth"], curve["nonlinear"])
        if configuration in STYLES and curve["input_dim"] == input_dim:
            values = curve["rmse"]
            label = configuration_label(*configuration) + PAPER
            _draw_values(axes, list(values), list(values.values()), configuration, label)
            place = list(STYLES).index(configuration)
            _draw_values(strip, [place], [values[last_step]], configuration)
    rmse = np.sqrt(published["linear_cde"]["mse"][input_dim])
    color = {"color": LCDE_COLOR, "lw": PAPER_LINE["lw"]}
    axes.axhline(rmse.mean(), ls=PAPER_LINE["ls"], label=LCDE_LABEL + PAPER, **color)
    axes.axhspan(rmse.min(), rmse.max(), fill=False, **color)


def _draw_values(
    axes: Axes, places: list[float], values: list[dict], configuration: tuple, label: str = ""
) -> None:
    style = STYLES[configuration]
    axes.plot(places, [v["mean"] for v in values], label=label, **(style | PAPER_LINE))
    ranges = [(p, v["min"], v["max"]) for p, v in zip(places, values, strict=True) if "min" in v]
    if ranges:
        axes.vlines(*zip(*ranges, strict=True), color=style["color"], lw=PAPER_BAND_WIDTH)


def _add_legend(figure: Figure) -> int:
    """One legend above both panels, naming what they show in Figure 1's order; returns its rows."""
    handles = {}
    crosses = False
    for axes in figure.axes:
        drawn, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
        crosses |= any(line.get_marker() == "x" for line in axes.lines)
    ours = [configuration_label(*c) for c in STYLES] + [ZERO_LABEL, LCDE_LABEL]
    order = [label + end for end in ("", PAPER) for label in ours]
    labels = sorted(handles, key=lambda label: order.index(label.removesuffix(OTHER_SETTINGS)))
    lines = [handles[label] for label in labels]
    if crosses:
        lines.append(Line2D([], [], color="0.3", **CROSS))
        labels.append(END_LABEL)
    if any(label.endswith(OTHER_SETTINGS) for label in labels):
        lines.append(Line2D([], [], ls="none"))
        labels.append(OTHER_SETTINGS_LABEL)
    figure.legend(
        lines, labels, loc="upper center", ncols=LEGEND_COLUMNS, frameon=False, handlelength=3.2
    )
    return math.ceil(len(labels) / LEGEND_COLUMNS)
