"""Random dense Linear CDEs and the signature kernel: <Z^x, Z^y> / N tends to it as N grows.

Section 4 of the paper: the state is a linear map of the signature. Letters: N size of the state, d
path dimension, n points of a path, P paths.
"""

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from data_dir.datasets import load_toy_dataset
from harness.progress import progress_bar
from harness.records import Run

INPUT_DIM = 2
DRAWS = 11  # after the seed: what tells these random numbers from others
# The two kernels part by so much at most, relative to the largest: far below what is measured.
AGREEMENT = 1e-4


def do_kernel(run: Run, data_dir: Path) -> tuple[list[np.ndarray], dict[str, Any], dict[str, str]]:
    """The error of ⟨Z^x, Z^y⟩ / N for each draw of A and Z_0: RMS over pairs, relative to theirs.

    Returns the errors (draws,), what the record is to say, and the data's digests.
    Raises: DataError; FloatingPointError, when the kernel's two sources disagree.
    """
    config = run.config
    # One path more than is used: the reader keeps one at least for validation.
    settings = {"num_paths": config["paths"] + 1, "train_fraction": 0.5}
    data = load_toy_dataset(data_dir, INPUT_DIM, paper_data=config["paper_data"], **settings)
    paths = config["scale"] * data.paths[: config["paths"]].astype(np.float64)
    kernel, disagreement = signature_kernel(paths, config["level"], config["refinement"])
    size = np.sqrt(np.mean(kernel**2))
    errors = []
    with progress_bar(run.label, config["draws"], "draw") as bar:
        for draw in range(config["draws"]):
            rng = np.random.default_rng([config["seed"], DRAWS, config["state_dim"], draw])
            states = random_states(paths, config["state_dim"], rng)
            products = states.T @ states / config["state_dim"]
            errors.append(np.sqrt(np.mean((products - kernel) ** 2)) / size)
            bar.update()
    details = {
        "kernel_rms": float(size),
        "sources_disagree_by": disagreement,
        "rmse": float(np.sqrt(np.mean(np.square(errors)))),
    }
    return [np.array(errors)], details, data.digests


def random_states(
    paths: Float[np.ndarray, "P n d"], state_dim: int, rng: np.random.Generator
) -> Float[np.ndarray, "N P"]:
    """Z at the end of each path of dZ = Σ_i A_i Z dX^i, A_i ~ N(0, 1) / √N, Z_0 ~ N(0, I).

    All paths share A and Z_0. Exact for piecewise linear paths: on an interval Z moves by the
    matrix exponential of Σ_i A_i ΔX^i, summed as its series until a term no longer counts.
    """
    input_dim = paths.shape[2]
    fields = rng.standard_normal((input_dim * state_dim, state_dim)) / np.sqrt(state_dim)
    states = np.repeat(rng.standard_normal((state_dim, 1)), len(paths), axis=1)
    for increments in np.moveaxis(np.diff(paths, axis=1), (1, 2), (0, 1)):
        term = states
        for order in count(1):
            moved = (fields @ term).reshape(input_dim, state_dim, len(paths))
            term = np.einsum("inp,ip->np", moved, increments) / order
            states = states + term
            if np.linalg.norm(term) <= np.finfo(np.float64).eps * np.linalg.norm(states):
                break
    return states


def signature_kernel(
    paths: Float[np.ndarray, "P n d"], level: int, refinement: int
) -> tuple[Float[np.ndarray, "P P"], float]:
    """Σ_I S^I(x) S^I(y) for all pairs, by the equation it solves and by truncated signatures.

    Returns the first, and how far the two are apart relative to the largest value.
    Raises: FloatingPointError, when that is more than AGREEMENT.
    """
    kernel = kernel_by_equation(paths, refinement)
    by_signature = kernel_by_signature(paths, level)
    disagreement = float(np.max(np.abs(kernel - by_signature)) / np.max(np.abs(kernel)))
    if not disagreement <= AGREEMENT:
        raise FloatingPointError(
            f"the signature kernel's two sources are {disagreement:.1e} apart, relative to its "
            f"largest value (allowed: {AGREEMENT}); use smaller paths, a higher level or refinement"
        )
    return kernel, disagreement


def kernel_by_signature(paths: Float[np.ndarray, "P n d"], level: int) -> Float[np.ndarray, "P P"]:
    """Signatures up to a level, by signax in float32, multiplied with each other."""
    import jax
    from signax import signature

    terms = jax.vmap(lambda path: signature(path, level))(paths.astype(np.float32))
    terms = np.asarray(terms, dtype=np.float64)
    return 1 + terms @ terms.T


def kernel_by_equation(
    paths: Float[np.ndarray, "P n d"], refinement: int
) -> Float[np.ndarray, "P P"]:
    """Solve ∂²k / ∂s ∂t = ⟨x'(s), y'(t)⟩ k, k = 1 on both axes, for all pairs at once.

    The equation is Salvi, Cass, Foster, Lyons and Yang's (SIAM J. Math. Data Sci., 2021); the
    second-order step from three corners of a cell to the fourth is theirs too. `refinement` halves
    each interval so many times.
    """
    increments = np.repeat(np.diff(paths, axis=1), 2**refinement, axis=1) / 2**refinement
    points = increments.shape[1] + 1
    row = np.ones((len(paths), len(paths), points))
    for i in range(points - 1):
        cell = np.einsum("pd,qjd->jpq", increments[:, i], increments)
        gain, loss = 1 + cell / 2 + cell**2 / 12, 1 - cell**2 / 12
        below, row = row, np.ones_like(row)
        for j in range(points - 1):
            row[..., j + 1] = gain[j] * (row[..., j] + below[..., j + 1]) - loss[j] * below[..., j]
    return row[..., -1]
