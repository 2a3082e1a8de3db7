"""Runs on A5, in memory and as released files, for the tests of what reads them."""

from pathlib import Path

import numpy as np

from harness.file_names import A5CurveKey, A5ScoreKey
from harness.paths import A5_RESULTS
from verdict.figure_2 import Search, search
from verdict.results import LINEAR_CDE, A5Curve, A5Results, load_a5_results, published_results

PUBLISHED = published_results()["figure_2"]
TABLE = PUBLISHED["min_blocks"]
LENGTHS = TABLE["lengths"]
# Values as in the paper's released files, typed here a second time.
PAPER_TABLE = """
| RNN | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 |
| Linear CDE | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 |
| S4 | 1 | 1 | 2 | 2 | 2 | 2 | 3 | 3 | 4 | 4 | 4 | 4 | 4 | – |
| Transformer | 1 | 1 | 1 | 1 | 2 | 3 | 3 | 3 | 4 | 4 | 4 | 4 | – | – |
| Mamba | 1 | 2 | 2 | 2 | 2 | 3 | 3 | 3 | 4 | 4 | – | – | – | – |
"""
RATES = {"RNN": 0.0001, "S4": 0.0001, "Transformer": 0.0002}


def key_of(model: str, depth: int, length: int, **changes) -> A5ScoreKey | A5CurveKey:
    if model == LINEAR_CDE:
        return A5ScoreKey(length)
    rate = RATES.get(model, 0.0003 if depth <= 2 else 0.0001)
    batch = {"batch_size": 64} if model == "Transformer" and length in (16, 18) else {}
    settings = {"learning_rate": rate, "hidden_dim": 1024, "seed": 2345} | batch | changes
    return A5CurveKey(model, length, depth, **settings)


def write_run(results_dir, model, depth, length, steps=(0, 10000), accs=(0.02, 0.95), **changes):
    folder = results_dir / A5_RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    paths = key_of(model, depth, length, **changes).paths(folder)
    np.save(paths[0], np.array(steps))
    np.save(paths[1], np.array(accs))
    return paths


def found_in(results_dir: Path) -> Search:
    return search(load_a5_results(results_dir), PUBLISHED)


def curve(model, depth, length, best=0.95, last=10000, **config) -> A5Curve:
    return A5Curve(model, length, depth, config, np.array([0.0, last]), np.array([0.02, best]))


def found_of(*curves) -> Search:
    return search(A5Results(list(curves)), PUBLISHED)


def failure(model, depth, length, **config) -> A5Curve:
    return curve(model, depth, length, best=0.5, last=990000, **config)


def lines_of(figure) -> dict:
    (axes,) = figure.axes
    return {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def table_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]
