"""The theory's figure: predictions as lines and marks, measurements as points with ranges."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from verdict.results import Measured, TheoryResults

OUTPUT_NAME = "theory.pdf"
FIGURE_SIZE = (11, 8.4)  # inches
MARGINS = {"left": 0.075, "right": 0.985, "bottom": 0.065, "top": 0.955}
SPACES = {"wspace": 0.2, "hspace": 0.3}
# Okabe and Ito's palette, a hue and a marker a structure.
STRUCTURES = {
    1: {"color": "#D55E00", "marker": "o"},
    2: {"color": "#E69F00", "marker": "s"},
    3: {"color": "#CC79A7", "marker": "P"},
    4: {"color": "#009E73", "marker": "^"},
    8: {"color": "#56B4E9", "marker": "v"},
    "dense": {"color": "#0072B2", "marker": "D"},
}
OTHER_STRUCTURE = {"color": "0.4", "marker": "X"}
DASHES = {"area": "-", "volume": (0, (4, 1.5))}
TARGETS = {
    "volume": {"color": "#0072B2", "marker": "D", "label": "volume"},
    "antisymmetric_2": {"color": "#009E73", "marker": "o", "label": "antisymmetric, level 2"},
    "antisymmetric_3": {"color": "#D55E00", "marker": "s", "label": "antisymmetric, level 3"},
    "antisymmetric_4": {"color": "#CC79A7", "marker": "^", "label": "antisymmetric, level 4"},
    "antisymmetric_5": {"color": "#000000", "marker": "v", "label": "antisymmetric, level 5"},
}
GROUPS = {
    "A5": {"color": "#0072B2", "marker": "D"},
    "S5": {"color": "#D55E00", "marker": "s"},
    "Z60": {"color": "#009E73", "marker": "o"},
    "A4xZ5": {"color": "#CC79A7", "marker": "^"},
}
PREDICTION = {"color": "0.25", "lw": 1.1}
MARK = {"color": "0.1", "marker": "_", "ms": 22, "mew": 1.6, "ls": "none"}
MEASURED = {"ms": 5, "capsize": 2.5, "elinewidth": 1.0}
LEGEND = {"fontsize": 7.5, "edgecolor": "none", "framealpha": 0.8, "handlelength": 2.4}
NOTE = {"fontsize": 7.5, "color": "0.25"}
SHIFTS = (-0.09, -0.03, 0.03, 0.09)  # of the groups, so that none hides another
POSITIONS = (20, 40, 100, 200, 500)
LENGTHS_SIZE = (6, 4)  # inches
LENGTHS_MARGINS = {"left": 0.1, "right": 0.975, "bottom": 0.125, "top": 0.93}
FIT_FROM = 64  # H: below, fields have fewer features than the terms that count
ACCURACIES = 2  # the place of that array in a run that was trained
VISIBLE = 2  # to diagonal fields: antisymmetric terms up to this level

Rows = dict[int | str, np.ndarray]


def structure_name(block_size: int | str) -> str:
    """A structure of A in words."""
    names = {1: "k = 1 (diagonal)", "dense": "dense"}
    return names.get(block_size, f"k = {block_size}")


def by_size(block_size: int | str) -> float:
    """The order of structures: by block size, dense last."""
    return float("inf") if block_size == "dense" else float(block_size)


def rows_by(runs: Iterable[Measured], key: str, array: int = 0) -> Rows:
    """One array of each run, (runs, values), by a key of their config, in its order."""
    found = defaultdict(list)
    for run in runs:
        found[run.config[key]].append(run.values[array])
    return {k: np.array(found[k]) for k in sorted(found, key=by_size)}


def grouped(runs: Sequence[Measured], first: str, second: str) -> dict[int | str, Rows]:
    """`rows_by` the second key, of the runs of each value of the first, in its order."""
    values = sorted({run.config[first] for run in runs}, key=by_size)
    return {v: rows_by([run for run in runs if run.config[first] == v], second) for v in values}


def geometric_mean(row: np.ndarray) -> float:
    """The geometric mean."""
    return float(np.exp(np.mean(np.log(row))))


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the least-squares line through the logarithms of both."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def draw_ranges(
    axes: Axes, x: Sequence[float], rows: Sequence[Sequence[float]], average: Callable, **style
) -> np.ndarray:
    """The average of each row at its x, with the row's range; returns the averages."""
    middles = np.array([average(row) for row in rows])
    low, high = np.array([(min(row), max(row)) for row in rows]).T
    # Rounding may put the mean of equal values an ulp beside them.
    reach = np.maximum([middles - low, high - middles], 0)
    axes.errorbar(x, middles, yerr=reach, **MEASURED, **style)
    return middles


