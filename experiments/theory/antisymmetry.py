"""The signature's fully antisymmetric part: Σ_σ sgn(σ) S^{σ(1)…σ(m)}, and which blocks see it.

Its coefficient in a Linear CDE's state is Σ_σ sgn(σ) A_σ(1)…A_σ(m), the standard polynomial, which
vanishes on k×k matrices from m = 2k on (Amitsur and Levitzki, 1950). Letters: k block size, m
level, n points of a path, N paths.
"""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from data_dir.datasets import load_toy_dataset
from harness.records import Run

MATRICES, WALKS = 17, 19  # after the seed: what tells these random numbers from others
LARGEST_ENTRY = 9


def do_algebra(run: Run) -> tuple[list[np.ndarray], dict[str, Any], dict[str, str]]:
    """The standard polynomial's largest entry, by size, for each draw and m = 1 … 2k + 1.

    Whole numbers, as float64 (draws, 2k + 1); random integer matrices, so no rounding.
    """
    size, draws = run.config["block_size"], run.config["draws"]
    rng = np.random.default_rng([run.config["seed"], MATRICES, size])
    largest = np.zeros((draws, 2 * size + 1))
    for draw in range(draws):
        shape = (2 * size + 1, size, size)
        matrices = rng.integers(-LARGEST_ENTRY, LARGEST_ENTRY, shape, endpoint=True)
        for m in range(1, 2 * size + 2):
            largest[draw, m - 1] = np.max(np.abs(standard_polynomial(matrices[:m])))
    first_zero = 1 + int(np.argmax(~largest.any(axis=0)))
    return [largest], {"zero_in_all_draws_from": first_zero}, {}


def standard_polynomial(matrices: Integer[np.ndarray, "m k k"]) -> np.ndarray:
    """Σ_σ sgn(σ) A_σ(1)…A_σ(m) in Python's integers, which have no largest: (k, k) of objects.

    By the first factor: over a set of letters it is the sum of ± A_i times that of the others.
    """
    matrices = matrices.astype(object)
    letters = range(len(matrices))
    smaller = {(): np.eye(matrices.shape[1], dtype=int).astype(object)}
    for size in range(1, len(matrices) + 1):
        smaller = {
            chosen: sum(
                (-1) ** place * (matrices[i] @ smaller[chosen[:place] + chosen[place + 1 :]])
                for place, i in enumerate(chosen)
            )
            for chosen in combinations(letters, size)
        }
    return smaller[tuple(letters)]


def antisymmetric_terms(paths: Float[np.ndarray, "N n m"]) -> Float[np.ndarray, " N"]:
    """Σ_σ sgn(σ) S^{σ(1)…σ(m)} of piecewise linear paths in m dimensions, float64.

    The antisymmetric parts of all levels are the signature's image in the exterior algebra, where a
    straight piece is 1 + ΔX, since ΔX ∧ ΔX = 0; they multiply as the pieces follow each other.
    """
    dim = paths.shape[2]
    subsets = [s for size in range(dim + 1) for s in combinations(range(dim), size)]
    parts = {s: np.full(len(paths), float(not s)) for s in subsets}
    for increments in np.moveaxis(np.diff(paths.astype(np.float64), axis=1), (1, 2), (0, 1)):
        for chosen in reversed(subsets):  # larger ones first: they take the others as they were
            for place, i in enumerate(chosen):
                sign = (-1) ** (len(chosen) - 1 - place)  # the piece's letter moves to the end
                parts[chosen] = parts[chosen] + (
                    sign * parts[chosen[:place] + chosen[place + 1 :]] * increments[i]
                )
    return parts[tuple(range(dim))]


def lattice_walks(num_paths: int, steps: int, dim: int, seed: int) -> Float[np.ndarray, "N n dim"]:
    """Walks from 0 with every coordinate's steps in {-1, 0, 1}, over the largest value; float32."""
    rng = np.random.default_rng([seed, WALKS, dim])
    moves = rng.integers(-1, 1, (num_paths, steps, dim), endpoint=True)
    walks = np.concatenate([np.zeros((num_paths, 1, dim)), np.cumsum(moves, axis=1)], axis=1)
    return (walks / np.max(np.abs(walks))).astype(np.float32)


def do_floor(run: Run, data_dir: Path) -> tuple[list[np.ndarray], dict[str, Any], dict[str, str]]:
    """The least RMSE on the volume that diagonal fields can reach, and that of zero, (2,).

    Both of the validation labels. Raises: DataError.
    """
    settings = {key: run.config[key] for key in ("num_paths", "train_fraction", "paper_data")}
    data = load_toy_dataset(data_dir, 3, **settings)
    paths, labels = data.paths[data.num_train :], data.labels[data.num_train :]
    zero = float(np.sqrt(np.mean(labels.astype(np.float64) ** 2)))
    floor = invisible_to_diagonal(paths) * zero
    return [np.array([floor, zero])], {"rmse": floor, "predicting_zero": zero}, data.digests


def invisible_to_diagonal(paths: Float[np.ndarray, "N n 3"]) -> float:
    """RMS of what diagonal fields cannot see of S^123, over that of S^123.

    It is half of Σ_{i<j<k} ΔX¹_i (ΔX²_j ΔX³_k − ΔX³_j ΔX²_k), if increments are independent,
    alike and of mean 0: docs/theory.md has the proof.
    """
    x, y, z = np.moveaxis(np.diff(paths.astype(np.float64), axis=1), (2, 1), (0, 1))
    left = (ordered_sums(x, y, z) - ordered_sums(x, z, y)) / 2
    return float(np.sqrt(np.mean(left**2) / np.mean(volume(x, y, z) ** 2)))


def ordered_sums(*letters: Float[np.ndarray, "intervals N"]) -> Float[np.ndarray, " N"]:
    """Σ_{i<j<…} ΔX_i ΔY_j …: the signature's term without what happens within an interval."""
    found = letters[0]
    for increments in letters[1:]:
        found = increments * (np.cumsum(found, axis=0) - found)
    return found.sum(axis=0)


def volume(
    x: Float[np.ndarray, "intervals N"],
    y: Float[np.ndarray, "intervals N"],
    z: Float[np.ndarray, "intervals N"],
) -> Float[np.ndarray, " N"]:
    """S^123 of piecewise linear paths, of its increments: a straight piece has ΔX^(⊗m) / m!."""
    ordered = ordered_sums(x, y, z) + ordered_sums(x * y, z) / 2 + ordered_sums(x, y * z) / 2
    return ordered + ordered_sums(x * y * z) / 6
