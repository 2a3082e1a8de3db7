import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml

import compare_to_paper
from benchmarks.released_files import write_released_files
from harness.file_names import (
    LINEAR_CDE,
    PUBLISHED_RESULTS,
    A5Curve,
    A5Results,
    Problem,
    ToyCurve,
    ToyCurveKey,
    ToyResults,
    ToyScore,
    a5_curve_name,
    a5_lcde_name,
    toy_lcde_name,
    toy_rmse_name,
    toy_steps_name,
)
from harness.paths import A5_RESULTS, ROOT, TOY_RESULTS
from verdict import figure_1, figure_2, tables
from verdict.rows import AGREES, BETTER, DISAGREES, NOT_COMPARABLE, NOT_RUN, PARTIAL, WORSE

PUBLISHED = yaml.safe_load(PUBLISHED_RESULTS.read_text())
FIGURE_1 = PUBLISHED["figure_1"]
FIGURE_2 = PUBLISHED["figure_2"]
PAPER_MSE = FIGURE_1["linear_cde"]["mse"]


def score(factor=1.0, input_dim=2, run=0, **config) -> ToyScore:
    return ToyScore(input_dim, run, PAPER_MSE[input_dim][run] * factor, config)


def curve(values, model="Mamba", depth=1, nonlinear=False, input_dim=2, run=0, hidden_dim=256):
    key = ToyCurveKey(model, depth, nonlinear, input_dim, 0.0001, hidden_dim, run)
    return ToyCurve(key, np.array(list(values), dtype=float), np.array(list(values.values())))


def rows_of(results: ToyResults, **wanted) -> list:
    rows = figure_1.compare(results, FIGURE_1)
    return [row for row in rows if all(getattr(row, k) == v for k, v in wanted.items())]


def row_of(results: ToyResults, **wanted):
    (row,) = rows_of(results, **wanted)
    return row


def a5_curve(model=LINEAR_CDE, depth=1, length=3, best=0.95, last=10000, **config) -> A5Curve:
    return A5Curve(model, length, depth, config, np.array([0, last]), np.array([0.02, best]))


def figure_2_row(*curves, problems=(), **wanted):
    rows = figure_2.compare(A5Results(list(curves), list(problems)), FIGURE_2)
    (row,) = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    return row


def write_a5_lcde(results_dir: Path, length=3, best=0.99, last=10000, config=None) -> Path:
    folder = results_dir / A5_RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    steps, accuracies = (folder / a5_lcde_name(length, kind) for kind in ("steps", "val_accs"))
    np.save(steps, np.array([0, last]))
    np.save(accuracies, np.array([0.02, best]))
    if config is not None:
        steps.with_suffix(".json").write_text(json.dumps({"config": config}))
    return accuracies


def write_results(results_dir: Path, results: ToyResults) -> Path:
    folder = results_dir / TOY_RESULTS
    folder.mkdir(parents=True)
    for s in results.scores:
        np.save(folder / toy_lcde_name(s.input_dim, s.run), np.array(s.mse))
    for c in results.curves:
        np.save(folder / toy_steps_name(c.key), c.steps)
        np.save(folder / toy_rmse_name(c.key), c.rmse)
    return folder


def numbers_in(value) -> list:
    if isinstance(value, dict):
        words = ("source", "model", "solver", "group", "block_order")
        inside = [v for k, v in value.items() if k not in words]
        return [number for v in inside for number in numbers_in(v)]
    if isinstance(value, list):
        return [number for v in value for number in numbers_in(v)]
    return [value]


def test_every_published_number_is_a_number_and_every_table_has_its_source():
    for number in numbers_in(PUBLISHED):
        assert number is None or isinstance(number, bool | int | float), number
    published_tables = [*PUBLISHED["figure_1"].values(), *PUBLISHED["figure_2"].values()]
    assert all(table["source"] for table in published_tables)


