import numpy as np
import pytest
from matplotlib.colors import to_rgba

from a5_runs import (
    LENGTHS,
    PUBLISHED,
    TABLE,
    curve,
    found_in,
    found_of,
    legend,
    lines_of,
)
from benchmarks.released_files import write_a5_files
from verdict import draw_1, draw_2, look
from verdict.results import LINEAR_CDE


def test_figure_2_has_the_papers_axes_levels_lines_and_order(tmp_path):
    write_a5_files(tmp_path, PUBLISHED)
    figure = draw_2.draw_figure(found_in(tmp_path), None)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "sequence length",
        "minimum # blocks required",
    )
    assert legend(figure) == ["Mamba", "S4", "Transformer", "RNN", "Linear CDE"]
    assert axes.get_xticks().tolist() == LENGTHS
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["1", "2", "3", "4"]
    bands = [(patch.get_y(), patch.get_y() + patch.get_height()) for patch in axes.patches]
    assert [int(low + 0.5) for low, _ in bands] == [1, 2, 3, 4]
    for model, line in lines_of(figure).items():
        blocks = [float("nan") if n is None else n for n in TABLE["models"][model]]
        heights = line.get_ydata() - draw_2.OFFSETS[model]
        assert np.allclose(heights, blocks, equal_nan=True)
        inside = [any(low < y < high for low, high in bands) for y in line.get_ydata() if y == y]
        assert all(inside)
    assert len(set(draw_2.OFFSETS.values())) == 5
    assert list(draw_2.OFFSETS.values()) == sorted(draw_2.OFFSETS.values())


def test_missing_lengths_break_a_line_and_show_in_its_label():
    figure = draw_2.draw_figure(found_of(curve("RNN", 1, 3), curve("RNN", 1, 5)), None)
    assert legend(figure) == ["RNN (2 of 14 lengths)"]
    drawn = lines_of(figure)["RNN (2 of 14 lengths)"].get_ydata()
    assert np.isnan(drawn).tolist() == [False, True, False] + [True] * 11


def test_upper_bounds_are_hollow_and_explained():
    found = found_of(curve("S4", 1, 3), curve("S4", 3, 4))
    figure = draw_2.draw_figure(found, None)
    (hollow,) = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert (hollow.get_xdata(), hollow.get_ydata()) == ([4], [3 + draw_2.OFFSETS["S4"]])
    assert draw_2.BOUND_LABEL in legend(figure)


def test_the_overlay_is_the_papers_table_thin_and_labelled():
    figure = draw_2.draw_figure(found_of(curve(LINEAR_CDE, 1, 3)), TABLE)
    drawn = lines_of(figure)
    ours = drawn.pop("Linear CDE (1 of 14 lengths)")
    assert list(drawn) == [f"{model}, paper" for model in draw_2.MODELS]
    for model in draw_2.MODELS:
        line = drawn[f"{model}, paper"]
        blocks = [number for number in TABLE["models"][model] if number]
        heights = line.get_ydata()[: len(blocks)]
        assert np.allclose(heights, np.add(blocks, draw_2.OFFSETS[model] + 0.05))
        assert line.get_linewidth() < ours.get_linewidth()


@pytest.mark.parametrize("overlay", [None, TABLE])
def test_the_legend_lies_inside_the_figure_and_above_the_axes(overlay):
    runs = [curve(model, 1, 3, hidden_dim=8) for model in draw_2.MODELS]
    figure = draw_2.draw_figure(found_of(*runs, curve("Transformer", 2, 5)), overlay)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    assert box.y0 >= figure.axes[0].get_window_extent().y1


def test_a_model_has_one_colour_and_marker_everywhere():
    for (model, depth, nonlinear), style in draw_1.STYLES.items():
        assert style["marker"] == look.MODEL_STYLES[model]["marker"]
        if (depth, nonlinear) == (2, False):
            assert style["color"] == look.MODEL_STYLES[model]["color"]
    assert look.MODEL_STYLES[LINEAR_CDE]["color"] == draw_1.LCDE_COLOR
    styles = look.MODEL_STYLES.values()
    assert len({s["marker"] for s in styles}) == len({s["color"] for s in styles}) == 5


def test_curves_have_a_panel_per_model_and_a_line_per_length_and_depth(tmp_path):
    write_a5_files(tmp_path, PUBLISHED)
    found = found_in(tmp_path)
    figure = draw_2.draw_curves(found, 0.9)
    assert [axes.get_title() for axes in figure.axes] == list(draw_2.MODELS)
    s4 = figure.axes[1]
    lines = [line for line in s4.lines if len(line.get_xdata()) > 2]
    assert len(lines) == len([key for key in found.trials if key[0] == "S4"])
    assert {line.get_linestyle() for line in lines} >= {"-", "--", "-."}
    assert s4.get_xlim()[1] > 990000
    assert 20000 < figure.axes[4].get_xlim()[1] < 21000
    assert [f"length {n}" for n in LENGTHS] == legend(figure)[:14]
    assert legend(figure)[14:] == [
        "1 block",
        "2 blocks",
        "3 blocks",
        "4 blocks",
        "solved above 0.9",
    ]


@pytest.mark.parametrize("models", [1, 2, 3, 5])
def test_the_curves_legend_lies_inside_the_figure_and_above_the_panels(models):
    runs = [curve(model, 1, length) for model in draw_2.MODELS[:models] for length in LENGTHS]
    figure = draw_2.draw_curves(found_of(*runs), 0.9)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    assert box.y0 >= max(axes.title.get_window_extent().y1 for axes in figure.axes)


def test_the_shades_of_lengths_get_lighter_so_that_they_differ_in_grey():
    found = found_of(*(curve(LINEAR_CDE, 1, length) for length in LENGTHS))
    figure = draw_2.draw_curves(found, 0.9)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2][:-1]
    greys = [np.dot(to_rgba(line.get_color())[:3], (0.299, 0.587, 0.114)) for line in lines]
    assert len(greys) == 14
    assert (np.diff(greys) > 0).all()