def draw_width(axes: Axes, results: TheoryResults) -> list[str]:
    """Area and volume against H, with the floor and zero; returns the fitted exponents."""
    notes, sizes = [], set()
    for target, dashes in DASHES.items():
        runs = results.of("fields", target=target)
        found = grouped(runs, "block_size", "hidden_dim")
        lines = {size: rows for size, rows in found.items() if len(rows) > 1}
        for size, rows in lines.items():
            sizes.add(size)
            style = STRUCTURES.get(size, OTHER_STRUCTURE) | {"ls": dashes, "lw": 1.2}
            style |= {"mfc": "white"} if target == "volume" else {}
            errors = [row[:, 0] for row in rows.values()]
            middles = draw_ranges(axes, list(rows), errors, geometric_mean, **style)
            fitted = {h: mean for h, mean in zip(rows, middles, strict=True) if h >= FIT_FROM}
            if len(fitted) > 1:
                slope = exponent(list(fitted), list(fitted.values()))
                words = f"RMSE as H^{slope:.2f} from H = {min(fitted)} to {max(fitted)}"
                notes.append(f"{target}, {structure_name(size)}: {words}")
        if lines:
            axes.axhline(runs[0].values[0][1], **PREDICTION, ls=":")
    if not sizes:
        return []
    for floor in results.of("floor"):
        least, zero = floor.values[0]
        notes.append(f"volume, diagonal: not below {least:.4g}; predicting zero {zero:.4g}")
        axes.axhline(least, **PREDICTION, ls="--")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(yscale="log", xlabel="Width H", ylabel="Validation RMSE")
    add_width_legend(axes, sizes)
    return notes


def add_width_legend(axes: Axes, sizes: Iterable[int | str]) -> None:
    """A marker for each structure, a dash for each target, and the predictions."""
    handles = [
        Line2D([], [], **STRUCTURES.get(k, OTHER_STRUCTURE), ls="none", label=structure_name(k))
        for k in sorted(sizes, key=by_size)
    ]
    gray = {"color": "0.3", "marker": "o", "lw": 1.2, "ms": 5}
    handles += [
        Line2D([], [], **gray, ls=DASHES["area"], label="area (2D)"),
        Line2D([], [], **gray, ls=DASHES["volume"], mfc="white", label="volume (3D)"),
        Line2D([], [], **PREDICTION, ls="--", label="predicted: floor of k = 1 on the volume"),
        Line2D([], [], **PREDICTION, ls=":", label="predicting zero"),
    ]
    see_through = {**LEGEND, "framealpha": 0}  # a line passes under it
    axes.legend(handles=handles, loc="lower left", **see_through)


def draw_structure(axes: Axes, results: TheoryResults) -> list[str]:
    """Errors over predicting zero against block size at equal H; the algebra as a line of text."""
    found = {}
    for target in TARGETS:
        hidden_dim, rows = richest_width(results.of("fields", target=target))
        if len(rows) > 1:
            found[target] = hidden_dim, {k: row[:, 0] / row[:, 1] for k, row in rows.items()}
    if not found:
        return []
    names = sorted({k for _, rows in found.values() for k in rows}, key=by_size)
    for target, (hidden_dim, rows) in found.items():
        label = f"{TARGETS[target]['label']}, H = {hidden_dim}"
        places = [names.index(k) for k in rows]
        style = TARGETS[target] | {"lw": 1.0, "ls": "-", "label": label}
        draw_ranges(axes, places, rows.values(), geometric_mean, **style)
        if 1 in names and (height := diagonal_prediction(target, results)):
            axes.plot(names.index(1), height, **MARK)
    axes.plot([], [], **MARK | {"ms": 12}, label="predicted for k = 1")
    axes.axhline(1, **PREDICTION, ls=":")
    axes.set_xticks(range(len(names)), [str(name) for name in names])
    axes.set(yscale="log", xlabel="Block size k", ylabel="Validation RMSE / predicting zero")
    axes.legend(loc="center right", **LEGEND)
    return []


