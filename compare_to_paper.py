"""Our numbers beside the paper's, each with a verdict; `RULES` says how it is reached."""

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

import compare_figure_2
from comparison import (
    AGREES,
    BETTER,
    DISAGREES,
    NOT_COMPARABLE,
    NOT_RUN,
    PARTIAL,
    VERDICT_STYLES,
    WORSE,
    Row,
    defects,
)
from result_files import (
    LINEAR_CDE,
    PUBLISHED_RESULTS,
    REPO_ROOT,
    ToyResults,
    configuration_label,
    departures,
    load_a5_results,
    load_toy_results,
    parse_toy_curve_name,
    parse_toy_lcde_name,
)

MSE_TOLERANCE = 0.05
BAND_WIDENING = 0.25
ZERO_TOLERANCE = 0.02
TIME_INVARIANT = ("S4", "S5")  # without a nonlinearity these cannot do better than predicting zero
MEAN = "mean"
MIN_WIDTH = 110  # columns of text where the output is not a terminal
WRAPPED = ("model", "agrees within", "verdict", "note")  # columns that a narrow terminal may fold
IDENTITY = ("model", "depth", "nonlinear", "input_dim")

RULES = [
    "Figure 1, Linear CDE: the MSE of a run against the same run of the paper's, and the mean over "
    f"our runs against the paper's mean over the same runs; within {MSE_TOLERANCE:.0%} agrees.",
    "Figure 1, sequence models: the RMSE at the last published step; from "
    f"{1 - BAND_WIDENING:g} times the paper's least run to {1 + BAND_WIDENING:g} times its "
    "greatest agrees. S4 and S5 without a nonlinearity learn nothing: within "
    f"{ZERO_TOLERANCE:.0%} of predicting zero agrees. The mean is taken over the runs that got "
    "furthest.",
    "Lower is 'better outside the band', higher is 'worse outside the band'. 'partial': training "
    "stopped early, so the step is the last published one it recorded. 'not comparable': the "
    "settings are not the paper's.",
    compare_figure_2.RULE,
]
PRECISION_FOOTNOTE = (
    "Precision: in float32 the 2D MSE is expected at 0.55 to 0.85 of the paper's, because the "
    "paper ran on an NVIDIA GPU, whose matmuls round their inputs to TF32. TF32 runs "
    "(experiment_configs/lcde_toy_tf32.yaml, results/tf32) reproduce the paper's number."
)
DESCRIPTION = """Print the paper's numbers, ours, and whether they agree.

Exit code: 0 whatever the verdicts; with --strict, 1 if any verdict is 'worse outside the band' or
'disagrees' or any result file is unusable ('better outside the band' does not fail); 2 for bad
arguments."""
EXAMPLES = """examples:
  python compare_to_paper.py
  python compare_to_paper.py --results-dir results/tf32 --format markdown
  python compare_to_paper.py --format json --strict
"""


def compare_figure_1(results: ToyResults, published: dict) -> list[Row]:
    """All rows of Figure 1; `published` is that part of published_results.yaml."""
    rows = []
    for input_dim in published["linear_cde"]["mse"]:
        rows += _linear_cde_rows(results, published["linear_cde"], input_dim)
    for paper_curve in published["sequence_models"]["curves"]:
        rows += _sequence_model_rows(results, published, paper_curve)
    return rows + _unpublished_rows(results, published)


