import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml

import compare_to_paper
from compare_to_paper import AGREES, BETTER, NOT_COMPARABLE, NOT_RUN, PARTIAL, WORSE
from result_files import (
    PUBLISHED_RESULTS,
    REPO_ROOT,
    TOY_FOLDER,
    Problem,
    ToyCurve,
    ToyCurveKey,
    ToyResults,
    ToyScore,
    toy_lcde_name,
    toy_rmse_name,
    toy_steps_name,
)

PUBLISHED = yaml.safe_load(PUBLISHED_RESULTS.read_text())
FIGURE_1 = PUBLISHED["figure_1"]
PAPER_MSE = FIGURE_1["linear_cde"]["mse"]


def score(factor=1.0, input_dim=2, run=0, **config) -> ToyScore:
    return ToyScore(input_dim, run, PAPER_MSE[input_dim][run] * factor, config)


def curve(values, model="Mamba", depth=1, nonlinear=False, input_dim=2, run=0, hidden_dim=256):
    key = ToyCurveKey(model, depth, nonlinear, input_dim, 0.0001, hidden_dim, run)
    return ToyCurve(key, np.array(list(values), dtype=float), np.array(list(values.values())))


def rows_of(results: ToyResults, **wanted) -> list:
    rows = compare_to_paper.compare_figure_1(results, FIGURE_1)
    return [row for row in rows if all(getattr(row, k) == v for k, v in wanted.items())]


def row_of(results: ToyResults, **wanted):
    (row,) = rows_of(results, **wanted)
    return row


def write_results(results_dir: Path, results: ToyResults) -> Path:
    folder = results_dir / TOY_FOLDER
    folder.mkdir(parents=True)
    for s in results.scores:
        np.save(folder / toy_lcde_name(s.input_dim, s.run), np.array(s.mse))
    for c in results.curves:
        np.save(folder / toy_steps_name(c.key), c.steps)
        np.save(folder / toy_rmse_name(c.key), c.rmse)
    return folder


def numbers_in(value) -> list:
    if isinstance(value, dict):
        inside = [v for k, v in value.items() if k not in ("source", "model", "solver")]
        return [number for v in inside for number in numbers_in(v)]
    if isinstance(value, list):
        return [number for v in value for number in numbers_in(v)]
    return [value]


def test_every_published_number_is_a_number_and_every_table_has_its_source():
    for number in numbers_in(PUBLISHED):
        assert number is None or isinstance(number, bool | int | float), number
    tables = [*PUBLISHED["figure_1"].values(), *PUBLISHED["figure_2"].values()]
    assert all(table["source"] for table in tables)


def test_published_values_are_the_papers():
    assert PAPER_MSE[2][0] == 4.149159e-08
    assert PAPER_MSE[3][4] == 4.939035e-05
    assert FIGURE_1["predicting_zero"]["rmse"] == {2: 0.11195025, 3: 0.058498096}
    curves = FIGURE_1["sequence_models"]["curves"]
    assert len({tuple(c[name] for name in compare_to_paper.IDENTITY) for c in curves}) == 18
    for paper_curve in curves:
        for value in paper_curve["rmse"].values():
            ordered = [value[name] for name in ("min", "mean", "max") if name in value]
            assert ordered == sorted(ordered)
        assert "mean" in paper_curve["rmse"][FIGURE_1["sequence_models"]["last_step"]]
    table = PUBLISHED["figure_2"]["min_blocks"]
    assert {len(blocks) for blocks in table["models"].values()} == {len(table["lengths"])} == {14}
    assert table["models"]["S4"] == [1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 4, 4, 4, None]


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.0, AGREES), (1.049, AGREES), (0.951, AGREES), (1.051, WORSE), (0.949, BETTER)],
)
def test_linear_cde_agrees_within_5_percent_of_the_same_run(factor, verdict):
    row = row_of(ToyResults([score(factor, run=3)]), model="Linear CDE", input_dim=2, run=3)
    assert row.verdict == verdict
    assert row.relative_difference == pytest.approx(factor - 1)
    assert row.paper == PAPER_MSE[2][3]


def test_the_mean_is_compared_over_the_same_runs_of_both():
    results = ToyResults([score(run=0), score(1.2, run=4)])
    mean = row_of(results, model="Linear CDE", input_dim=2, run="mean")
    assert mean.paper == pytest.approx((PAPER_MSE[2][0] + PAPER_MSE[2][4]) / 2)
    assert mean.ours == pytest.approx((PAPER_MSE[2][0] + 1.2 * PAPER_MSE[2][4]) / 2)
    assert mean.verdict == WORSE
    assert mean.note == "both over run 0, 4"


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_dim", 64), ("num_paths", 1000), ("seed", 1), ("solver", "scan")],
)
def test_a_run_of_other_settings_is_not_compared_nor_averaged(name, value):
    results = ToyResults([score(run=0), score(run=1, **{name: value})])
    row = row_of(results, model="Linear CDE", input_dim=2, run=1)
    assert row.verdict == NOT_COMPARABLE
    assert row.relative_difference is None
    assert f"{name} {value}" in row.note
    mean = row_of(results, model="Linear CDE", input_dim=2, run="mean")
    assert (mean.ours, mean.verdict) == (PAPER_MSE[2][0], AGREES)


