"""Checkpoints of a run that is under way: atomic, verified, without pickle, the last two kept."""

import hashlib
import io
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atomic_files import write_together
from experiment_results import ResultsError, Run, config_difference

KEPT = 2


def checkpoint_folder(run: Run) -> Path:
    """Where a run's checkpoints are: beside the folder of its results."""
    return run.record.parents[1] / "checkpoints" / run.record.stem


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands: arrays in the order they were saved, and a JSON-like state."""

    arrays: list[np.ndarray]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in a folder of its own.

    Each is `step_N.npz` and `step_N.json`, which holds the run's config, the state and the
    SHA-256 of the arrays' file.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        """folder: made when the first checkpoint is saved; config: what defines the run."""
        self.folder = folder
        self.config = dict(config)

    def save(self, step: int, arrays: Sequence[np.ndarray], state: Mapping[str, Any]) -> None:
        """Save a checkpoint and drop all but the last two. Raises: OSError, nothing lost."""
        buffer = io.BytesIO()
        np.savez(buffer, *arrays, allow_pickle=False)
        content = buffer.getvalue()
        record = {"config": self.config, "sha256": _sha256(content), "state": dict(state)}
        stem = self.folder / f"step_{step:09d}"
        # The record's name changes last: without it the arrays do not count.
        write_together(
            [
                (stem.with_suffix(".npz"), content),
                (stem.with_suffix(".json"), json.dumps(record).encode()),
            ]
        )
        for old in self._stems()[:-KEPT]:
            old.with_suffix(".json").unlink(missing_ok=True)
            old.with_suffix(".npz").unlink(missing_ok=True)

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint, or None; a damaged one is named and passed over.

        Raises: ResultsError, when the folder's checkpoints are of another config.
        """
        for stem in reversed(self._stems()):
            try:
                record = json.loads(stem.with_suffix(".json").read_text())
                content = stem.with_suffix(".npz").read_bytes()
                if _sha256(content) != record["sha256"]:
                    raise ValueError("its arrays do not have their recorded SHA-256")
            except (OSError, ValueError, KeyError) as error:
                print(f"warning: checkpoint {stem} is damaged: {error}", file=sys.stderr)
                continue
            if record["config"] != self.config:
                difference = config_difference(record["config"], self.config)
                raise ResultsError(
                    f"the checkpoints in {self.folder} have {difference}; use another "
                    "--results-dir, or remove that folder to start over"
                )
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return Checkpoint([arrays[name] for name in arrays.files], record["state"])
        return None

    def remove(self) -> None:
        """Drop all checkpoints: the run is finished, or is to start over."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _stems(self) -> list[Path]:
        return sorted(path.with_suffix("") for path in self.folder.glob("step_*.json"))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