def _linear_cde_rows(results: ToyResults, published: dict, input_dim: int) -> list[Row]:
    paper = dict(enumerate(published["mse"][input_dim]))
    scores = {score.run: score for score in results.scores if score.input_dim == input_dim}
    unusable = defects(results.problems, parse_toy_lcde_name)
    rows = []
    for run in sorted(paper.keys() | scores.keys()):
        row = Row(1, LINEAR_CDE, None, None, input_dim, None, run, "MSE", paper=paper.get(run))
        if run not in scores:
            rows.append(replace(row, note=unusable.get((input_dim, run), "")))
            continue
        config = scores[run].config
        row = replace(row, ours=scores[run].mse, precision=config.get("matmul_precision"))
        differences = departures(config, published["settings"])
        if (input_dim, run) in unusable:  # the number is sound, so the fault is in its record
            differences.append(unusable[input_dim, run])
        if run not in paper:
            differences.append("the paper has no such run")
        if differences:
            rows.append(replace(row, verdict=NOT_COMPARABLE, note="; ".join(differences)))
        else:
            rows.append(_judge(row, *_around(row.paper, MSE_TOLERANCE)))
    return [*rows, _linear_cde_mean(rows, len(paper))]


def _linear_cde_mean(rows: list[Row], paper_runs: int) -> Row:
    """The mean over the comparable runs, against the paper's mean over the same runs."""
    used = [row for row in rows if row.low is not None]
    same_runs = used or [row for row in rows if row.paper is not None]
    mean = Row(1, LINEAR_CDE, None, None, rows[0].input_dim, None, MEAN, "MSE")
    mean = replace(mean, paper=_mean(same_runs, "paper"))
    if not used:
        return replace(mean, verdict=_verdict_without_runs(rows))
    precision = ", ".join(sorted({row.precision for row in used if row.precision})) or None
    runs = ", ".join(str(row.run) for row in used)
    note = f"both over run {runs}" if len(used) < paper_runs else ""
    mean = replace(mean, ours=_mean(used, "ours"), precision=precision, note=note)
    return _judge(mean, *_around(mean.paper, MSE_TOLERANCE))


def _sequence_model_rows(results: ToyResults, published: dict, paper_curve: dict) -> list[Row]:
    """One row a run, and one for the mean over the runs that got furthest."""
    settings = published["sequence_models"]["settings"]
    blank = Row(1, *(paper_curve[name] for name in IDENTITY), None, MEAN, "RMSE")
    rows = []
    for curve in results.curves:
        if any(getattr(curve.key, name) != paper_curve[name] for name in IDENTITY):
            continue
        values = dict(zip(curve.steps.astype(int).tolist(), curve.rmse.tolist(), strict=True))
        row = replace(blank, run=curve.key.run)
        differences = departures(vars(curve.key), settings)
        if differences:
            row = replace(row, verdict=NOT_COMPARABLE, note="; ".join(differences))
            rows.append(_at_step(row, max(values), values))
        else:
            step = max(paper_curve["rmse"].keys() & values.keys(), default=max(values))
            rows.append(_judge_rmse(_at_step(row, step, values), published, paper_curve))
    return [*rows, _sequence_model_mean(rows, blank, results, published, paper_curve)]


def _at_step(row: Row, step: int, values: dict[int, float]) -> Row:
    return replace(row, step=step, ours=values[step])


def _sequence_model_mean(
    rows: list[Row], blank: Row, results: ToyResults, published: dict, paper_curve: dict
) -> Row:
    notes = [
        f"run {key.run} unusable: {reason}"
        for (_, key), reason in defects(results.problems, parse_toy_curve_name).items()
        if all(getattr(key, name) == paper_curve[name] for name in IDENTITY)
    ]
    comparable = [row for row in rows if row.verdict != NOT_COMPARABLE]
    if not comparable:
        last_step = published["sequence_models"]["last_step"]
        paper = paper_curve["rmse"][last_step]["mean"]
        low, high = _band(last_step, published, paper_curve)
        mean = replace(blank, step=last_step, paper=paper, low=low, high=high)
        return replace(mean, verdict=_verdict_without_runs(rows), note="; ".join(notes))
    step = max(row.step for row in comparable)
    used = [row for row in comparable if row.step == step]
    mean = replace(blank, step=step, ours=_mean(used, "ours"))
    mean = _judge_rmse(mean, published, paper_curve)
    paper_runs = published["sequence_models"]["runs"]
    if len(used) < paper_runs:
        notes.insert(0, f"over {len(used)} of {paper_runs} runs")
    return replace(mean, note="; ".join([mean.note, *notes] if mean.note else notes))


