"""Is this the paper's toy data? Fingerprints, and a check that says what drifted."""

import hashlib
from pathlib import Path

import numpy as np
import yaml

from harness.errors import DataError

FINGERPRINTS = Path(__file__).resolve().with_name("toy_fingerprints.yaml")


def load_fingerprints() -> dict:
    """Read the stored fingerprints: `shape`, tolerances, and one entry per path dimension d."""
    return yaml.safe_load(FINGERPRINTS.read_text())


def walks_digest(walks: np.ndarray) -> str:
    """SHA-256 of integer walks (N, n, d), as int8 in C order: the same on every machine."""
    return hashlib.sha256(np.ascontiguousarray(walks, dtype=np.int8).tobytes()).hexdigest()


def check_fingerprint(data: np.ndarray, labels: np.ndarray, source: str) -> None:
    """Refuse toy data that are not the paper's.

    data: (N, n, d) scaled paths; labels: (N,); source: what to name in the message.
    Raises: DataError, naming the first property that drifted, found and expected.
    """
    fingerprints = load_fingerprints()
    expected = fingerprints[data.shape[2]]
    shape = (*fingerprints["shape"], data.shape[2])
    if data.shape != shape or labels.shape != shape[:1]:
        raise DataError(
            f"{source}: shapes {data.shape} and {labels.shape}, "
            f"the paper's are {shape} and {shape[:1]}"
        )
    _check_walks(data, expected, source)
    _check_labels(labels, expected, fingerprints, source)


def _check_labels(labels: np.ndarray, expected: dict, fingerprints: dict, source: str) -> None:
    labels = labels.astype(np.float64)
    validation = labels[int(fingerprints["train_fraction"] * len(labels)) :]
    rms = float(np.sqrt(np.mean(validation**2)))
    if not abs(rms / expected["label_rms"] - 1) < fingerprints["label_rms_tolerance"]:
        raise DataError(
            f"{source}: the labels drifted: RMS of the validation labels is {rms:.8g}, "
            f"the paper's is {expected['label_rms']:.8g} (the paths agree)"
        )
    # The RMS sees neither the training labels nor their order and signs; this sum does.
    projection = float(labels @ np.cos(np.arange(len(labels))))
    if not abs(projection - expected["label_projection"]) < fingerprints["projection_tolerance"]:
        raise DataError(
            f"{source}: the labels drifted: their sum with weights cos(0), cos(1), ... is "
            f"{projection:.6f}, the paper's is {expected['label_projection']:.6f}"
        )


def _check_walks(data: np.ndarray, expected: dict, source: str) -> None:
    smallest_step = np.min(np.abs(data[data != 0]), initial=np.inf)
    largest = round(1 / float(smallest_step)) if 0 < smallest_step <= 1 else 0
    if largest != expected["max_abs_walk"]:
        hint = ""
        if largest == 48:
            hint = (
                "; 48 comes from JAX's partitionable Threefry layout, the paper's data need it off"
            )
        raise DataError(
            f"{source}: the walks drifted: their largest absolute value is {largest}, "
            f"the paper's is {expected['max_abs_walk']}{hint}"
        )
    walks = np.rint(data * np.float32(largest))
    digest = walks_digest(walks)
    if digest != expected["walks_sha256"] or not np.array_equal(walks / np.float32(largest), data):
        raise DataError(
            f"{source}: the walks drifted: their SHA-256 is {digest[:16]}…, "
            f"the paper's is {expected['walks_sha256'][:16]}…"
        )
