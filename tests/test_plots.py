"""The command lines of both figures, as a user runs them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import plot_A5
import plot_toy
from a5_runs import PAPER_TABLE, PUBLISHED, table_rows, write_run
from benchmarks.released_files import write_a5_files, write_toy_files
from harness.file_names import ToyCurveKey, ToyScoreKey
from harness.paths import ROOT, TOY_RESULTS
from verdict import command_line
from verdict.results import LINEAR_CDE, published_results


def write_scores(results_dir: Path) -> Path:
    folder = results_dir / TOY_RESULTS
    folder.mkdir(parents=True)
    for input_dim in (2, 3):
        for run in range(5):
            np.save(folder / ToyScoreKey(input_dim, run).names[0], np.array((run + 1) * 1e-6))
    return folder / ToyScoreKey(2, 0).names[0]


def write_blocks(results_dir: Path) -> Path:
    write_run(results_dir, LINEAR_CDE, 1, 3)
    return write_run(results_dir, LINEAR_CDE, 1, 4)[1]


DOORS = {
    "toy": (plot_toy, write_scores, "rmse_subplots", "outputs_toy"),
    "A5": (plot_A5, write_blocks, "A5_plot_shaded_regions", "outputs_A5"),
}


@pytest.fixture(params=DOORS.values(), ids=DOORS)
def door(request):
    """A door, what writes results for it (returns one of its files), its figure, their folder."""
    return request.param


def run_from(folder: Path, door: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / door, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_figure_1_of_the_same_results_has_the_same_bytes_from_any_folder(tmp_path):
    write_scores(tmp_path / "results")
    arguments = ["--results-dir", str(tmp_path / "results"), "--output"]
    assert plot_toy.main([*arguments, str(tmp_path / "one.pdf")]) == 0
    done = run_from(tmp_path, "plot_toy.py", *arguments, "new/two.pdf")
    assert (done.returncode, done.stderr) == (0, "")
    assert "wrote new/two.pdf\nwrote new/two.png\n" in done.stdout
    assert "left out, no usable results: Mamba, depth 1 (2D, 3D); " in done.stdout
    for suffix in (".pdf", ".png"):
        one, two = tmp_path / f"one{suffix}", tmp_path / "new" / f"two{suffix}"
        assert one.read_bytes() == two.read_bytes()
    pdf = (tmp_path / "one.pdf").read_bytes()
    assert b"CreationDate" not in pdf
    assert re.search(rb"/Type3\b", pdf) is None
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["two.pdf", "two.png"]


def test_the_released_toy_files_are_drawn_without_a_warning(tmp_path):
    write_toy_files(tmp_path, published_results()["figure_1"])
    arguments = ["--results-dir", ".", "--strict", "--overlay", "published"]
    done = run_from(tmp_path, "plot_toy.py", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "left out, no usable results" not in done.stdout
    assert "wrote rmse_subplots.pdf" in done.stdout


def test_figure_2_prints_the_table_and_writes_the_same_bytes_from_any_folder(tmp_path):
    write_a5_files(tmp_path / "results", PUBLISHED, every_depth=True)
    options = ["--table", "--curves", "--overlay", "published", "--strict"]
    arguments = [*options, "--results-dir", str(tmp_path / "results"), "--output"]
    done = run_from(tmp_path, "plot_A5.py", *arguments, "new/two.pdf")
    assert (done.returncode, done.stderr) == (0, "")
    assert table_rows(done.stdout)[2:] == PAPER_TABLE.split("\n")[1:-1]
    assert "wrote new/two_curves.png" in done.stdout
    assert plot_A5.main([*arguments, str(tmp_path / "one.pdf")]) == 0
    for name in ("{}.pdf", "{}.png", "{}_curves.pdf", "{}_curves.png"):
        one, two = tmp_path / name.format("one"), tmp_path / "new" / name.format("two")
        assert one.read_bytes() == two.read_bytes()
    pdf = (tmp_path / "one.pdf").read_bytes()
    assert b"CreationDate" not in pdf
    assert re.search(rb"/Type3\b", pdf) is None


def test_the_figures_default_place_is_in_the_results(tmp_path, door):
    module, write, name, folder = door
    write(tmp_path)
    assert module.main(["--results-dir", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [folder, f"{name}.pdf", f"{name}.png"]
    )


def test_an_empty_folder_gives_a_message_and_no_picture(tmp_path, capsys, door):
    module, _, _, folder = door
    assert module.main(["--results-dir", str(tmp_path)]) == 1
    kind = folder.removeprefix("outputs_")
    assert capsys.readouterr().err == f"nothing to draw: no {kind} results in {tmp_path}\n"
    assert list(tmp_path.iterdir()) == []


def test_results_that_the_figure_leaves_out_are_named_where_nothing_else_is_there(tmp_path, capsys):
    key = ToyCurveKey("S5", 2, True, 2, 1e-4, 256, 0)
    (tmp_path / TOY_RESULTS).mkdir()
    for path in key.paths(tmp_path / TOY_RESULTS):
        np.save(path, np.array([1.0, 1000.0]))
    assert plot_toy.main(["--results-dir", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert "not part of Figure 1, left out: S5, depth 2, nonlinear (2D)" in output.out
    assert "nothing to draw" in output.err


def test_runs_that_solve_nothing_give_curves_but_no_empty_figure(tmp_path, capsys):
    write_run(tmp_path, "S4", 1, 3, accs=(0.02, 0.5))
    assert plot_A5.main(["--results-dir", str(tmp_path), "--curves", "--table"]) == 1
    output = capsys.readouterr()
    assert "no run's accuracy exceeds 0.9" in output.err
    assert "| S4 | … |" in output.out
    assert sorted(path.name for path in tmp_path.glob("*.pdf")) == [
        "A5_plot_shaded_regions_curves.pdf"
    ]


@pytest.mark.parametrize("odd", ["a result", "a record"])
def test_an_odd_file_is_named_the_rest_drawn_and_strict_fails(tmp_path, capsys, door, odd):
    module, write, name, _ = door
    broken = write(tmp_path)
    if odd == "a result":
        broken.write_bytes(broken.read_bytes()[:-1])
    else:
        broken = broken.with_name("odd.json")
        broken.mkdir()
    assert module.main(["--results-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().err.startswith(f"warning: skipped {broken}: ")
    assert (tmp_path / f"{name}.png").exists()
    assert module.main(["--results-dir", str(tmp_path), "--strict"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results-dir", "nowhere"], "--results-dir: no such folder: nowhere"),
        (["--output", "a.png"], "--output must end in .pdf, not 'a.png'"),
        (["--output", "file/a.pdf"], "cannot write"),
        (["--watch", "0"], "argument --watch: 0 is not a positive number of seconds"),
        (["--watch", "soon"], "argument --watch: soon is not a positive number of seconds"),
        (["--overlay", "ours"], "argument --overlay: invalid choice: 'ours'"),
    ],
)
def test_bad_arguments_exit_2_with_one_line_that_names_them(
    tmp_path, monkeypatch, capsys, door, arguments, message
):
    module, write, _, folder = door
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    Path("file").touch()
    with pytest.raises(SystemExit, match="2"):
        module.main(["--results-dir", ".", *arguments])
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", folder]


def test_help_has_examples(door):
    module, *_ = door
    assert module.build_parser().format_help().count(f"python {module.__name__}.py") >= 3


@pytest.mark.processes
@pytest.mark.parametrize("script", ["plot_A5.py", "plot_toy.py"])
def test_watch_draws_again_when_results_change_until_ctrl_c(tmp_path, script):
    write_run(tmp_path, LINEAR_CDE, 1, 3)
    toy = tmp_path / "outputs_toy"
    toy.mkdir()
    np.save(toy / "lin_cde_mse_2_run_0.npy", np.array(1e-8))
    command = [ROOT / script, "--results-dir", tmp_path, "--watch", "0.1"]
    pipes = {"stdout": subprocess.PIPE, "text": True}
    watcher = subprocess.Popen([sys.executable, *command], cwd=ROOT, **pipes)
    try:
        assert "wrote" in watcher.stdout.readline()
        assert "wrote" in watcher.stdout.readline()
        png = next(tmp_path.glob("*.png"))
        first = png.read_bytes()
        np.save(toy / "lin_cde_mse_2_run_1.npy", np.array(1e-6))
        write_run(tmp_path, LINEAR_CDE, 1, 4)
        while png.read_bytes() == first:
            assert watcher.poll() is None
            time.sleep(0.1)
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait() == 0
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


def test_plots_and_comparison_import_neither_jax_nor_torch_nor_pyplot():
    code = (
        "import sys, json, plot_toy, plot_A5, compare_to_paper; "
        "print(json.dumps([m for m in ('jax', 'torch', 'matplotlib.pyplot') if m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("script", "backend"),
    [
        ("plot_toy.py", "module://matplotlib_inline.backend_inline"),
        ("compare_to_paper.py", "nonsense"),  # whose page has both figures
    ],
)
def test_a_users_matplotlib_changes_neither_success_nor_bytes(tmp_path, script, backend):
    write_scores(tmp_path / "results")
    write_blocks(tmp_path / "results")
    (tmp_path / "rc").write_text("text.usetex: True\nfont.size: 30\nsavefig.bbox: tight\n")
    options = ["--report"] if script == "compare_to_paper.py" else []
    written = []
    for variables in ({}, {"MPLBACKEND": backend, "MATPLOTLIBRC": str(tmp_path / "rc")}):
        command = [sys.executable, ROOT / script, "--results-dir", "results", *options]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | variables, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr.count(b"\n")) == (0, 2 * len(options))
        files = sorted(p for p in (tmp_path / "results").iterdir() if p.is_file())
        written.append({p.name: p.read_bytes() for p in files})
    assert len(written[0]) == 2
    assert written[0] == written[1]


@pytest.mark.parametrize("ending", ["pdf", "png"])
def test_a_figure_that_cannot_be_written_is_named_itself(
    tmp_path, monkeypatch, capsys, door, ending
):
    module, write, name, _ = door
    write(tmp_path)

    def refuse(temporary, target):
        if target.suffix == f".{ending}":
            raise PermissionError(13, "Permission denied", str(temporary))
        return replace(temporary, target)

    replace = Path.replace
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(SystemExit, match="2"):
        module.main(["--results-dir", str(tmp_path)])
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"Permission denied: '{tmp_path / name}.{ending}'" in message
    assert ".tmp" not in message