def richest_width(runs: Sequence[Measured]) -> tuple[int, Rows]:
    """The width that was measured with the most structures, and the errors by structure."""
    found = grouped(runs, "hidden_dim", "block_size")
    return max(found.items(), key=lambda item: (len(item[1]), item[0]), default=(0, {}))


def diagonal_prediction(target: str, results: TheoryResults) -> float | None:
    """The least error of diagonal fields over predicting zero, where the theory says one."""
    if target == "volume":
        floors = [floor.values[0] for floor in results.of("floor")]
        return float(floors[0][0] / floors[0][1]) if floors else None
    level = int(target.rpartition("_")[2])
    return 1.0 if level > VISIBLE else None


def algebra_words(results: TheoryResults) -> str:
    """From which m on the standard polynomial was exactly zero, for each block size."""
    zero_from = {}
    for run in sorted(results.of("algebra"), key=lambda run: run.config["block_size"]):
        zero = ~run.values[0].any(axis=0)
        if zero.any():
            zero_from[run.config["block_size"]] = 1 + int(np.argmax(zero))
    if not zero_from:
        return ""
    sizes, levels = (", ".join(map(str, part)) for part in (zero_from, zero_from.values()))
    return f"Σ sgn(σ) A_σ(1)…A_σ(m), k = {sizes}: exactly 0 from m = {levels} on"


def draw_kernel(axes: Axes, results: TheoryResults) -> list[str]:
    """The kernel's error against N, with the line N^(-1/2); returns the fitted exponent."""
    rows = rows_by(results.of("kernel"), "state_dim")
    if not rows:
        return []
    sizes, errors = np.array(list(rows)), [row.ravel() for row in rows.values()]
    draws = f"measured: RMS over {len(errors[0])} draws, and their range"
    style = STRUCTURES["dense"] | {"ls": "none", "label": draws}
    measured = draw_ranges(axes, sizes, errors, lambda row: np.sqrt(np.mean(row**2)), **style)
    constant = geometric_mean(measured * np.sqrt(sizes))
    label = f"predicted: {constant:.2f} N^(-1/2), the constant fitted"
    axes.plot(sizes, constant / np.sqrt(sizes), **PREDICTION, ls="--", label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(
        yscale="log", xlabel="State size N", ylabel="Error of ⟨Zˣ, Zʸ⟩/N over the kernel's RMS"
    )
    axes.legend(loc="lower left", **LEGEND)
    if len(sizes) < 2:
        return []
    return [f"signature kernel: error as N^{exponent(sizes, measured):.2f}"]


def draw_groups(axes: Axes, results: TheoryResults) -> list[str]:
    """Accuracy at the last position against block size, beside the predicted size of each group."""
    notes = []
    for shift, (name, style) in zip(SHIFTS, GROUPS.items(), strict=True):
        notes += draw_trained(axes, results, name, shift)
        for run in results.of("exact", group=name):
            accuracy, margin = run.values[0].T
            size, length = run.details["block_size"], run.config["length"]
            axes.axvline(size + shift, **PREDICTION | {"color": style["color"]}, ls=":")
            star = style | {"marker": "*", "ms": 11, "ls": "none", "mec": "black", "mew": 0.5}
            axes.plot(size + shift, accuracy.min(), **star)
            notes.append(
                f"{name}, untrained, length {length:,}: accuracy {accuracy.min():.4f}, smallest "
                f"margin {margin.min():.4g} ({run.details['exact_margin']:.4g} without rounding)"
            )
    if not axes.has_data():
        return []
    axes.plot([], [], ls=":", **PREDICTION, label="predicted: largest block of the representation")
    axes.plot([], [], marker="*", ls="none", ms=9, color="0.4", label="untrained, very long words")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="Block size k", ylabel="Accuracy at the last position")
    axes.set(ylim=(-0.03, 1.5), yticks=np.linspace(0, 1, 6))  # room for the legend above
    axes.legend(loc="upper left", ncols=2, columnspacing=1, **LEGEND)
    return notes


