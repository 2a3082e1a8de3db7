import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from harness.file_names import ToyCurveKey
from verdict import draw_1
from verdict.results import ToyCurve, ToyResults, ToyScore, published_results

PUBLISHED = published_results()["figure_1"]
ZERO = PUBLISHED["predicting_zero"]["rmse"]
SETTINGS = PUBLISHED["sequence_models"]["settings"]


def curve(model="Mamba", depth=2, nonlinear=True, input_dim=2, run=0, records=100, **settings):
    chosen = SETTINGS | settings
    key = ToyCurveKey(
        model, depth, nonlinear, input_dim, chosen["learning_rate"], chosen["hidden_dim"], run
    )
    steps = np.arange(records) * 10000.0
    return ToyCurve(key, steps, np.full(records, 0.01 * (run + 1)))


def whole_figure() -> ToyResults:
    curves = [
        curve(*configuration, input_dim, run)
        for configuration in draw_1.STYLES
        for input_dim in (2, 3)
        for run in range(5)
    ]
    return ToyResults(scores(), curves)


def scores(**config) -> list[ToyScore]:
    return [ToyScore(d, run, (run + 1) * 1e-6, config) for d in (2, 3) for run in range(5)]


def draw(results: ToyResults, overlay: bool = False):
    lines, notes = draw_1.select_lines(results, SETTINGS)
    return draw_1.draw_figure(results, lines, ZERO, PUBLISHED, overlay), notes


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def line(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def crosses(axes) -> list:
    return [line for line in axes.lines if line.get_marker() == "x"]


def test_panels_axes_and_lines_are_those_of_figure_1():
    figure, notes = draw(whole_figure())
    assert [axes.get_title() for axes in figure.axes] == ["Area (2D)", "Volume (3D)"]
    for axes in figure.axes:
        assert axes.get_yscale() == "log"
        assert axes.get_ylim() == (1e-4, 0.15)
        assert axes.get_xlim()[1] >= 990000
        assert not crosses(axes)
    assert legend(figure) == [
        "Mamba, depth 1",
        "Mamba, depth 2",
        "Mamba, depth 2, nonlinear",
        "S4, depth 1",
        "S4, depth 2",
        "S4, depth 2, nonlinear",
        "predicting zero",
        "random Linear CDE",
    ]
    assert notes == []


def test_a_line_is_the_mean_and_its_band_the_range_over_runs():
    curves = [curve(run=run) for run in (0, 1, 4)]
    _, mean, low, high = draw_1.summarise(curves)
    assert np.allclose(mean, (0.01 + 0.02 + 0.05) / 3)
    assert np.allclose(low, 0.01)
    assert np.allclose(high, 0.05)
    figure, _ = draw(ToyResults(curves=curves))
    drawn = line(figure.axes[0], "Mamba, depth 2, nonlinear")
    assert np.array_equal(drawn.get_ydata(), mean)
    (band,) = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.01, 0.05)


def test_the_linear_cde_is_drawn_as_root_of_each_runs_mse():
    figure, _ = draw(ToyResults(scores()))
    expected = np.mean(np.sqrt([1e-6, 2e-6, 3e-6, 4e-6, 5e-6]))
    for axes in figure.axes:
        assert np.allclose(line(axes, "random Linear CDE").get_ydata(), expected)
        assert len(axes.patches) == 1


def test_the_legend_and_the_axis_are_sensible_with_the_linear_cde_alone():
    figure, _ = draw(ToyResults(scores()))
    assert legend(figure) == ["predicting zero", "random Linear CDE"]
    assert all(axes.get_xlim()[1] >= 990000 for axes in figure.axes)


def test_a_linear_cde_below_the_papers_axis_stays_visible():
    figure, _ = draw(ToyResults([ToyScore(2, 0, 1e-10, {})]))
    assert figure.axes[0].get_ylim()[0] < 1e-5


def test_single_runs_have_no_band():
    figure, _ = draw(ToyResults([ToyScore(2, 0, 1e-6, {})], [curve()]))
    assert not figure.axes[0].patches
    assert not figure.axes[0].collections


def test_unfinished_runs_are_drawn_as_far_as_they_go_and_marked():
    figure, _ = draw(ToyResults(curves=[curve(run=0, records=100), curve(run=1, records=7)]))
    drawn = line(figure.axes[0], "Mamba, depth 2, nonlinear")
    assert drawn.get_xdata()[-1] == 990000
    assert np.allclose(drawn.get_ydata()[:7], 0.015)
    assert np.allclose(drawn.get_ydata()[7:], 0.01)
    (cross,) = crosses(figure.axes[0])
    assert (cross.get_xdata(), cross.get_ydata()) == ([60000], [pytest.approx(0.015)])
    assert draw_1.END_LABEL in legend(figure)


def published_curve(model, depth, nonlinear, input_dim) -> dict:
    wanted = {"model": model, "depth": depth, "nonlinear": nonlinear, "input_dim": input_dim}
    curves = PUBLISHED["sequence_models"]["curves"]
    return next(c["rmse"] for c in curves if wanted.items() <= c.items())


def bands(axes) -> list[tuple[float, float]]:
    """The least and greatest height of every shaded band."""
    heights = [c.get_paths()[0].vertices[:, 1] for c in axes.collections]
    return [(h.min(), h.max()) for h in heights]