def test_published_values_are_the_papers():
    assert PAPER_MSE[2][0] == 4.149159e-08
    assert PAPER_MSE[3][4] == 4.939035e-05
    assert FIGURE_1["predicting_zero"]["rmse"] == {2: 0.11195025, 3: 0.058498096}
    curves = FIGURE_1["sequence_models"]["curves"]
    assert len({tuple(c[name] for name in figure_1.IDENTITY) for c in curves}) == 18
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
    assert "0.55 to 0.85" in tables.footnotes([row])[-1]
    not_run = row_of(ToyResults(), run=0, input_dim=2)
    assert "0.55 to 0.85" not in tables.footnotes([not_run])[-1]


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


@pytest.mark.parametrize(
    ("model", "input_dim"), [("Mamba", 3), ("S5", 2)], ids=["nothing", "step 0 alone"]
)
def test_an_unfinished_curve_with_nothing_published_shows_its_last_value(model, input_dim):
    values = {0: 0.2, 10000: 0.05}
    results = ToyResults(curves=[curve(values, model, 2, True, input_dim)])
    row = row_of(results, model=model, depth=2, nonlinear=True, input_dim=input_dim, run=0)
    assert (row.verdict, row.step, row.ours, row.paper) == (PARTIAL, 10000, 0.05, None)
    assert (row.so_far, row.note) == (None, "no published range at this step")


@pytest.mark.parametrize(("end", "so_far"), [(0.035, BETTER), (0.056, AGREES), (0.09, WORSE)])
def test_a_run_configured_for_10000_steps_is_compared_with_the_papers_range_there(
    tmp_path, end, so_far
):
    values = {0: 0.2, 5000: 0.1, 10000: end}
    folder = write_results(tmp_path, ToyResults(curves=[curve(values)]))
    record = {"config": {"max_steps": 10000, "block_order": "activate_then_mix"}}
    steps = folder / toy_steps_name(curve(values).key)
    steps.with_suffix(".json").write_text(json.dumps(record))
    done = run_from("/", "--results-dir", tmp_path, "--format", "json")
    rows = [row for row in json.loads(done.stdout) if row["verdict"] == PARTIAL]
    assert [row["run"] for row in rows] == [0, "mean"]
    for row in rows:
        assert (row["step"], row["paper"], row["so_far"]) == (10000, 0.0560, so_far)
        assert (row["paper_min"], row["paper_max"]) == (0.0490, 0.0639)


def test_a_curve_whose_record_departs_or_is_damaged_is_not_compared(tmp_path):
    values = {0: 0.2, 990000: 0.0217}
    folder = write_results(tmp_path, ToyResults(curves=[curve(values), curve(values, run=1)]))
    stems = [folder / toy_steps_name(curve(values, run=run).key) for run in (0, 1)]
    order = {"config": {"block_order": "mix_then_activate"}}
    stems[0].with_suffix(".json").write_text(json.dumps(order))
    stems[1].with_suffix(".json").write_text("{")
    done = run_from("/", "--results-dir", tmp_path, "--format", "json")
    rows = [row for row in json.loads(done.stdout) if row["verdict"] != NOT_RUN]
    assert [row["verdict"] for row in rows] == [NOT_COMPARABLE] * 3
    assert rows[0]["note"] == "block_order mix_then_activate, paper activate_then_mix"
    assert "not a usable run record" in rows[1]["note"]


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
    rows = figure_1.compare(ToyResults(), FIGURE_1)
    assert len(rows) == 2 * 6 + 18
    assert {row.verdict for row in rows} == {NOT_RUN}
    assert all(row.ours is None and row.paper is not None for row in rows)


def test_the_released_files_agree_with_every_published_number(tmp_path):
    write_released_files(tmp_path)
    done = run_from("/", "--results-dir", tmp_path, "--strict")
    assert (done.returncode, done.stderr) == (0, "")
    assert " ".join(done.stdout.split()).endswith("Yes: of the paper's 100 numbers, 100 agree.")


