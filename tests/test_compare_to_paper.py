import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import compare_to_paper
import plot_A5
import plot_toy
from a5_runs import PUBLISHED as FIGURE_2
from a5_runs import curve as curve_of
from benchmarks.released_files import write_released_files
from harness.file_names import A5ScoreKey, ToyScoreKey
from harness.paths import A5_RESULTS, ROOT
from recorded import write_record
from toy_runs import FIGURE_1, curve, score, write_results
from verdict import figure_1, figure_2, tables
from verdict.results import LINEAR_CDE, A5Results, ToyResults
from verdict.rows import AGREES, DISAGREES, NOT_RUN


def write_a5_lcde(results_dir: Path, length=3, best=0.99, last=10000, config=None) -> Path:
    folder = results_dir / A5_RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    steps, accuracies = A5ScoreKey(length).paths(folder)
    np.save(steps, np.array([0, last]))
    np.save(accuracies, np.array([0.02, best]))
    if config is not None:
        write_record([steps, accuracies], {"length": length, **config})
    return accuracies


def run_from(folder: Path, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "compare_to_paper.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_released_files_agree_with_every_published_number(tmp_path):
    write_released_files(tmp_path)
    done = run_from("/", "--results-dir", tmp_path, "--strict")
    assert (done.returncode, done.stderr) == (0, "")
    assert " ".join(done.stdout.split()).endswith("Yes: of the paper's 100 numbers, 100 agree.")


def test_json_is_all_of_stdout_and_names_every_key(tmp_path):
    folder = write_results(tmp_path / "results", ToyResults([score(), score(run=1)]))
    broken = folder / ToyScoreKey(2, 1).names[0]
    broken.write_bytes(broken.read_bytes()[:-1])
    done = run_from(tmp_path, "--results-dir", "results", "--format", "json")
    rows = json.loads(done.stdout)
    common = {"figure", "model", "depth", "quantity", "step", "ours", "paper", "verdict", "note"}
    own = {1: {"nonlinear", "input_dim", "run", "so_far"}, 2: {"length", "state", "paper_state"}}
    assert all(common | own[row["figure"]] <= row.keys() for row in rows)
    assert [row["verdict"] for row in rows[:3]] == [AGREES, NOT_RUN, NOT_RUN]
    assert "not a readable .npy file" in rows[1]["note"]
    assert done.returncode == 0
    assert f"results/outputs_toy/{broken.name}" in done.stderr


def test_runs_in_tf32_are_found_in_their_own_folder_and_an_unusable_one_is_named(tmp_path, capsys):
    write_results(tmp_path, ToyResults([score(0.65, matmul_precision="float32")]))
    tf32 = ToyResults([score(run=r, matmul_precision="tf32") for r in (0, 1)])
    broken = write_results(tmp_path / "tf32", tf32) / ToyScoreKey(2, 1).names[0]
    broken.write_bytes(broken.read_bytes()[:-1])
    options = ["--results-dir", str(tmp_path), "--strict"]
    assert compare_to_paper.main([*options, "--format", "json"]) == 1
    out, err = capsys.readouterr()
    assert "in TF32 4.1492e-08, +0.0%: agrees" in json.loads(out)[0]["note"]
    assert str(broken) in err


def test_json_rows_are_the_rows_with_their_figure():
    rows = figure_1.compare(ToyResults([score()], [curve({990000: 0.02})]), FIGURE_1)
    rows += figure_2.compare(A5Results([curve_of("RNN", 1, 3), curve_of("LSTM", 1, 3)]), FIGURE_2)
    expected = [{"figure": 1 + (row.quantity in ("minimum blocks", "accuracy"))} for row in rows]
    expected = [figure | asdict(row) for figure, row in zip(expected, rows, strict=True)]
    assert json.loads(tables.as_json(rows)) == expected


def test_piped_text_is_not_cut_and_ends_with_the_answer(tmp_path):
    results = ToyResults([score(0.65), score(hidden_dim=8, num_paths=10, seed=1, run=1)])
    write_results(tmp_path, results)
    done = run_from("/", "--results-dir", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hidden_dim 8, paper 256; num_paths 10, paper 100000; seed 1, paper 2345" in done.stdout
    assert "Mamba, depth 2, nonlinear  2D" in done.stdout
    assert "better outside the band" in done.stdout
    assert "…" not in done.stdout
    flowing = " ".join(done.stdout.split())
    assert flowing.endswith(
        "Does this agree with the paper? As far as it was run, it agrees or is better: of the "
        "paper's 100 numbers, 2 are better than its band, 1 is not comparable and 97 were not run."
    )


def test_markdown_rows_have_as_many_cells_as_their_headings(capsys, tmp_path):
    write_results(tmp_path, ToyResults([score()], [curve({0: 0.2, 10000: 0.05})]))
    write_a5_lcde(tmp_path, config=FIGURE_2["linear_cde"]["settings"] | {"eval_interval": 1000})
    assert compare_to_paper.main(["--results-dir", str(tmp_path), "--format", "markdown"]) == 0
    output = capsys.readouterr().out
    assert output.count("| --- |") >= 3
    assert (
        "| Linear CDE | 3 | 1 | 1 | +0 | 0.9900 at step 10,000 | 0.9975 or more at step 10,000 "
        "| agrees | eval_interval 1000, paper 10000 |"
    ) in output
    for block in output.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


@pytest.mark.parametrize("odd", ['{"config": {}, "files": {}, "wall_time_s": "3 min"}', "[" * 9999])
@pytest.mark.parametrize("options", [["--format", "html"], ["--format", "markdown"], []])
def test_an_odd_record_is_a_named_warning_and_the_rest_goes_on(tmp_path, capsys, odd, options):
    folder = write_results(tmp_path, ToyResults([score(), score(run=1)]))
    record = (folder / ToyScoreKey(2, 0).names[0]).with_suffix(".json")
    record.write_text(odd)
    assert compare_to_paper.main(["--results-dir", str(tmp_path), *options]) == 0
    output = capsys.readouterr()
    assert output.err.startswith(f"warning: skipped {record}: not a usable run record (")
    assert "2 agree, 1 is not comparable" in " ".join(output.out.split())


@pytest.mark.parametrize(
    ("factor", "code"), [(1.0, 0), (0.5, 0), (1.5, 1)], ids=["agrees", "better", "worse"]
)
def test_strict_fails_for_worse_alone(tmp_path, capsys, factor, code):
    write_results(tmp_path, ToyResults([score(factor)]))
    assert compare_to_paper.main(["--results-dir", str(tmp_path)]) == 0
    assert compare_to_paper.main(["--results-dir", str(tmp_path), "--strict"]) == code


def test_strict_fails_for_an_unusable_file(tmp_path, capsys):
    folder = write_results(tmp_path, ToyResults([score()]))
    (folder / ToyScoreKey(3, 0).names[0]).write_bytes(b"")
    assert compare_to_paper.main(["--results-dir", str(tmp_path), "--strict"]) == 1
    assert ToyScoreKey(3, 0).names[0] in capsys.readouterr().err


@pytest.mark.parametrize(("best", "code"), [(0.95, 0), (0.5, 1)], ids=["agrees", "disagrees"])
def test_strict_fails_for_a_number_of_blocks_that_disagrees(tmp_path, capsys, best, code):
    write_a5_lcde(tmp_path, best=best, last=990000)
    arguments = ["--results-dir", str(tmp_path), "--strict", "--format", "json"]
    assert compare_to_paper.main(arguments) == code
    rows = json.loads(capsys.readouterr().out)
    row = next(r for r in rows if (r["model"], r.get("length")) == (LINEAR_CDE, 3))
    assert row["verdict"] == (AGREES, DISAGREES)[code]


def test_a_corrupt_a5_file_is_named_and_strict_fails(tmp_path, capsys):
    broken = write_a5_lcde(tmp_path)
    broken.write_bytes(b"")
    assert compare_to_paper.main(["--results-dir", str(tmp_path)]) == 0
    assert f"warning: skipped {broken}: " in capsys.readouterr().err
    assert compare_to_paper.main(["--results-dir", str(tmp_path), "--strict"]) == 1


def test_bad_arguments_exit_2_with_nothing_on_stdout(tmp_path):
    done = run_from(tmp_path, "--results-dir", "nowhere", "--format", "json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].endswith("--results-dir: no such folder: nowhere")


@pytest.mark.parametrize("figure", [1, 2])
def test_a_file_in_the_place_of_a_recorded_one_is_unverified_and_left_out(tmp_path, capsys, figure):
    if figure == 1:
        folder = write_results(tmp_path, ToyResults([score(seed=2345)], [curve({990000: 0.02})]))
        exchanged = folder / ToyScoreKey(2, 0).names[0]
        np.save(exchanged, np.array(score().mse * 1.01))
        wanted = {"model": LINEAR_CDE, "input_dim": 2, "run": 0}
    else:
        exchanged = write_a5_lcde(tmp_path, config={"seed": 2345})
        np.save(exchanged, np.array([0.02, 0.98]))
        wanted = {"model": LINEAR_CDE, "length": 3}
    arguments = ["--results-dir", str(tmp_path), "--format", "json"]
    assert compare_to_paper.main(arguments) == 0
    output = capsys.readouterr()
    rows = [r for r in json.loads(output.out) if wanted.items() <= r.items()]
    assert [(r["verdict"], r["ours"]) for r in rows] == [("not comparable", None)]
    assert "unverified: not the file that its record describes" in rows[0]["note"]
    assert output.err == (
        f"warning: skipped {exchanged}: unverified: not the file that its record describes\n"
    )
    assert compare_to_paper.main([*arguments, "--strict"]) == 1
    door = (plot_toy, plot_A5)[figure - 1]
    door.main(["--results-dir", str(tmp_path), "--strict"])
    assert "unverified" in capsys.readouterr().err
    assert compare_to_paper.main(["--results-dir", str(tmp_path), "--format", "markdown"]) == 0
    assert "| unverified: not the file that its record describes |" in capsys.readouterr().out
