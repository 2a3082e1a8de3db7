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
    Row,
    answer,
    count_verdicts,
)


def number(verdict, so_far=None, run=MEAN, **changes) -> Row:
    row = Row(1, "Mamba", 1, False, 2, None, run, "RMSE", verdict=verdict, so_far=so_far)
    return Row(**{**vars(row), **changes})


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
        number(NOT_COMPARABLE, figure=2, paper_state=None),
        number(NOT_COMPARABLE, quantity="MSE", paper=None, run=7),
    ]
    papers = [
        number(AGREES, figure=2, paper_state="1", run=None),
        number(AGREES, quantity="MSE", paper=1e-8, run=0),
    ]
    counts = count_verdicts([*others, *papers])
    assert {verdict: n for verdict, n in counts.items() if n} == {AGREES: 2}
    assert answer([*others, *papers]).startswith("Yes: of the paper's 2 numbers")
