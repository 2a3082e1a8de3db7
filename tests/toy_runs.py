"""Runs on the toy task, in memory and as files, for the tests of what reads them."""

from pathlib import Path

import numpy as np

from harness.file_names import ToyCurveKey, ToyScoreKey
from harness.paths import TOY_RESULTS
from recorded import write_record
from verdict.results import ToyCurve, ToyResults, ToyScore, published_results

FIGURE_1 = published_results()["figure_1"]
PAPER_MSE = FIGURE_1["linear_cde"]["mse"]


def score(factor=1.0, input_dim=2, run=0, **config) -> ToyScore:
    return ToyScore(input_dim, run, PAPER_MSE[input_dim][run] * factor, config)


def curve(
    values, model="Mamba", depth=1, nonlinear=False, input_dim=2, run=0, hidden_dim=256, **config
) -> ToyCurve:
    key = ToyCurveKey(model, depth, nonlinear, input_dim, 0.0001, hidden_dim, run)
    return ToyCurve(key, np.array(list(values), float), np.array(list(values.values())), config)


def write_results(results_dir: Path, results: ToyResults) -> Path:
    """Write the files, with a record where there is a config; returns their folder."""
    folder = results_dir / TOY_RESULTS
    folder.mkdir(parents=True)
    for s in results.scores:
        path = folder / ToyScoreKey(s.input_dim, s.run).names[0]
        np.save(path, np.array(s.mse))
        if s.config:
            write_record([path], {"input_dim": s.input_dim, "run": s.run, **s.config})
    for c in results.curves:
        paths = [folder / name for name in c.key.names]
        for path, array in zip(paths, (c.steps, c.rmse), strict=True):
            np.save(path, array)
        if c.config:
            write_record(paths, c.settings)
    return folder
