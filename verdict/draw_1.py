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
from verdict.results import ToyCurve, ToyResults, ToyScore
from verdict.rows import OTHER_SETTINGS, OTHER_SETTINGS_LABEL, departures

PANELS = {2: "Area (2D)", 3: "Volume (3D)"}
Y_LIMITS = (1e-4, 0.15)
FIGURE_SIZE = (10, 4.03)  # inches, without the legend
MARGINS = {"left": 0.07, "right": 0.985, "wspace": 0.14}
LOG_LIMITS = (900, 1.2e6)  # steps
MARGIN_HEIGHTS = {"bottom": 0.53, "top": 0.45}  # inches, without the legend
LEGEND_ROW_HEIGHT = 0.216  # inches
LEGEND_COLUMNS = 3
MARKERS_PER_LINE = 8
ZERO_LABEL = "predicting zero"
LCDE_LABEL = "random Linear CDE"
LCDE_COLOR = MODEL_STYLES["Linear CDE"]["color"]
CROSS = {"marker": "x", "ls": "none", "ms": 7, "mew": 1.8}
END_LABEL = "a run ends early"
PAPER_LINE = {"lw": 0.8, "ls": "-"}
PAPER = ", paper"
PAPER_LABEL = "thin, in the same colour: the paper, its range shaded"
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


def summarise(curves: list[ToyCurve], first_step: int = 0) -> np.ndarray:
    """Steps, and mean, least and greatest value over the runs recorded there: (4, records).

    Runs may have stopped at different steps; only those from a step on are taken.
    """
    values = defaultdict(list)
    for curve in curves:
        for step, rmse in zip(curve.steps, curve.rmse, strict=True):
            values[step].append(rmse)
    columns = [
        (step, np.mean(rmse), min(rmse), max(rmse))
        for step, rmse in sorted(values.items())
        if step >= first_step
    ]
    return np.reshape(columns, (-1, 4)).T


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
            fate = f"not the paper's settings, {'drawn' if differences == chosen else 'left out'}"
            notes.append(f"{fate}: {label} ({input_dim}D): {'; '.join(differences)}")
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
    labels = [*(configuration_label(*configuration) for configuration in STYLES), LCDE_LABEL]
    missing = {label: [f"{d}D" for d in PANELS if (label, d) not in present] for label in labels}
    return [f"{label} ({', '.join(panels)})" for label, panels in missing.items() if panels]


def draw_figure(
    results: ToyResults, lines: list[Line], zero: dict, published: dict, overlay: bool = False
) -> Figure:
    """Draw both panels; `zero` maps input dimension to the RMS of the labels.

    Where no run goes beyond a tenth of the paper's steps, the steps are on a logarithmic axis as
    long as the paper's, without step 0. `overlay` adds the paper's curves with their ranges.
    """
    paper_last_step = published["sequence_models"]["last_step"]
    steps = np.concatenate([[0], *(curve.steps for line in lines for curve in line.curves)])
    logarithmic = 0 < steps.max() <= paper_last_step / 10
    lowest = min([Y_LIMITS[0]] + [0.8 * math.sqrt(score.mse) for score in results.scores])
    figure = Figure(figsize=FIGURE_SIZE)
    for axes, (input_dim, title) in zip(
        figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True
    ):
        if logarithmic:
            axes.set_xscale("log")
            axes.set_xlim(min(LOG_LIMITS[0], 0.9 * steps[steps > 0].min()), LOG_LIMITS[1])
        else:
            axes.set_xlim(0, 1.02 * (steps.max() or paper_last_step))
        if overlay:
            _draw_published(axes, input_dim, published, first_step=int(logarithmic))
        for line in lines:
            if line.input_dim == input_dim:
                _draw_line(axes, line, paper_last_step, logarithmic)
        axes.axhline(zero[input_dim], color="black", ls=(0, (6, 3)), lw=1.2, label=ZERO_LABEL)
        _draw_linear_cde(axes, results, input_dim, published["linear_cde"]["settings"])
        axes.set(title=title, xlabel="Training steps", yscale="log", ylim=(lowest, Y_LIMITS[1]))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25, lw=0.5)
        axes.tick_params(labelleft=True)
    figure.axes[0].set_ylabel("Validation RMSE")
    legend_height = LEGEND_ROW_HEIGHT * _add_legend(figure, overlay)
    # By hand, since matplotlib's own layout takes a second.
    width, height = FIGURE_SIZE[0], FIGURE_SIZE[1] + legend_height
    figure.set_size_inches(width, height)
    figure.subplots_adjust(
        **MARGINS,
        bottom=MARGIN_HEIGHTS["bottom"] / height,
        top=1 - (MARGIN_HEIGHTS["top"] + legend_height) / height,
    )
    return figure