def test_precision_does_not_make_a_run_incomparable_but_is_shown_and_explained():
    results = ToyResults([score(0.65, matmul_precision="float32", hidden_dim=256)])
    row = row_of(results, model="Linear CDE", input_dim=2, run=0)
    assert (row.verdict, row.precision) == (BETTER, "float32")
    text = compare_to_paper.as_markdown([row])
    assert "0.55 to 0.85" in text
    assert "0.55 to 0.85" not in compare_to_paper.as_markdown(
        [row_of(ToyResults(), run=0, input_dim=2)]
    )


def test_a_result_with_a_damaged_record_is_not_compared():
    problem = Problem(Path("outputs_toy/lin_cde_mse_2_run_0.json"), "not a usable run record")
    row = row_of(ToyResults([score()], problems=[problem]), model="Linear CDE", input_dim=2, run=0)
    assert (row.verdict, row.note) == (NOT_COMPARABLE, "not a usable run record")


@pytest.mark.parametrize(
    ("final", "verdict"),
    [(0.0217, AGREES), (0.0145, AGREES), (0.0143, BETTER), (0.0303, AGREES), (0.0305, WORSE)],
)
def test_a_finished_curve_agrees_within_the_released_range_widened_by_a_quarter(final, verdict):
    results = ToyResults(curves=[curve({0: 0.2, 10000: 0.05, 990000: final})])
    for run in (0, "mean"):
        row = row_of(results, model="Mamba", depth=1, input_dim=2, run=run)
        assert (row.step, row.ours, row.paper, row.verdict) == (990000, final, 0.0217, verdict)


@pytest.mark.parametrize("model", ["S4", "S5"])
@pytest.mark.parametrize("input_dim", [2, 3])
@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, AGREES), (1.019, AGREES), (1.021, WORSE), (0.979, BETTER)]
)
def test_s4_and_s5_without_nonlinearity_must_match_predicting_zero(
    model, input_dim, factor, verdict
):
    final = FIGURE_1["predicting_zero"]["rmse"][input_dim] * factor
    results = ToyResults(curves=[curve({990000: final}, model=model, input_dim=input_dim)])
    row = row_of(results, model=model, depth=1, input_dim=input_dim, run=0)
    assert row.verdict == verdict


@pytest.mark.parametrize(
    ("values", "step", "paper", "note"),
    [
        ({0: 0.2, 10000: 0.05, 20000: 0.045, 30000: 0.04}, 20000, 0.0454, "inside the band so far"),
        ({0: 0.2, 10000: 0.02}, 10000, 0.0560, "better outside the band so far"),
        ({0: 0.2, 10000: 0.09}, 10000, 0.0560, "worse outside the band so far"),
        ({0: 0.2, 50000: 0.09}, 50000, 0.0407, "no published range at this step"),
    ],
)
def test_an_unfinished_curve_is_partial_at_the_last_published_step_it_reached(
    values, step, paper, note
):
    row = row_of(ToyResults(curves=[curve(values)]), model="Mamba", depth=1, input_dim=2, run=0)
    assert (row.verdict, row.step, row.paper, row.note) == (PARTIAL, step, paper, note)
    assert row.ours == values[step]


def test_an_unfinished_curve_with_nothing_published_shows_its_last_value():
    results = ToyResults(curves=[curve({0: 0.2, 10000: 0.05}, input_dim=3)])
    row = row_of(results, model="Mamba", depth=1, input_dim=3, run=0)
    assert (row.verdict, row.step, row.ours, row.paper) == (PARTIAL, 10000, 0.05, None)


def test_the_mean_of_curves_is_over_the_runs_that_got_furthest():
    ends = {0: 0.02, 1: 0.024}
    curves = [curve({0: 0.2, 990000: end}, run=run) for run, end in ends.items()]
    results = ToyResults(curves=[*curves, curve({0: 0.2, 10000: 0.05}, run=2)])
    mean = row_of(results, model="Mamba", depth=1, input_dim=2, run="mean")
    assert (mean.step, mean.verdict, mean.note) == (990000, AGREES, "over 2 of 5 runs")
    assert mean.ours == pytest.approx(0.022)


