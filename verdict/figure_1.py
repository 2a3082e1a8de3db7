"""Validation errors on the toy task (Figure 1): ours beside the paper's."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from harness.file_names import Key, ToyScoreKey
from verdict.results import LINEAR_CDE, ToyResults
from verdict.rows import (
    AGREES,
    BETTER,
    MEAN,
    NOT_COMPARABLE,
    PARTIAL,
    ROUNDING,
    WORSE,
    ErrorRow,
    defects,
    departures,
    unrecorded,
    verdict_without_result,
)

MSE_TOLERANCE = 0.05
GPU_ROUNDING = {2: (0.55, 0.85)}  # MSE in float32 as a part of the paper's, by input dimension
BAND_WIDENING = 0.25
ZERO_TOLERANCE = 0.02
TIME_INVARIANT = ("S4", "S5")  # without a nonlinearity these cannot do better than predicting zero
IDENTITY = ("model", "depth", "nonlinear", "input_dim")
LINEAR_CDE_RULE = (
    "Figure 1, Linear CDE: the MSE of a run against the same run of the paper's, and the mean over "
    f"our runs against the paper's mean over the same runs; within {MSE_TOLERANCE:.0%} agrees."
)
SEQUENCE_MODEL_RULE = (
    "Figure 1, sequence models: the RMSE at the last published step; from "
    f"{1 - BAND_WIDENING:g} times the paper's least run to {1 + BAND_WIDENING:g} times its "
    "greatest agrees, for a single run as for the mean over the runs that got furthest. S4 and S5 "
    f"without a nonlinearity learn nothing: within {ZERO_TOLERANCE:.0%} of predicting zero agrees, "
    "at every step. 'from range': how far outside the paper's range (or from predicting zero)."
)
PRECISION_NOTE = (
    "'GPU rounding': the paper ran on an NVIDIA GPU, whose matmuls round their inputs to TF32; "
    f"without that, in float32, the 2D MSE is {GPU_ROUNDING[2][0]} to {GPU_ROUNDING[2][1]} of the "
    "paper's. Beside it stands what the same run gave in TF32 "
    "(experiment_configs/lcde_toy_tf32.yaml), where tf32/ of the results folder has it."
)


def compare(results: ToyResults, published: dict) -> list[ErrorRow]:
    """Rows of every number; `published` is that part of published_results.yaml."""
    rows = []
    for input_dim in published["linear_cde"]["mse"]:
        rows += _linear_cde_rows(results, published["linear_cde"], input_dim)
    for paper_curve in published["sequence_models"]["curves"]:
        rows += _sequence_model_rows(results, published, paper_curve)
    return rows + _unpublished_rows(results, published)


def _linear_cde_rows(results: ToyResults, published: dict, input_dim: int) -> list[ErrorRow]:
    paper = dict(enumerate(published["mse"][input_dim]))
    scores = {score.run: score for score in results.scores if score.input_dim == input_dim}
    unusable = defects(results.problems)
    rows = []
    for run in sorted(paper.keys() | scores.keys()):
        row = ErrorRow(LINEAR_CDE, None, None, input_dim, run, "MSE", paper=paper.get(run))
        fault = unusable.get(ToyScoreKey(input_dim, run), "")
        if run not in scores:
            rows.append(replace(row, verdict=verdict_without_result([fault]), note=fault))
            continue
        config = scores[run].config
        precision = config.get("matmul_precision")
        row = replace(row, ours=scores[run].mse, precision=precision and str(precision))
        unpublished = "" if run in paper else "the paper has no such run"
        # The number is sound, so a fault is in its record.
        if note := _joined(*departures(config, published["settings"]), fault, unpublished):
            rows.append(replace(row, verdict=NOT_COMPARABLE, note=note))
        else:
            notes = unrecorded(config, published["settings"]) if config else []
            rows.append(_judge_mse(replace(row, note=_joined(*notes))))
    return [*rows, _linear_cde_mean(rows, len(paper))]


def _linear_cde_mean(rows: list[ErrorRow], paper_runs: int) -> ErrorRow:
    """The mean over the comparable runs, against the paper's mean over the same runs."""
    used = [row for row in rows if row.low is not None]
    same_runs = used or [row for row in rows if row.paper is not None]
    mean = ErrorRow(LINEAR_CDE, None, None, rows[0].input_dim, MEAN, "MSE")
    mean = replace(mean, paper=_mean(same_runs, "paper"))
    if not used:
        return replace(mean, verdict=_verdict_without_runs(rows))
    precision = ", ".join(sorted({row.precision for row in used if row.precision})) or None
    runs = ", ".join(str(row.run) for row in used)
    note = f"both over run {runs}" if len(used) < paper_runs else ""
    mean = replace(mean, ours=_mean(used, "ours"), precision=precision, note=note)
    return _judge_mse(mean)