def run_from(folder: Path, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "compare_to_paper.py", *arguments]
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


def test_piped_text_is_not_cut_and_ends_with_the_answer(tmp_path):
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
        "Does this agree with the paper? As far as it was run, it agrees or is better: of the "
        "paper's 100 numbers, 2 are better than its band, 1 is not comparable and 97 were not run."
    )


def test_markdown_rows_have_as_many_cells_as_their_headings(capsys, tmp_path):
    write_results(tmp_path, ToyResults([score()], [curve({0: 0.2, 10000: 0.05})]))
    write_a5_lcde(tmp_path, config={"eval_interval": 1000})
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
    rows = figure_1.compare(results, FIGURE_1)
    assert json.loads(tables.as_json(rows)) == [asdict(row) for row in rows]
    rows = figure_2.compare(A5Results([a5_curve(), a5_curve("LSTM")]), FIGURE_2)
    assert json.loads(tables.as_json(rows)) == [asdict(row) for row in rows]


def test_figure_2_has_a_row_for_every_model_and_length_of_the_papers_table():
    rows = figure_2.compare(A5Results(), FIGURE_2)
    table = FIGURE_2["min_blocks"]
    expected = [
        (model, length, paper)
        for model, blocks in table["models"].items()
        for length, paper in zip(table["lengths"], blocks, strict=True)
    ]
    assert len(expected) == 70
    assert [(row.model, row.length, row.paper) for row in rows] == expected
    assert {row.verdict for row in rows} == {NOT_RUN}


@pytest.mark.parametrize(
    ("depth", "verdict", "difference"), [(2, AGREES, 0), (3, DISAGREES, 1), (1, DISAGREES, -1)]
)
def test_a_number_of_blocks_agrees_if_it_is_the_papers(depth, verdict, difference):
    failures = [a5_curve("S4", d, 5, best=0.5, last=990000) for d in range(1, depth)]
    row = figure_2_row(*failures, a5_curve("S4", depth, 5), model="S4", length=5)
    assert (row.verdict, row.difference) == (verdict, difference)
    assert (row.ours, row.paper, row.state) == (depth, 2, str(depth))


def test_not_reached_agrees_with_not_reached_alone():
    failures = [a5_curve("Mamba", depth, 14, best=0.4, last=990000) for depth in (1, 2, 3, 4)]
    for length in (14, 20):
        row = figure_2_row(*failures, model="Mamba", length=length)
        assert (row.verdict, row.state, row.difference) == (AGREES, "not reached", None)
    failures = [a5_curve("Mamba", depth, 12, best=0.4, last=990000) for depth in (1, 2, 3, 4)]
    assert figure_2_row(*failures, model="Mamba", length=12).verdict == DISAGREES


@pytest.mark.parametrize(
    ("curves", "verdict", "note"),
    [
        ([("S4", 2, 5)], PARTIAL, "1 to 2 are possible"),
        ([("S4", 1, 5, 0.5, 20000)], PARTIAL, "1 or more are possible"),
        ([("S4", 1, 5, 0.5, 990000)], PARTIAL, "2 or more are possible"),
        (
            [("S4", 1, 5, 0.5, 990000), ("S4", 2, 5, 0.5, 990000)],
            DISAGREES,
            "3 or more are possible",
        ),
        ([("S4", 1, 4, 0.5, 990000)], NOT_RUN, ""),
    ],
    ids=["upper bound", "unfinished", "others not run", "already more", "failed at length 4 alone"],
)
def test_what_missing_or_unfinished_runs_leave_possible_is_partial(curves, verdict, note):
    row = figure_2_row(*(a5_curve(*values) for values in curves), model="S4", length=5)
    assert (row.verdict, row.note) == (verdict, note)