def test_a_curve_of_another_width_is_not_compared_nor_averaged():
    curves = [curve({990000: 0.02}), curve({990000: 0.5}, hidden_dim=32)]
    rows = rows_of(ToyResults(curves=curves), model="Mamba", depth=1, input_dim=2)
    assert [row.verdict for row in rows] == [AGREES, NOT_COMPARABLE, AGREES]
    assert rows[-1].ours == 0.02


def test_a_configuration_the_paper_lacks_is_listed():
    row = row_of(ToyResults(curves=[curve({0: 0.2}, depth=3)]), depth=3)
    assert (row.verdict, row.note) == (NOT_COMPARABLE, "the paper has no such configuration")


def test_without_results_every_published_number_is_listed_as_not_run():
    rows = compare_to_paper.compare_figure_1(ToyResults(), FIGURE_1)
    assert len(rows) == 2 * 6 + 18
    assert {row.verdict for row in rows} == {NOT_RUN}
    assert all(row.ours is None and row.paper is not None for row in rows)


def run_from(folder: Path, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, REPO_ROOT / "compare_to_paper.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_json_is_all_of_stdout_and_names_every_key(tmp_path):
    folder = write_results(tmp_path / "results", ToyResults([score(), score(run=1)]))
    broken = folder / toy_lcde_name(2, 1)
    broken.write_bytes(broken.read_bytes()[:-1])
    done = run_from(tmp_path, "--results-dir", "results", "--format", "json")
    rows = json.loads(done.stdout)
    keys = {"figure", "model", "depth", "nonlinear", "input_dim", "length", "run", "step"}
    assert all(keys | {"ours", "paper", "verdict"} <= row.keys() for row in rows)
    assert [row["verdict"] for row in rows[:3]] == [AGREES, NOT_RUN, NOT_RUN]
    assert "not a readable .npy file" in rows[1]["note"]
    assert done.returncode == 0
    assert f"results/outputs_toy/{broken.name}" in done.stderr


def test_piped_text_is_not_cut_and_ends_with_a_summary(tmp_path):
    results = ToyResults([score(0.65), score(hidden_dim=8, num_paths=10, seed=1, run=1)])
    folder = write_results(tmp_path, results)
    record = (folder / toy_lcde_name(2, 1)).with_suffix(".json")
    record.write_text(json.dumps({"config": results.scores[1].config}))
    done = run_from("/", "--results-dir", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hidden_dim 8, paper 256; num_paths 10, paper 100000; seed 1, paper 2345" in done.stdout
    assert "Mamba, depth 2, nonlinear  2D" in done.stdout
    assert "better outside the band" in done.stdout
    assert "…" not in done.stdout
    flowing = " ".join(done.stdout.split())
    assert flowing.endswith(
        "30 numbers: agrees 0, better outside the band 2, worse outside the band 0, partial 0, "
        "not comparable 1, not run 27"
    )


def test_markdown_rows_have_as_many_cells_as_their_headings(capsys, tmp_path):
    write_results(tmp_path, ToyResults([score()], [curve({0: 0.2, 10000: 0.05})]))
    assert compare_to_paper.main(["--results-dir", str(tmp_path), "--format", "markdown"]) == 0
    output = capsys.readouterr().out
    assert output.count("| --- |") >= 2
    for block in output.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


@pytest.mark.parametrize(
    ("factor", "code"), [(1.0, 0), (0.5, 0), (1.5, 1)], ids=["agrees", "better", "worse"]
)
def test_strict_fails_for_worse_alone(tmp_path, capsys, factor, code):
    write_results(tmp_path, ToyResults([score(factor)]))
    assert compare_to_paper.main(["--results-dir", str(tmp_path)]) == 0
    assert compare_to_paper.main(["--results-dir", str(tmp_path), "--strict"]) == code


def test_strict_fails_for_an_unusable_file(tmp_path, capsys):
    folder = write_results(tmp_path, ToyResults([score()]))
    (folder / toy_lcde_name(3, 0)).write_bytes(b"")
    assert compare_to_paper.main(["--results-dir", str(tmp_path), "--strict"]) == 1
    assert toy_lcde_name(3, 0) in capsys.readouterr().err


def test_bad_arguments_exit_2_with_nothing_on_stdout(tmp_path):
    done = run_from(tmp_path, "--results-dir", "nowhere", "--format", "json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].endswith("--results-dir: no such folder: nowhere")


def test_rows_hold_plain_json_types():
    results = ToyResults([score()], [curve({0: 0.2, 990000: 0.02})])
    rows = compare_to_paper.compare_figure_1(results, FIGURE_1)
    assert json.loads(compare_to_paper.as_json(rows)) == [asdict(row) for row in rows]