def _judge_mse(row: ErrorRow) -> ErrorRow:
    judged = _judge(row, row.paper, row.paper, MSE_TOLERANCE)
    least, greatest = GPU_ROUNDING.get(row.input_dim, (0, 0))
    rounding = row.precision == "float32" and least <= row.ours / row.paper <= greatest
    return replace(judged, verdict=ROUNDING) if rounding else judged


def beside_tf32(rows: list[ErrorRow], tf32: list[ErrorRow]) -> list[ErrorRow]:
    """The rows, those of GPU rounding with what the same run gave in TF32, from its own rows."""
    found = {(row.input_dim, row.run): row for row in tf32 if row.precision == "tf32"}
    beside = []
    for row in rows:
        if row.verdict == ROUNDING and (same := found.get((row.input_dim, row.run))):
            reason = f" ({same.note})" if same.note else ""
            said = f"in TF32 {same.ours:.4e}, {same.difference}: {same.verdict}{reason}"
            row = replace(row, note=_joined(row.note, said))
        beside.append(row)
    return beside


def _sequence_model_rows(results: ToyResults, published: dict, paper_curve: dict) -> list[ErrorRow]:
    """One row a run, and one for the mean over the runs that got furthest."""
    settings = published["sequence_models"]["settings"]
    blank = ErrorRow(*(paper_curve[name] for name in IDENTITY), MEAN, "RMSE")
    unusable = defects(results.problems)
    rows = []
    for curve in results.curves:
        if not _is_of(curve.key, paper_curve):
            continue
        values = dict(zip(curve.steps.astype(int).tolist(), curve.rmse.tolist(), strict=True))
        row = replace(blank, run=curve.key.run)
        # The curve is sound, so a fault is in its record.
        if note := _joined(*departures(curve.settings, settings), unusable.get(curve.key, "")):
            step = max(values)
            row = replace(row, step=step, ours=values[step], verdict=NOT_COMPARABLE, note=note)
        else:
            shared = paper_curve["rmse"].keys() & values.keys() - {0}
            step = max(shared, default=max(values))
            row = _judge_rmse(replace(row, step=step, ours=values[step]), published, paper_curve)
            notes = unrecorded(curve.settings, settings) if curve.config else []
            row = replace(row, note=_joined(row.note, *notes))
        rows.append(row)
    return [*rows, _sequence_model_mean(rows, blank, results, published, paper_curve)]


def _is_of(key: Key, paper_curve: dict) -> bool:
    return all(getattr(key, name, None) == paper_curve[name] for name in IDENTITY)