def draw_trained(axes: Axes, results: TheoryResults, name: str, shift: float) -> list[str]:
    """What was learned of a group at the greatest length; returns the accuracies, in words."""
    length = max((run.config["length"] for run in results.of("trained", group=name)), default=0)
    found = rows_by(results.of("trained", group=name, length=length), "block_size", ACCURACIES)
    if not found:
        return []
    style = GROUPS[name] | {"lw": 1.0, "label": f"{name}, trained, L = {length}"}
    rows = [accuracies[:, -1] for accuracies in found.values()]
    means = draw_ranges(axes, [size + shift for size in found], rows, np.mean, **style)
    return [
        f"{name}, trained at {length}, k = {k}: last position {mean:.4f} on average, from "
        f"{min(row):.4f} to {max(row):.4f} in {len(row)} runs"
        for k, mean, row in zip(found, means, rows, strict=True)
    ]


def draw_lengths(results: TheoryResults) -> tuple[Figure | None, list[str]]:
    """Accuracy against position of models trained at one length, where there are any.

    Also returns the accuracy at some positions, for each structure: median and range over runs.
    """
    tasks = defaultdict(list)
    for run in results.of("lengths"):
        tasks[tuple(run.config[name] for name in ("length", "test_length", "group"))].append(run)
    if not tasks:
        return None, []
    runs = tasks[max(tasks)]  # those of the greatest lengths; others are not averaged with them
    figure, words = Figure(figsize=LENGTHS_SIZE), []
    axes = figure.subplots()
    for size, rows in rows_by(runs, "block_size", ACCURACIES).items():
        median, low, high = np.median(rows, axis=0), rows.min(axis=0), rows.max(axis=0)
        positions = 1 + np.arange(len(median))
        color = STRUCTURES.get(size, OTHER_STRUCTURE)["color"]
        label = f"{structure_name(size)}, {len(rows)} runs"
        axes.plot(positions, median, color=color, lw=1.5, label=label)
        axes.fill_between(positions, low, high, color=color, alpha=0.15)
        texts = [
            f"{median[p - 1]:.3f} [{low[p - 1]:.3f}, {high[p - 1]:.3f}] at {p}"
            for p in POSITIONS
            if p <= len(median)
        ]
        words.append(f"lengths, {structure_name(size)}: {'; '.join(texts)}")
    config = runs[0].config
    axes.axvline(config["length"], **PREDICTION, ls="--", label="trained up to here")
    axes.axhline(1 / runs[0].details["order"], **PREDICTION, ls=":", label="guessing")
    axes.set(xscale="log", xlabel="Position", ylabel="Accuracy", ylim=(0, 1.03))
    axes.set_xlim(1, positions[-1])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(f"{config['group']}: median over runs, and their range", fontsize=10)
    axes.grid(alpha=0.25, lw=0.5)
    axes.legend(loc="lower left", **LEGEND)
    figure.subplots_adjust(**LENGTHS_MARGINS)
    return figure, words


PANELS: dict[str, Callable[[Axes, TheoryResults], list[str]]] = {
    "Width: area and volume by random fields": draw_width,
    "Structure: what blocks of size k see": draw_structure,
    "Kernel: random states tend to the signature kernel": draw_kernel,
    "Groups: the smallest block that solves the word problem": draw_groups,
}


def draw_figure(results: TheoryResults) -> tuple[Figure, list[str]]:
    """All panels, and what was fitted, in words. A part without results is said to be missing."""
    figure = Figure(figsize=FIGURE_SIZE)
    notes = []
    for axes, (title, draw) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        notes += draw(axes, results)
        axes.set_title(title, fontsize=10)
        if axes.has_data():
            axes.grid(alpha=0.25, lw=0.5)
        else:
            axes.text(0.5, 0.5, "no results", **NOTE, transform=axes.transAxes, ha="center")
            axes.set(xticks=[], yticks=[])
            notes.append(f"left out, no usable results: {title.partition(':')[0].lower()}")
    if words := algebra_words(results):
        figure.axes[1].text(
            0.98, 0.03, words, **NOTE, transform=figure.axes[1].transAxes, ha="right"
        )
        notes.append(words)
    figure.subplots_adjust(**MARGINS, **SPACES)
    return figure, notes
