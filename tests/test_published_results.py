from verdict.figure_1 import IDENTITY
from verdict.results import published_results

PUBLISHED = published_results()
FIGURE_1 = PUBLISHED["figure_1"]


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
    assert FIGURE_1["linear_cde"]["mse"][2][0] == 4.149159e-08
    assert FIGURE_1["linear_cde"]["mse"][3][4] == 4.939035e-05
    assert FIGURE_1["predicting_zero"]["rmse"] == {2: 0.11195025, 3: 0.058498096}
    curves = FIGURE_1["sequence_models"]["curves"]
    assert len({tuple(c[name] for name in IDENTITY) for c in curves}) == 18
    for paper_curve in curves:
        for value in paper_curve["rmse"].values():
            ordered = [value[name] for name in ("min", "mean", "max") if name in value]
            assert ordered == sorted(ordered)
        assert "mean" in paper_curve["rmse"][FIGURE_1["sequence_models"]["last_step"]]
    table = PUBLISHED["figure_2"]["min_blocks"]
    assert {len(blocks) for blocks in table["models"].values()} == {len(table["lengths"])} == {14}
    assert table["models"]["S4"] == [1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 4, 4, 4, None]