@pytest.mark.parametrize("records", [2, 100], ids=["logarithmic", "linear"])
def test_the_overlay_is_the_papers_curves_thin_with_their_ranges(records):
    figure, _ = draw(ToyResults(scores(), [curve(records=records)]), overlay=True)
    axes = figure.axes[0]
    for configuration in draw_1.STYLES:
        values = {
            step: value
            for step, value in published_curve(*configuration, 2).items()
            if step > 0 or records == 100
        }
        drawn = line(axes, f"_{draw_1.configuration_label(*configuration)}, paper")
        means = {step: value["mean"] for step, value in values.items()}
        assert dict(zip(*drawn.get_data(), strict=True)) == means
        ranges = [value for value in values.values() if "min" in value]
        least, greatest = min(v["min"] for v in ranges), max(v["max"] for v in ranges)
        assert any(np.allclose(band, (least, greatest)) for band in bands(axes))
    ours = line(axes, "Mamba, depth 2, nonlinear")
    paper = line(axes, "_Mamba, depth 2, nonlinear, paper")
    assert paper.get_linewidth() < ours.get_linewidth()
    assert paper.get_color() == ours.get_color()
    expected = np.mean(np.sqrt(PUBLISHED["linear_cde"]["mse"][2]))
    assert np.allclose(line(axes, "_random Linear CDE, paper").get_ydata(), expected)
    assert len(legend(figure)) == 9
    assert legend(figure)[-1] == draw_1.PAPER_LABEL
    assert not any(
        line.get_label().endswith("paper") for line in draw(whole_figure())[0].axes[0].lines
    )


@pytest.mark.parametrize("input_dim", [2, 3])
def test_runs_of_a_tenth_of_the_papers_steps_stand_on_its_whole_logarithmic_axis(input_dim):
    short = [curve(input_dim=d, records=10) for d in (2, 3)]
    figure, _ = draw(ToyResults(scores(), short), overlay=True)
    axes = figure.axes[input_dim - 2]
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] < 1000 and axes.get_xlim()[1] > 1e6
    ours = line(axes, "Mamba, depth 2, nonlinear")
    assert ours.get_xdata().tolist() == [10000.0 * n for n in range(1, 10)]
    last = line(axes, "_Mamba, depth 2, nonlinear, paper")
    assert (last.get_xdata()[-1], last.get_ydata()[-1]) == (
        990000,
        published_curve("Mamba", 2, True, input_dim)[990000]["mean"],
    )
    assert not crosses(axes)


def test_on_the_logarithmic_axis_a_cross_marks_a_run_that_ends_before_the_others():
    figure, _ = draw(ToyResults(curves=[curve(run=0, records=3), curve(run=1, records=2)]))
    assert [cross.get_xdata() for cross in crosses(figure.axes[0])] == [[10000]]


def test_runs_beyond_a_tenth_of_the_papers_steps_or_without_a_step_have_a_linear_axis():
    for records in (1, 11):
        figure, _ = draw(ToyResults(curves=[curve(records=records)]))
        assert figure.axes[0].get_xscale() == "linear"


@pytest.mark.parametrize("overlay", [False, True])
def test_the_legend_lies_inside_the_figure_and_above_the_panels(overlay):
    figure, _ = draw(whole_figure(), overlay)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    titles = [panel.title.get_window_extent() for panel in figure.axes]
    assert box.y0 >= max(title.y1 for title in titles)
    assert max(title.x1 for title in titles) <= figure.bbox.x1


def test_the_x_axis_fits_the_runs():
    figure, _ = draw(ToyResults(scores(), [curve(records=12)]))
    assert 110000 < figure.axes[1].get_xlim()[1] < 115000
    figure, _ = draw(ToyResults(curves=[ToyCurve(curve().key, np.array([0, 5]), np.ones(2))]))
    assert figure.axes[0].get_xlim()[0] < 5


def test_the_papers_settings_are_preferred_and_others_are_never_averaged_in():
    other = curve(hidden_dim=32, run=3)
    figure, notes = draw(ToyResults(curves=[curve(run=0), other]))
    drawn = line(figure.axes[0], "Mamba, depth 2, nonlinear")
    assert np.allclose(drawn.get_ydata(), 0.01)
    assert len(notes) == 1
    assert "left out" in notes[0]
    assert "hidden_dim 32, paper 256" in notes[0]


def test_other_settings_are_marked_in_the_legend():
    figure, notes = draw(ToyResults(scores(hidden_dim=8), [curve(hidden_dim=32)]))
    assert "Mamba, depth 2, nonlinear *" in legend(figure)
    assert "random Linear CDE *" in legend(figure)
    assert draw_1.OTHER_SETTINGS_LABEL in legend(figure)
    assert "drawn" in notes[0]
    linear_cde = draw_1.linear_cde_notes(scores(hidden_dim=8), {"hidden_dim": 256})
    assert ["run 0, 1, 2, 3, 4: hidden_dim 8, paper 256" in note for note in linear_cde] == [
        True
    ] * 2


def test_what_figure_1_does_not_show_is_named_and_left_out():
    figure, notes = draw(ToyResults(curves=[curve(), curve(model="S5")]))
    assert notes == ["not part of Figure 1, left out: S5, depth 2, nonlinear (2D)"]
    assert not any("S5" in label for label in legend(figure))


def test_missing_configurations_are_named_with_their_panels():
    results = ToyResults(scores(), [curve(input_dim=3)])
    lines, _ = draw_1.select_lines(results, SETTINGS)
    missing = draw_1.missing_configurations(results, lines)
    assert "Mamba, depth 2, nonlinear (2D)" in missing
    assert "S4, depth 1 (2D, 3D)" in missing
    assert len(missing) == 6


def test_lines_of_one_model_differ_without_colour():
    for model in ("Mamba", "S4"):
        styles = [style for key, style in draw_1.STYLES.items() if key[0] == model]
        assert len({(str(style["ls"]), style.get("mfc")) for style in styles}) == 3
    markers = {key[0]: style["marker"] for key, style in draw_1.STYLES.items()}
    assert markers["Mamba"] != markers["S4"]