def _unpublished_rows(results: ToyResults, published: dict) -> list[Row]:
    """Runs of configurations that the paper does not have."""
    known = {tuple(c[name] for name in IDENTITY) for c in published["sequence_models"]["curves"]}
    rows = []
    for curve in results.curves:
        identity = tuple(getattr(curve.key, name) for name in IDENTITY)
        if identity not in known:
            row = Row(1, *identity, None, curve.key.run, "RMSE", step=int(curve.steps[-1]))
            row = replace(row, ours=float(curve.rmse[-1]), verdict=NOT_COMPARABLE)
            rows.append(replace(row, note="the paper has no such configuration"))
    return rows


def _judge_rmse(row: Row, published: dict, paper_curve: dict) -> Row:
    """Compare at the row's step; at any step but the last the verdict is 'partial'."""
    row = replace(row, paper=paper_curve["rmse"].get(row.step, {}).get("mean"))
    judged = _judge(row, *_band(row.step, published, paper_curve))
    if row.step == published["sequence_models"]["last_step"]:
        return judged
    if judged.low is None:
        note = "no published range at this step"
    else:
        note = "inside the band so far" if judged.verdict == AGREES else f"{judged.verdict} so far"
    return replace(judged, verdict=PARTIAL, note=note)


def _judge(row: Row, low: float | None, high: float | None) -> Row:
    """Decide by the limits of 'agrees', where lower is better; without limits, don't decide."""
    verdict = row.verdict
    if low is not None:
        verdict = BETTER if row.ours < low else AGREES if row.ours <= high else WORSE
    difference = row.ours / row.paper - 1 if row.paper else None
    return replace(row, verdict=verdict, relative_difference=difference, low=low, high=high)


def _band(step: int, published: dict, paper_curve: dict) -> tuple[float, float] | tuple[None, None]:
    """The limits of 'agrees' for an RMSE at a step; (None, None) where no range is published."""
    last_step = published["sequence_models"]["last_step"]
    learns_nothing = paper_curve["model"] in TIME_INVARIANT and not paper_curve["nonlinear"]
    if step == last_step and learns_nothing:
        zero = published["predicting_zero"]["rmse"][paper_curve["input_dim"]]
        return _around(zero, ZERO_TOLERANCE)
    value = paper_curve["rmse"].get(step, {})
    if "min" not in value:
        return None, None
    return value["min"] * (1 - BAND_WIDENING), value["max"] * (1 + BAND_WIDENING)


def _around(value: float, tolerance: float) -> tuple[float, float]:
    return value * (1 - tolerance), value * (1 + tolerance)


def _mean(rows: list[Row], name: str) -> float:
    return float(np.mean([getattr(row, name) for row in rows]))


def _verdict_without_runs(rows: list[Row]) -> str:
    return NOT_COMPARABLE if any(row.verdict == NOT_COMPARABLE for row in rows) else NOT_RUN


def as_json(rows: list[Row]) -> str:
    """A list of objects, one a row."""
    return json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False)