def test_a_blocks_row_shows_our_record_beside_the_papers():
    row = figure_2_row(a5_curve(length=18, best=0.98, last=3000), model=LINEAR_CDE, length=18)
    assert (row.accuracy, row.step) == (0.98, 3000)
    assert (row.paper_accuracy, row.paper_step) == (0.9995, 20000)
    assert figure_2_row(model="S4", length=20).paper_accuracy == 0.773
    assert figure_2_row(model="RNN", length=5).paper_accuracy == {"min": 0.942, "max": 0.9998}
    row = figure_2_row(a5_curve(length=18, best=0.98), model=LINEAR_CDE, length=20)
    assert (row.accuracy, row.step) == (None, None)


def test_the_schedule_is_noted_and_does_not_change_the_verdict_as_the_settings_do():
    row = figure_2_row(a5_curve(eval_interval=1000, hidden_dim=256), model=LINEAR_CDE, length=3)
    assert (row.verdict, row.note) == (AGREES, "eval_interval 1000, paper 10000")
    row = figure_2_row(a5_curve(eval_interval=1000, hidden_dim=8), model=LINEAR_CDE, length=3)
    assert (row.verdict, row.difference) == (NOT_COMPARABLE, None)
    assert row.note == "hidden_dim 8, paper 256; eval_interval 1000, paper 10000"
    assert "eval_interval" in figure_2.RULE
    failure = a5_curve("S4", 1, 4, best=0.5, last=990000, eval_interval=1000)
    assert figure_2_row(failure, model="S4", length=5).note == ""


def test_a_number_that_rests_on_a_failure_under_other_settings_is_not_compared():
    failures = [a5_curve("S4", d, 3, best=0.5, last=990000, hidden_dim=8) for d in (1, 2, 3, 4)]
    row = figure_2_row(*failures, model="S4", length=20)
    assert (row.verdict, row.paper_state) == (NOT_COMPARABLE, "not reached")


def test_unusable_a5_files_are_named_in_their_row_and_a_damaged_record_is_not_compared():
    name = a5_curve_name("S4", 5, 2, 0.0001, 1024, "acc", 2345)
    row = figure_2_row(problems=[Problem(Path(name), "is missing")], model="S4", length=5)
    assert (row.verdict, row.note) == (NOT_RUN, f"{name}: is missing")
    record = Path(a5_lcde_name(3, "steps")).with_suffix(".json")
    row = figure_2_row(
        a5_curve(), problems=[Problem(record, "not a record")], model=LINEAR_CDE, length=3
    )
    assert (row.verdict, row.note) == (NOT_COMPARABLE, f"{record}: not a record")


def test_lengths_and_models_the_paper_lacks_are_listed():
    row = figure_2_row(a5_curve(length=25), model=LINEAR_CDE, length=25)
    assert (row.verdict, row.note) == (NOT_COMPARABLE, "the paper has no such length")
    row = figure_2_row(a5_curve("LSTM"), model="LSTM")
    assert (row.verdict, row.note) == (NOT_COMPARABLE, "the paper has no such configuration")


@pytest.mark.parametrize(("best", "code"), [(0.95, 0), (0.5, 1)], ids=["agrees", "disagrees"])
def test_strict_fails_for_a_number_of_blocks_that_disagrees(tmp_path, best, code):
    write_a5_lcde(tmp_path, best=best, last=990000)
    done = run_from("/", "--results-dir", tmp_path, "--strict", "--format", "json")
    assert (done.returncode, done.stderr) == (code, "")
    row = next(r for r in json.loads(done.stdout) if (r["model"], r["length"]) == (LINEAR_CDE, 3))
    assert row["verdict"] == (AGREES, DISAGREES)[code]


def test_a_corrupt_a5_file_is_named_and_strict_fails(tmp_path):
    broken = write_a5_lcde(tmp_path)
    broken.write_bytes(b"")
    done = run_from("/", "--results-dir", tmp_path)
    assert (done.returncode, f"warning: skipped {broken}: " in done.stderr) == (0, True)
    assert run_from("/", "--results-dir", tmp_path, "--strict").returncode == 1