def _sequence_model_mean(
    rows: list[ErrorRow], blank: ErrorRow, results: ToyResults, published: dict, paper_curve: dict
) -> ErrorRow:
    unusable = defects(results.problems).items()
    notes = [f"run {key.run}: {reason}" for key, reason in unusable if _is_of(key, paper_curve)]
    comparable = [row for row in rows if row.verdict != NOT_COMPARABLE]
    if not comparable:
        last_step = published["sequence_models"]["last_step"]
        low, high = _limits(*_deciding(last_step, published, paper_curve))
        verdict, note = _verdict_without_runs(rows, notes), "; ".join(notes)
        mean = replace(blank, step=last_step, low=low, high=high, verdict=verdict, note=note)
        return _beside_paper(mean, paper_curve)
    step = max(row.step for row in comparable)
    used = [row for row in comparable if row.step == step]
    mean = _judge_rmse(replace(blank, step=step, ours=_mean(used, "ours")), published, paper_curve)
    paper_runs = published["sequence_models"]["runs"]
    if len(used) < paper_runs:
        notes.insert(0, f"over {len(used)} of {paper_runs} runs")
    return replace(mean, note=_joined(mean.note, *notes))


def _unpublished_rows(results: ToyResults, published: dict) -> list[ErrorRow]:
    """Runs of configurations that the paper does not have."""
    known = {tuple(c[name] for name in IDENTITY) for c in published["sequence_models"]["curves"]}
    rows = []
    for curve in results.curves:
        identity = tuple(getattr(curve.key, name) for name in IDENTITY)
        if identity not in known:
            row = ErrorRow(*identity, curve.key.run, "RMSE", step=int(curve.steps[-1]))
            row = replace(row, ours=float(curve.rmse[-1]), verdict=NOT_COMPARABLE)
            rows.append(replace(row, note="the paper has no such configuration"))
    return rows


def _judge_rmse(row: ErrorRow, published: dict, paper_curve: dict) -> ErrorRow:
    """Compare at the row's step; at any step but the last the verdict is 'partial'."""
    row = _beside_paper(row, paper_curve)
    deciding = _deciding(row.step, published, paper_curve)
    if deciding is None:
        return replace(row, verdict=PARTIAL, note="no published range at this step")
    judged = _judge(row, *deciding)
    if row.step == published["sequence_models"]["last_step"]:
        return judged
    note = "inside the band so far" if judged.verdict == AGREES else f"{judged.verdict} so far"
    return replace(judged, verdict=PARTIAL, so_far=judged.verdict, note=note)


def _beside_paper(row: ErrorRow, paper_curve: dict) -> ErrorRow:
    """Fill in what is published at the row's step."""
    value = paper_curve["rmse"].get(row.step, {})
    return replace(
        row, paper=value.get("mean"), paper_min=value.get("min"), paper_max=value.get("max")
    )


def _judge(row: ErrorRow, least: float, greatest: float, widening: float) -> ErrorRow:
    """Decide by the paper's range, a part of itself wider at both ends; lower is better."""
    low, high = _limits(least, greatest, widening)
    verdict = BETTER if row.ours < low else AGREES if row.ours <= high else WORSE
    difference = row.ours / min(max(row.ours, least), greatest) - 1
    return replace(row, verdict=verdict, relative_difference=difference, low=low, high=high)


def _limits(least: float, greatest: float, widening: float) -> tuple[float, float]:
    return least * (1 - widening), greatest * (1 + widening)


def _deciding(step: int, published: dict, paper_curve: dict) -> tuple[float, float, float] | None:
    """The range that an RMSE at a step is judged by and its widening; None if none is published."""
    if paper_curve["model"] in TIME_INVARIANT and not paper_curve["nonlinear"] and step > 0:
        zero = published["predicting_zero"]["rmse"][paper_curve["input_dim"]]
        return zero, zero, ZERO_TOLERANCE
    value = paper_curve["rmse"].get(step, {})
    # At step 0 nothing is trained, so that there is nothing to compare.
    return (value["min"], value["max"], BAND_WIDENING) if step and "min" in value else None


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _mean(rows: list[ErrorRow], name: str) -> float:
    return float(np.mean([getattr(row, name) for row in rows]))


def _verdict_without_runs(rows: list[ErrorRow], notes: Sequence[str] = ()) -> str:
    not_comparable = any(row.verdict == NOT_COMPARABLE for row in rows)
    return NOT_COMPARABLE if not_comparable else verdict_without_result(notes)
