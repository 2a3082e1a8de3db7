from pathlib import Path

import numpy as np
import pytest

from a5_runs import PUBLISHED as FIGURE_2
from harness.file_names import A5CurveKey, A5ScoreKey
from verdict import figure_2
from verdict.results import LINEAR_CDE, A5Curve, A5Results, Problem
from verdict.rows import AGREES, DISAGREES, NOT_COMPARABLE, NOT_RUN, PARTIAL


def a5_curve(model=LINEAR_CDE, depth=1, length=3, best=0.95, last=10000, **config) -> A5Curve:
    return A5Curve(model, length, depth, config, np.array([0, last]), np.array([0.02, best]))


def figure_2_row(*curves, problems=(), **wanted):
    rows = figure_2.compare(A5Results(list(curves), list(problems)), FIGURE_2)
    (row,) = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    return row


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
    key = A5CurveKey("S4", 5, 2, 0.0001, 1024, 2345)
    name = key.names[1]
    row = figure_2_row(problems=[Problem(Path(name), "is missing", key)], model="S4", length=5)
    assert (row.verdict, row.note) == (NOT_RUN, f"{name}: is missing")
    record = Path(A5ScoreKey(3).names[0]).with_suffix(".json")
    problem = Problem(record, "not a record", A5ScoreKey(3))
    row = figure_2_row(a5_curve(), problems=[problem], model=LINEAR_CDE, length=3)
    assert (row.verdict, row.note) == (NOT_COMPARABLE, f"{record}: not a record")


def test_lengths_and_models_the_paper_lacks_are_listed():
    row = figure_2_row(a5_curve(length=25), model=LINEAR_CDE, length=25)
    assert (row.verdict, row.note) == (NOT_COMPARABLE, "the paper has no such length")
    row = figure_2_row(a5_curve("LSTM"), model="LSTM")
    assert (row.verdict, row.note) == (NOT_COMPARABLE, "the paper has no such configuration")
