import pytest

from verdict.rows import (
    AGREES,
    BETTER,
    DISAGREES,
    MEAN,
    NOT_COMPARABLE,
    NOT_RUN,
    PARTIAL,
    WORSE,
    BlocksRow,
    ErrorRow,
    answer,
    count_verdicts,
    departures,
)


def number(verdict, so_far=None, run=MEAN, quantity="RMSE", paper=None) -> ErrorRow:
    return ErrorRow(
        "Mamba", 1, False, 2, run, quantity, paper=paper, verdict=verdict, so_far=so_far
    )


@pytest.mark.parametrize(
    ("rows", "start"),
    [
        ([number(AGREES)] * 2, "Yes: of the paper's 2 numbers, 2 agree."),
        ([number(AGREES), number(BETTER)], "It agrees or is better: "),
        ([number(AGREES), number(NOT_RUN)], "As far as it was run, yes: "),
        ([number(BETTER), number(NOT_RUN)], "As far as it was run, it agrees or is better: "),
        ([number(PARTIAL, AGREES)], "As far as it was run, yes: "),
        ([number(PARTIAL, BETTER)], "As far as it was run, it agrees or is better: "),
        ([number(PARTIAL, WORSE), number(AGREES)], "Not everywhere: "),
        ([number(WORSE), number(AGREES)], "Not everywhere: "),
        ([number(DISAGREES), number(BETTER)], "Not everywhere: "),
        ([number(NOT_RUN), number(NOT_COMPARABLE)], "Not known yet: "),
    ],
)
def test_the_answer_is_no_better_than_the_worst_verdict(rows, start):
    assert answer(rows).startswith(start)


def test_the_answer_counts_every_verdict_and_where_partial_ones_stand():
    rows = [number(AGREES), number(BETTER), number(NOT_RUN), number(NOT_RUN)]
    rows += [number(PARTIAL, AGREES), number(PARTIAL, BETTER), number(PARTIAL)]
    assert answer(rows) == (
        "As far as it was run, it agrees or is better: of the paper's 7 numbers, 1 agrees, "
        "1 is better than its band, 3 are partial (1 inside the band so far, 1 better so far) "
        "and 2 were not run."
    )


def test_only_the_papers_numbers_are_counted():
    others = [
        number(WORSE, run=0),
        BlocksRow("S4", 3, verdict=NOT_COMPARABLE),
        number(NOT_COMPARABLE, quantity="MSE", paper=None, run=7),
    ]
    papers = [
        BlocksRow("S4", 3, paper_state="1", verdict=AGREES),
        number(AGREES, quantity="MSE", paper=1e-8, run=0),
    ]
    counts = count_verdicts([*others, *papers])
    assert {verdict: n for verdict, n in counts.items() if n} == {AGREES: 2}
    assert answer([*others, *papers]).startswith("Yes: of the paper's 2 numbers")


def test_departures_names_only_settings_that_differ():
    paper = {"hidden_dim": 256, "seed": 2345, "solver": "tsit5"}
    assert departures({"hidden_dim": 256, "solver": "tsit5"}, paper) == []
    assert departures({"hidden_dim": 8}, paper) == ["hidden_dim 8, paper 256"]
