import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgba

import plot_A5
from a5_runs import (
    LENGTHS,
    PAPER_TABLE,
    PUBLISHED,
    TABLE,
    curve,
    failure,
    found_in,
    found_of,
    legend,
    lines_of,
    table_rows,
    write_run,
)
from benchmarks.released_files import write_a5_files
from harness.file_names import LINEAR_CDE
from harness.paths import ROOT
from verdict import command_line, draw_1, draw_2, look


def run_from(folder: Path, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "plot_A5.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


# The look.


def test_the_table_tells_not_reached_from_unfinished_and_not_run():
    runs = [curve("RNN", 1, 3), curve("RNN", 1, 4, best=0.5)]
    found = found_of(*runs, *(failure("S4", depth, 3) for depth in (1, 2, 3, 4)))
    text = draw_2.markdown_table(found)
    rows = {row.split("|")[1].strip(): row.split("|")[2:5] for row in table_rows(text)}
    assert [cell.strip() for cell in rows["RNN"]] == ["1", "…", "·"]
    assert [cell.strip() for cell in rows["S4"]] == ["–", "–", "–"]
    legend_lines = [line[0] for line in text.splitlines() if line and not line.startswith("|")]
    assert legend_lines == ["–", "…", "·"]


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


# The command, as a user runs it.


def test_the_command_prints_the_table_and_writes_the_same_bytes_from_any_folder(tmp_path):
    write_a5_files(tmp_path / "results", PUBLISHED, every_depth=True)
    options = ["--table", "--curves", "--overlay", "published", "--strict"]
    arguments = [*options, "--results-dir", str(tmp_path / "results"), "--output"]
    done = run_from(tmp_path, *arguments, "new/two.pdf")
    assert (done.returncode, done.stderr) == (0, "")
    assert table_rows(done.stdout)[2:] == PAPER_TABLE.split("\n")[1:-1]
    assert "wrote new/two_curves.png" in done.stdout
    assert run_from("/", *arguments, tmp_path / "one.pdf").returncode == 0
    for name in ("{}.pdf", "{}.png", "{}_curves.pdf", "{}_curves.png"):
        one, two = tmp_path / name.format("one"), tmp_path / "new" / name.format("two")
        assert one.read_bytes() == two.read_bytes()
    pdf = (tmp_path / "one.pdf").read_bytes()
    assert b"CreationDate" not in pdf
    assert re.search(rb"/Type3\b", pdf) is None


def test_the_figures_default_place_is_in_the_results(tmp_path):
    write_run(tmp_path, LINEAR_CDE, 1, 3)
    assert plot_A5.main(["--results-dir", str(tmp_path)]) == 0
    names = sorted(path.name for path in tmp_path.glob("*.*"))
    assert names == ["A5_plot_shaded_regions.pdf", "A5_plot_shaded_regions.png"]


def test_an_empty_folder_gives_a_message_and_no_picture(tmp_path):
    done = run_from("/", "--results-dir", tmp_path, "--curves", "--table")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"nothing to draw: no A5 results in {tmp_path}\n"
    assert list(tmp_path.iterdir()) == []


def test_runs_that_solve_nothing_give_curves_but_no_empty_figure(tmp_path):
    write_run(tmp_path, "S4", 1, 3, accs=(0.02, 0.5))
    done = run_from("/", "--results-dir", tmp_path, "--curves", "--table")
    assert done.returncode == 1
    assert "no run's accuracy exceeds 0.9" in done.stderr
    assert "| S4 | … |" in done.stdout
    assert sorted(path.name for path in tmp_path.glob("*.pdf")) == [
        "A5_plot_shaded_regions_curves.pdf"
    ]


def test_a_corrupt_file_is_named_the_rest_drawn_and_strict_fails(tmp_path):
    write_run(tmp_path, LINEAR_CDE, 1, 3)
    broken = write_run(tmp_path, LINEAR_CDE, 1, 4)[1]
    broken.write_bytes(broken.read_bytes()[:-1])
    done = run_from("/", "--results-dir", tmp_path, "--table")
    assert done.returncode == 0
    assert done.stderr.startswith(f"warning: skipped {broken}: ")
    assert "| Linear CDE | 1 | · |" in done.stdout
    assert (tmp_path / "A5_plot_shaded_regions.png").exists()
    assert run_from("/", "--results-dir", tmp_path, "--strict").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results-dir", "nowhere"], "--results-dir: no such folder: nowhere"),
        (["--output", "a.png"], "--output must end in .pdf, not 'a.png'"),
        (["--watch", "0"], "argument --watch: 0 is not a positive number of seconds"),
        (["--watch", "soon"], "argument --watch: soon is not a positive number of seconds"),
        (["--overlay", "ours"], "argument --overlay: invalid choice: 'ours'"),
    ],
)
def test_bad_arguments_exit_2_with_one_line_that_names_them(tmp_path, arguments, message):
    done = run_from(tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_exits_2(tmp_path):
    write_run(tmp_path, LINEAR_CDE, 1, 3)
    (tmp_path / "file").write_text("")
    done = run_from(tmp_path, "--results-dir", ".", "--output", "file/a.pdf")
    assert done.returncode == 2
    assert "cannot write" in done.stderr.splitlines()[-1]


def test_help_has_examples():
    done = run_from("/", "--help")
    assert done.returncode == 0
    assert done.stdout.count("python plot_A5.py") >= 3


@pytest.mark.parametrize("script", ["plot_A5.py", "plot_toy.py"])
def test_watch_draws_again_when_results_change_until_ctrl_c(tmp_path, script):
    write_run(tmp_path, LINEAR_CDE, 1, 3)
    toy = tmp_path / "outputs_toy"
    toy.mkdir()
    np.save(toy / "lin_cde_mse_2_run_0.npy", np.array(1e-8))
    command = [ROOT / script, "--results-dir", tmp_path, "--watch", "0.1"]
    # A shell's background jobs ignore Ctrl-C, and so would a watcher that inherits that.
    launch = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    watcher = subprocess.Popen(
        [sys.executable, "-c", launch, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert "wrote" in watcher.stdout.readline()
        assert "wrote" in watcher.stdout.readline()
        png = next(tmp_path.glob("*.png"))
        first = png.read_bytes()
        np.save(toy / "lin_cde_mse_2_run_1.npy", np.array(1e-6))
        write_run(tmp_path, LINEAR_CDE, 1, 4)
        deadline = time.monotonic() + 30
        while png.read_bytes() == first and time.monotonic() < deadline:
            time.sleep(0.1)
        assert png.read_bytes() != first
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(30) == 0
    finally:
        watcher.kill()
        watcher.stdout.close()


def test_watch_does_nothing_while_nothing_changes(tmp_path, monkeypatch):
    codes, sleeps = [], []

    def draw():
        codes.append(7)
        return 7

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(command_line.time, "sleep", sleep)
    assert command_line.draw_and_watch(draw, tmp_path, 3.0) == 7
    assert (codes, sleeps) == ([7], [3.0] * 5)


def test_the_figure_imports_neither_jax_nor_torch_nor_pyplot():
    code = (
        "import sys, json, plot_A5; "
        "print(json.dumps([m for m in ('jax', 'torch', 'matplotlib.pyplot') if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
