from dataclasses import replace

import numpy as np
import pytest

from a5_runs import LENGTHS, PAPER_TABLE, PUBLISHED, curve, failure, found_in, found_of, table_rows
from benchmarks.released_files import write_a5_files
from harness.outcomes import UNFINISHED, failed
from verdict import tables
from verdict.results import LINEAR_CDE, A5Curve


@pytest.mark.parametrize("every_depth", [False, True])
def test_the_table_of_the_released_runs_is_the_papers_cell_for_cell(tmp_path, every_depth):
    write_a5_files(tmp_path, PUBLISHED, every_depth)
    found = found_in(tmp_path)
    assert table_rows(tables.blocks_table(found))[2:] == PAPER_TABLE.split("\n")[1:-1]
    assert found.notes == []
    assert all(cell.decided for cell in found.cells.values())


@pytest.mark.parametrize(("best", "state"), [(0.9, "not reached"), (0.9001, "1")])
def test_a_length_is_solved_above_0_9_by_any_record(best, state):
    run = A5Curve(LINEAR_CDE, 3, 1, {}, np.array([0, 10000, 990000]), np.array([0, best, 0.3]))
    assert found_of(run).cells[LINEAR_CDE, 3].state == state


def test_a_run_that_stopped_early_is_unfinished_and_no_failure():
    found = found_of(curve("S4", 1, 4, best=0.5, last=980000), curve("S4", 2, 5))
    assert found.cells["S4", 4].state == "unfinished"
    assert (found.cells["S4", 5].at_least, found.cells["S4", 5].at_most) == (1, 2)


@pytest.mark.parametrize(
    ("model", "length", "config", "last"),
    [
        ("S4", 4, {}, 990000),
        ("S4", 3, {}, 210000),
        ("Transformer", 18, {"batch_size": 64}, 490000),
        (LINEAR_CDE, 3, {}, 990000),
    ],
    ids=["40 epochs", "40 epochs of length 3", "batch 64", "Linear CDE"],
)
def test_a_failure_is_a_run_that_went_on_to_the_papers_end(model, length, config, last):
    whole = curve(model, 1, length, 0.5, last, **config)
    short = curve(model, 1, length, 0.5, last - 10000, **config)
    assert found_of(whole).trials[model, length, 1].failed
    assert not found_of(short).trials[model, length, 1].failed


def test_a_missing_run_is_not_run_and_no_failure():
    found = found_of(failure("S4", 1, 4), curve("S4", 3, 4), failure("S4", 3, 20))
    assert found.cells["S4", 3].state == "not run"
    assert (found.cells["S4", 4].at_least, found.cells["S4", 4].at_most) == (2, 3)
    assert found.cells["S4", 20].state == "not run"
    assert "upper bound, fewer blocks not decided: S4, depth 3, length 4" in found.notes


def test_blocks_that_failed_at_a_shorter_length_are_not_tried_at_longer_ones():
    runs = [failure("S4", depth, 4) for depth in (1, 3, 4)]
    found = found_of(*runs, curve("S4", 2, 4), failure("S4", 2, 5), curve("S4", 1, 6))
    states = [found.cells["S4", length].state for length in LENGTHS]
    assert states == ["not run", "2", *["not reached"] * 12]
    assert found.notes == ["not counted, failed at a shorter length: S4, depth 1, length 6"]


def test_the_papers_settings_are_preferred_to_better_runs_of_others():
    paper, other = {"hidden_dim": 1024}, {"hidden_dim": 64}
    found = found_of(failure("S4", 1, 5, **paper), curve("S4", 1, 5, **other))
    assert found.cells["S4", 5].at_least == 2
    assert "left out: S4, depth 1, length 5: hidden_dim 64, paper 1024" in found.notes[0]


def test_the_papers_learning_rates_and_batch_sizes_depend_on_depth_and_length():
    found = found_of(
        curve("Mamba", 2, 4, learning_rate=0.0003),
        curve("Mamba", 3, 8, learning_rate=0.0003),
        curve("Transformer", 4, 14, batch_size=64),
        curve("Transformer", 4, 16, batch_size=64),
    )
    departing = {key for key, trial in found.trials.items() if trial.other_settings}
    assert departing == {("Mamba", 8, 3), ("Transformer", 14, 4)}


def test_other_settings_are_marked_and_an_other_schedule_only_noted():
    config = {"eval_interval": 1000, "hidden_dim": 256}
    found = found_of(curve(LINEAR_CDE, 1, 3, **config), curve("RNN", 1, 3, hidden_dim=8))
    rows = table_rows(tables.blocks_table(found))
    assert [row.split("|")[1].strip() for row in rows[2:4]] == ["RNN *", LINEAR_CDE]
    assert found.notes == [
        "not the paper's schedule: Linear CDE, length 3: eval_interval 1000, paper 10000",
        "not the paper's settings, used: RNN, depth 1, length 3: hidden_dim 8, paper 1024",
    ]


def test_a_failure_under_other_settings_marks_the_lengths_it_decides():
    found = found_of(*(failure("S4", depth, 3, hidden_dim=8) for depth in (1, 2, 3, 4)))
    assert found.cells["S4", 20].state == "not reached"
    assert found.cells["S4", 20].other_settings == ["hidden_dim 8, paper 1024"]


def test_what_the_paper_lacks_is_named_and_other_lengths_are_shown():
    found = found_of(curve("LSTM", 1, 3), curve("S4", 5, 3), curve(LINEAR_CDE, 1, 25))
    assert found.cells[LINEAR_CDE, 25].state == "1"
    assert found.lengths == [*LENGTHS, 25]
    assert [note.split(": ")[1] for note in found.notes] == [
        "LSTM, depth 1, length 3",
        "S4, depth 5, length 3",
    ]


def test_the_table_tells_not_reached_from_unfinished_and_not_run():
    runs = [curve("RNN", 1, 3), curve("RNN", 1, 4, best=0.5)]
    found = found_of(*runs, *(failure("S4", depth, 3) for depth in (1, 2, 3, 4)))
    text = tables.blocks_table(found)
    rows = {row.split("|")[1].strip(): row.split("|")[2:5] for row in table_rows(text)}
    assert [cell.strip() for cell in rows["RNN"]] == ["1", "…", "·"]
    assert [cell.strip() for cell in rows["S4"]] == ["–", "–", "–"]
    legend_lines = [line[0] for line in text.splitlines() if line and not line.startswith("|")]
    assert legend_lines == ["–", "…", "·"]


@pytest.mark.parametrize(
    ("outcome", "last", "state"),
    [
        ("diverged: the loss was nan at step 7", 0, 2),
        ("not solved", 990000, 2),
        ("not solved", 10000, 1),
        (UNFINISHED, 990000, 1),
        (None, 990000, 2),
    ],
)
def test_figure_and_planner_have_one_word_on_what_has_failed(outcome, last, state):
    run = replace(curve("S4", 1, 5, best=0.5, last=max(last, 1)), outcome=outcome)
    assert found_of(run).cells["S4", 5].at_least == state
    assert failed(outcome) == (outcome not in (None, UNFINISHED))
