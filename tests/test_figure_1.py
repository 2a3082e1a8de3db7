from pathlib import Path

import pytest

from harness.file_names import ToyScoreKey
from toy_runs import FIGURE_1, PAPER_MSE, curve, score, write_results
from verdict import figure_1, tables
from verdict.results import Problem, ToyResults, load_toy_results
from verdict.rows import AGREES, BETTER, NOT_COMPARABLE, NOT_RUN, PARTIAL, ROUNDING, WORSE


def rows_of(results: ToyResults, **wanted) -> list:
    rows = figure_1.compare(results, FIGURE_1)
    return [row for row in rows if all(getattr(row, k) == v for k, v in wanted.items())]


def row_of(results: ToyResults, **wanted):
    (row,) = rows_of(results, **wanted)
    return row


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
    assert (row.verdict, row.precision) == (ROUNDING, "float32")
    assert "0.55 to 0.85" in tables.footnotes([row])[-1]
    not_run = row_of(ToyResults(), run=0, input_dim=2)
    assert "0.55 to 0.85" not in tables.footnotes([not_run])[-1]


def test_a_result_with_a_damaged_record_is_not_compared():
    record = Path("outputs_toy/lin_cde_mse_2_run_0.json")
    problem = Problem(record, "not a usable run record", ToyScoreKey(2, 0))
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
        ({0: 0.2, 10000: 0.05, 20000: 0.045, 25000: 0.04}, 20000, 0.0454, "inside the band so far"),
        ({0: 0.2, 10000: 0.02}, 10000, 0.0560, "better outside the band so far"),
        ({0: 0.2, 10000: 0.09}, 10000, 0.0560, "worse outside the band so far"),
        ({0: 0.2, 5000: 0.09}, 5000, None, "no published range at this step"),
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
    config = {"max_steps": 10000, "block_order": "activate_then_mix"}
    write_results(tmp_path, ToyResults(curves=[curve(values, **config)]))
    rows = rows_of(load_toy_results(tmp_path), verdict=PARTIAL)
    assert [row.run for row in rows] == [0, "mean"]
    for row in rows:
        assert (row.step, row.paper, row.so_far) == (10000, 0.0560, so_far)
        assert (row.paper_min, row.paper_max) == (0.0490, 0.0639)


def test_a_curve_whose_record_departs_or_is_damaged_is_not_compared(tmp_path):
    values = {0: 0.2, 990000: 0.0217}
    curves = [curve(values, block_order="mix_then_activate"), curve(values, run=1)]
    folder = write_results(tmp_path, ToyResults(curves=curves))
    (folder / curves[1].key.names[0]).with_suffix(".json").write_text("{")
    rows = rows_of(load_toy_results(tmp_path), model="Mamba", depth=1, input_dim=2)
    assert [row.verdict for row in rows] == [NOT_COMPARABLE] * 3
    assert rows[0].note == "block_order mix_then_activate, paper activate_then_mix"
    assert "not a usable run record" in rows[1].note


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


@pytest.mark.parametrize("step", [1000, 10000, 990000])
@pytest.mark.parametrize(("factor", "verdict"), [(1.019, AGREES), (1.021, WORSE), (0.979, BETTER)])
@pytest.mark.parametrize(("model", "input_dim"), [("S4", 2), ("S4", 3), ("S5", 2)])
def test_what_learns_nothing_is_within_2_percent_of_predicting_zero_at_every_step(
    model, input_dim, step, factor, verdict
):
    value = FIGURE_1["predicting_zero"]["rmse"][input_dim] * factor
    results = ToyResults(curves=[curve({0: 0.4, step: value}, model, 2, False, input_dim)])
    row = row_of(results, model=model, depth=2, nonlinear=False, input_dim=input_dim, run=0)
    assert (row.verdict if step == 990000 else row.so_far) == verdict
    assert row.relative_difference == pytest.approx(factor - 1)


@pytest.mark.parametrize(
    ("final", "words", "verdict"),
    [
        (0.0192, "inside", AGREES),
        (0.0243, "inside", AGREES),
        (0.0243 * 1.2, "+20.0%", AGREES),
        (0.0192 * 0.8, "-20.0%", AGREES),
        (0.0192 * 0.7, "-30.0%", BETTER),
    ],
)
def test_a_single_run_stands_beside_the_papers_range_which_decides(final, words, verdict):
    results = ToyResults(curves=[curve({0: 0.2, 990000: final}, run=4)])
    row = row_of(results, model="Mamba", depth=1, input_dim=2, run=4)
    assert (row.difference, row.paper_number, row.verdict) == (words, None, verdict)
    assert row_of(results, model="Mamba", depth=1, input_dim=2, run="mean").paper_number == 0.0217


@pytest.mark.parametrize(
    ("input_dim", "factor", "precision", "verdict"),
    [
        (2, 0.65, "float32", ROUNDING),
        (2, 0.54, "float32", BETTER),
        (2, 0.65, "tf32", BETTER),
        (3, 0.65, "float32", BETTER),
        (2, 0.96, "float32", AGREES),
        (2, 1.2, "float32", WORSE),
    ],
)
def test_what_the_papers_gpu_rounded_is_named_so_and_nothing_else(
    input_dim, factor, precision, verdict
):
    results = ToyResults([score(factor, input_dim, matmul_precision=precision)])
    for run in (0, "mean"):
        assert row_of(results, model="Linear CDE", input_dim=input_dim, run=run).verdict == verdict


def test_rounding_alone_has_what_the_same_run_gave_in_tf32_beside_it():
    settings = FIGURE_1["linear_cde"]["settings"]
    float32, tf32 = ({**settings, "matmul_precision": p} for p in ("float32", "tf32"))
    ours = [score(f, run=r, **float32) for r, f in enumerate((0.65, 0.65, 0.98))]
    in_tf32 = ToyResults([score(1.01, run=run, **tf32) for run in (0, 2)])
    again = ToyResults([score(1.01, run=1, **float32)])
    rows = figure_1.compare(ToyResults(ours), FIGURE_1)
    for found in (in_tf32, again):
        rows = figure_1.beside_tf32(rows, figure_1.compare(found, FIGURE_1))
    notes = {row.run: row.note for row in rows if row.input_dim == 2 and row.quantity == "MSE"}
    value = 1.01 * PAPER_MSE[2][0]
    assert notes[0] == f"in TF32 {value:.4e}, +1.0%: agrees"
    assert [notes[1], notes[2]] == ["", ""]


def test_a_setting_that_our_own_record_lacks_is_a_note_and_released_files_have_none():
    settings = FIGURE_1["linear_cde"]["settings"]
    recorded = {name: settings[name] for name in settings if name not in ("rtol", "dt0")}
    results = ToyResults([score(run=0, **recorded), score(run=1)])
    notes = [row.note for row in rows_of(results, model="Linear CDE", input_dim=2)[:2]]
    assert notes == ["not recorded: rtol, dt0", ""]
    row = row_of(ToyResults([score(rtol=0.1)]), model="Linear CDE", input_dim=2, run=0)
    assert (row.verdict, row.note) == (NOT_COMPARABLE, "rtol 0.1, paper 0.01")
    values = {0: 0.2, 990000: 0.02}
    results = ToyResults(curves=[curve(values, max_steps=990000), curve(values, run=1)])
    rows = rows_of(results, model="Mamba", depth=1, input_dim=2)
    assert ["not recorded: " in row.note for row in rows] == [True, False, False]
