"""Checkpoints of a run that is under way: atomic, verified, without pickle, the last two kept."""

import hashlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from harness.atomic_files import write_together
from harness.errors import ResultsError
from harness.paths import CHECKPOINTS
from harness.records import Run, config_difference

KEPT = 2
# Counted up when a checkpoint's files come to mean something else.
FORMAT = 2


def checkpoint_folder(run: Run) -> Path:
    """Where a run's checkpoints are: beside the folder of its results."""
    return run.record.parents[1] / CHECKPOINTS / run.record.stem


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands: arrays in the order they were saved, and a JSON-like state."""

    arrays: list[np.ndarray]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in a folder of its own.

    Each is `step_N.npz` and `step_N.json`, which holds the format, the run's config, the state, and
    the SHA-256 of all that and the arrays' file.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        confirm: Callable[[], None] = lambda: None,
    ):
        """folder: made when the first checkpoint is saved; config: what defines the run.

        confirm: asked before every save; raises if this process may not save any more.
        """
        self.folder, self.confirm = folder, confirm
        self.config = dict(config)

    def save(self, step: int, arrays: Sequence[np.ndarray], state: Mapping[str, Any]) -> None:
        """Save a checkpoint and drop all but the last two. Raises: OSError, nothing lost."""
        self.confirm()
        buffer = io.BytesIO()
        np.savez(buffer, *arrays, allow_pickle=False)
        content = buffer.getvalue()
        record = {"format": FORMAT, "config": self.config, "state": dict(state)}
        record["sha256"] = _digest(content, record)
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

        Raises: ResultsError, when one is of another format or config.
        """
        for stem in reversed(self._stems()):
            try:
                record = dict(json.loads(stem.with_suffix(".json").read_text()))
                self._check_format(record)
                content = stem.with_suffix(".npz").read_bytes()
                if _digest(content, record) != record.pop("sha256", None):
                    raise ValueError("it does not have its recorded SHA-256")
            except (OSError, ValueError, TypeError) as error:
                print(f"warning: checkpoint {stem} is damaged: {error}", file=sys.stderr)
                continue
            if record["config"] != self.config:
                self._refuse(config_difference(record["config"], self.config))
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return Checkpoint([arrays[name] for name in arrays.files], record["state"])
        return None

    def remove(self) -> None:
        """Drop all checkpoints: the run is finished, or is to start over."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check_format(self, record: Mapping[str, Any]) -> None:
        found = record.get("format", 1)  # the first one did not name itself
        if found != FORMAT:
            self._refuse(f"format {found} where this version reads {FORMAT}")

    def _refuse(self, difference: str) -> NoReturn:
        raise ResultsError(
            f"the checkpoints in {self.folder} have {difference}; use another --results-dir, or "
            "remove that folder to start over"
        )

    def _stems(self) -> list[Path]:
        return sorted(path.with_suffix("") for path in self.folder.glob("step_*.json"))


def _digest(content: bytes, record: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(content + json.dumps(rest, sort_keys=True).encode()).hexdigest()