def tables(rows: list[Row]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, headings and cells of the tables that text and markdown share."""
    figure_1 = [row for row in rows if row.figure == 1]
    linear_cde = [row for row in figure_1 if row.model == LINEAR_CDE]
    others = [row for row in figure_1 if row.model != LINEAR_CDE]
    common = ["input", "run", "ours", "paper", "difference"]
    return [
        (
            "Figure 1, Linear CDE: validation MSE",
            [*common, "verdict", "precision", "note"],
            [[*_numbers(r, ".4e"), r.verdict, r.precision or "-", r.note] for r in linear_cde],
        ),
        (
            "Figure 1, sequence models: validation RMSE",
            ["model", *common, "at step", "agrees within", "verdict", "note"],
            [
                [_name(r), *_numbers(r, ".4f"), f"{r.step:,}", _limits(r), r.verdict, r.note]
                for r in others
            ],
        ),
        compare_figure_2.table([row for row in rows if row.figure == 2]),
    ]


def _name(row: Row) -> str:
    return configuration_label(row.model, row.depth, row.nonlinear)


def _numbers(row: Row, form: str) -> list[str]:
    ours, paper = ("-" if x is None else format(x, form) for x in (row.ours, row.paper))
    change = "-" if row.relative_difference is None else f"{row.relative_difference:+.1%}"
    return [f"{row.input_dim}D", str(row.run), ours, paper, change]


def _limits(row: Row) -> str:
    return "-" if row.low is None else f"{row.low:.4f} to {row.high:.4f}"


def footnotes(rows: list[Row]) -> list[str]:
    """The rules behind the verdicts, and what explains a difference in these rows."""
    return RULES + ([PRECISION_FOOTNOTE] if any(row.precision for row in rows) else [])


def summary(rows: list[Row]) -> str:
    """How many rows got each verdict."""
    counts = Counter(row.verdict for row in rows)
    return f"{len(rows)} numbers: " + ", ".join(f"{v} {counts[v]}" for v in VERDICT_STYLES)


def as_markdown(rows: list[Row]) -> str:
    """The tables, the footnotes and the summary."""
    parts = []
    for title, headings, cells in tables(rows):
        lines = [headings, ["---"] * len(headings), *cells]
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        parts += [f"## {title}", "\n".join(f"| {' | '.join(line)} |" for line in escaped)]
    return "\n\n".join([*parts, *footnotes(rows), summary(rows)])


def print_text(rows: list[Row]) -> None:
    """Print the tables to the terminal, as wide as they need where the output is not one."""
    built = [_rich_table(*table) for table in tables(rows)]
    console = Console(highlight=False)
    if not console.is_terminal:
        wide = Console(width=10_000)
        console.width = max(MIN_WIDTH, *(wide.measure(table).maximum for table in built))
    for table in built:
        console.print(table)
    for paragraph in [*footnotes(rows), summary(rows)]:
        console.print(Text(paragraph), width=min(console.width, MIN_WIDTH))


def _rich_table(title: str, headings: list[str], cells: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading not in WRAPPED)
    in_section = 0
    for line, following in zip(cells, [*cells[1:], None], strict=True):
        styled = [Text(cell, style=VERDICT_STYLES.get(cell, "")) for cell in line]
        in_section += 1
        ends = following is not None and following[0] != line[0]
        table.add_row(*styled, end_section=ends and in_section > 1)
        in_section = 0 if ends else in_section
    return table


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--results-dir",
        type=Path,
        default=REPO_ROOT / "results",
        help="folder that holds outputs_toy/ and outputs_A5/ (default: results in the repository)",
    )
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    parser.add_argument(
        "--strict",
        action="store_true",
        help=f"exit 1 if any verdict is {WORSE!r} or {DISAGREES!r}, or any result file is unusable",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Print the comparison. Exit code: 0, 1 (--strict), 2 (bad arguments)."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        toy, a5 = load_toy_results(args.results_dir), load_a5_results(args.results_dir)
    except NotADirectoryError as error:
        parser.error(f"--results-dir: {error}")
    problems = toy.problems + a5.problems
    for problem in problems:
        print(f"warning: skipped {problem}", file=sys.stderr)
    published = yaml.safe_load(PUBLISHED_RESULTS.read_text(encoding="utf-8"))
    rows = compare_figure_1(toy, published["figure_1"])
    rows += compare_figure_2.compare(a5, published["figure_2"])
    if args.format == "text":
        print_text(rows)
    else:
        print(as_json(rows) if args.format == "json" else as_markdown(rows))
    failed = bool(problems) or any(row.verdict in (WORSE, DISAGREES) for row in rows)
    return 1 if args.strict and failed else 0


if __name__ == "__main__":
    sys.exit(main())