def _draw_line(axes: Axes, line: Line, paper_last_step: int, logarithmic: bool) -> None:
    """On the logarithmic axis all runs end early: a cross marks those before the last."""
    steps, mean, low, high = summarise(line.curves, first_step=int(logarithmic))
    if not steps.size:
        return
    style = STYLES[line.configuration]
    every = max(1, len(steps) // MARKERS_PER_LINE)
    # Staggered, so that the markers of lines that lie on each other do not hide each other.
    first = every * list(STYLES).index(line.configuration) // len(STYLES)
    marks = {"ms": 4.5, "markevery": (first, every)}
    if logarithmic:
        marks = {"ms": 6.5, "markevery": (-1 % every, every), "zorder": 3}
    axes.plot(steps, mean, lw=1.4, label=line.label, **marks, **style)
    if len(line.curves) > 1:
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.2, lw=0)
    whole = steps[-1] if logarithmic else paper_last_step
    ends = sorted({c.steps[-1] for c in line.curves if 0 < c.steps[-1] < whole})
    if ends:
        heights = mean[np.searchsorted(steps, ends)]
        axes.plot(ends, heights, color=style["color"], label=END_LABEL, **CROSS)


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


def _draw_published(axes: Axes, input_dim: int, published: dict, first_step: int) -> None:
    """The paper's curves, thin, with the range over runs where it is known."""
    for curve in published["sequence_models"]["curves"]:
        configuration = (curve["model"], curve["depth"], curve["nonlinear"])
        if configuration not in STYLES or curve["input_dim"] != input_dim:
            continue
        color = STYLES[configuration]["color"]
        known = {step: value for step, value in curve["rmse"].items() if step >= first_step}
        means = [value["mean"] for value in known.values()]
        style = PAPER_LINE | ({"marker": "_", "ms": 9} if len(means) == 1 else {})
        label = "_" + configuration_label(*configuration) + PAPER
        axes.plot(list(known), means, color=color, label=label, **style)
        ranges = [(step, v["min"], v["max"]) for step, v in known.items() if "min" in v]
        if len(ranges) > 1:
            axes.fill_between(*zip(*ranges, strict=True), color=color, alpha=0.16, lw=0)
        elif ranges:
            axes.vlines(*zip(*ranges, strict=True), color=color, lw=PAPER_LINE["lw"])
    rmse = np.sqrt(published["linear_cde"]["mse"][input_dim])
    color = {"color": LCDE_COLOR, "lw": PAPER_LINE["lw"]}
    axes.axhline(rmse.mean(), label="_" + LCDE_LABEL + PAPER, **color)
    axes.axhspan(rmse.min(), rmse.max(), fill=False, **color)


def _add_legend(figure: Figure, overlay: bool) -> int:
    """One legend above both panels, naming what they show in Figure 1's order; returns its rows."""
    configurations = {configuration_label(*c): style for c, style in STYLES.items()}
    handles = {}
    if overlay:  # the paper's curves have the colours of ours, whether those are there or not
        handles = {label: Line2D([], [], **style) for label, style in configurations.items()}
        handles[PAPER_LABEL] = Line2D([], [], color="0.3", **PAPER_LINE)
    for axes in figure.axes:
        drawn, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
    if END_LABEL in handles:
        handles[END_LABEL] = Line2D([], [], color="0.3", **CROSS)
    marked = {label.removesuffix(OTHER_SETTINGS) for label in handles if OTHER_SETTINGS in label}
    if marked:
        handles[OTHER_SETTINGS_LABEL] = Line2D([], [], ls="none")
    order = [*configurations, ZERO_LABEL, LCDE_LABEL, PAPER_LABEL, END_LABEL, OTHER_SETTINGS_LABEL]
    labels = [label for label in handles if label not in marked]
    labels.sort(key=lambda label: order.index(label.removesuffix(OTHER_SETTINGS)))
    columns = {"ncols": LEGEND_COLUMNS, "frameon": False, "handlelength": 3.2}
    lines = [handles[label] for label in labels]
    figure.legend(lines, labels, loc="upper center", **columns)
    return math.ceil(len(lines) / LEGEND_COLUMNS)
