"""Is this the paper's toy data? The paths by their SHA-256, the labels by computing them again."""

import hashlib
from math import factorial
from pathlib import Path

import numpy as np
import yaml

from harness.errors import DataError

FINGERPRINTS = Path(__file__).resolve().with_name("toy_fingerprints.yaml")
_PATHS_AT_A_TIME = 500  # so few that they stay in cache


def load_fingerprints() -> dict:
    """Read the stored fingerprints: `shape`, a tolerance, and one entry per path dimension d."""
    return yaml.safe_load(FINGERPRINTS.read_text())


def check_fingerprint(
    data: np.ndarray, labels: np.ndarray, names: tuple[str, str] = ("data", "labels")
) -> None:
    """Refuse toy data that are not the paper's.

    data: (N, n, d) scaled paths; labels: (N,); names: what to call them in a message.
    Raises: DataError, naming the first property that drifted, found and expected.
    """
    fingerprints = load_fingerprints()
    shape = (*fingerprints["shape"], data.shape[2])
    for array, expected, name in zip((data, labels), (shape, shape[:1]), names, strict=True):
        if array.shape != expected:
            raise DataError(f"{name}: shape {array.shape}, the paper's is {expected}")
    walks = _checked_walks(data, fingerprints[data.shape[2]], names[0])
    expected = scaled_coefficients(walks)
    wrong = np.flatnonzero(~(np.abs(labels - expected) <= fingerprints["label_tolerance"]))
    if len(wrong):
        raise DataError(
            f"{names[1]}: {len(wrong)} labels are not those of the paths, the first label "
            f"{wrong[0]}: {labels[wrong[0]]:.8g}, the paper's is {expected[wrong[0]]:.8g}"
        )


def scaled_coefficients(walks: np.ndarray) -> np.ndarray:
    """The signature's (1, ..., d) coefficients over the largest, float64 (N,), of walks (N, n, d).

    Along a straight piece v a coefficient S_k of the first k letters grows by the sum over j < k
    of S_j v_(j+1) ... v_k / (k - j)! (Chen's identity). Of integer walks these sums are exact in
    float64 up to the division by 6.
    """
    starts = range(0, len(walks), _PATHS_AT_A_TIME)
    parts = [_coefficients(walks[i : i + _PATHS_AT_A_TIME]) for i in starts]
    coefficients = np.concatenate(parts)
    return coefficients / np.max(np.abs(coefficients))


def _coefficients(walks: np.ndarray) -> np.ndarray:
    pieces = np.diff(np.moveaxis(walks, 2, 0).astype(np.float64), axis=2)  # (d, N, n - 1)
    before = [np.ones_like(pieces[0])]  # S_j where each piece starts
    for k in range(1, len(pieces) + 1):
        growth, product = 0.0, 1.0
        for j in reversed(range(k)):
            product = product * pieces[j]
            growth = growth + before[j] * product / factorial(k - j)
        before.append(np.cumsum(growth, axis=1) - growth)
    return before[-1][:, -1] + growth[:, -1]


def _checked_walks(data: np.ndarray, expected: dict, name: str) -> np.ndarray:
    """The integer walks of scaled paths. Raises: DataError, where they are not the paper's."""
    smallest_step = np.min(np.abs(data[data != 0]), initial=np.inf)
    largest = round(1 / float(smallest_step)) if 0 < smallest_step <= 1 else 0
    if largest != expected["max_abs_walk"]:
        why = "; 48 comes from JAX's partitionable Threefry layout, the paper's data need it off"
        raise DataError(
            f"{name}: the walks drifted: their largest absolute value is {largest}, the paper's "
            f"is {expected['max_abs_walk']}{why if largest == 48 else ''}"
        )
    walks = np.rint(data * np.float32(largest))
    digest = hashlib.sha256(np.ascontiguousarray(walks, dtype=np.int8).tobytes()).hexdigest()
    if digest != expected["walks_sha256"] or not np.array_equal(walks / np.float32(largest), data):
        raise DataError(
            f"{name}: the walks drifted: their SHA-256 is {digest[:16]}…, "
            f"the paper's is {expected['walks_sha256'][:16]}…"
        )
    return walks
