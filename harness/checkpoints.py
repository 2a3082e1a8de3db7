"""Checkpoints of a run: atomic, verified, without pickle; the last is kept, two until it ends."""

import hashlib
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from harness.atomic_files import atomic_write, npy_bytes
from harness.errors import ResultsError
from harness.paths import CHECKPOINTS
from harness.records import SCHEDULE, Run, config_difference, continues

KEPT = 2
# Counted up when a checkpoint's file comes to mean something else.
FORMAT = 3
STATE = "state.json"  # the member beside the arrays
DIGEST_BYTES = 64  # of SHA-256 in hexadecimal


def checkpoint_folder(run: Run) -> Path:
    """Where a run's checkpoints are: beside the folder of its results."""
    return run.record.parents[1] / CHECKPOINTS / run.record.stem


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands: arrays by name, and a JSON-like state; `record`: all of `STATE`."""

    arrays: Mapping[str, np.ndarray]
    state: Mapping[str, Any]
    record: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run, in a folder of its own.

    Each is a file `step_N.npz`: the arrays, `STATE` (the format, the run's config, the state), and
    at its end, where a zip file has its comment, the SHA-256 of all that.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        confirm: Callable[[], None] = lambda: None,
        process: Mapping[str, Any] | None = None,
    ):
        """folder: made when the first checkpoint is saved; config: what defines the run.

        confirm: asked before every save; raises if this process may not save any more.
        process: what this one is, for the list `processes`, to which `load` adds those before.
        """
        self.folder, self.confirm = folder, confirm
        self.config = dict(config)
        self.processes = [dict(process or {})]

    def save(self, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Save a checkpoint and drop all but the last two. Raises: OSError, nothing lost."""
        self.confirm()
        record = {"format": FORMAT, "config": self.config, "state": dict(state)}
        record |= {"processes": self.processes}
        content = _packed(arrays, record)
        with atomic_write(self.folder / f"step_{step:09d}.npz") as file:
            file.write(content)
            file.write(_digest(content))
        self.keep(KEPT)

    def load(self, like: Mapping[str, np.ndarray]) -> Checkpoint | None:
        """The newest whole checkpoint, or None; a damaged one is named and passed over.

        It may be of a schedule that ends earlier. Those of another `eval_interval` are of no use:
        their history has other steps. They are removed, with a line that says so.
        like: arrays of the names, shapes and dtypes that it must have.
        Raises: ResultsError, when it is of another format or config, or has other arrays.
        """
        if any(self.folder.glob("step_*.json")):
            self._refuse(f"a format before 3 where this version reads {FORMAT}")
        newest = self._newest()
        if newest is None:
            return None
        form, config = newest.record["format"], newest.record["config"]
        if form != FORMAT:
            self._refuse(f"format {form} where this version reads {FORMAT}")
        difference = f"another config: {config_difference(config, self.config)}"
        if not continues(self.config, config, SCHEDULE):
            self._refuse(difference)
        if not continues(self.config, config):
            print(f"starts at step 0: the state in {self.folder} has {difference}", flush=True)
            self.remove()
            return None
        for name in [*like, *newest.arrays.keys() - like.keys()]:
            found, expected = _kind(newest.arrays.get(name)), _kind(like.get(name))
            if found != expected:
                self._refuse(f"{found} as the array {name} where this run has {expected}")
        self.processes = [*newest.record.get("processes", []), *self.processes]
        return newest

    def kept(self) -> Checkpoint | None:
        """The newest whole checkpoint if it is of just this config, only read; else None."""
        newest = self._newest()
        if newest and (newest.record["format"], newest.record["config"]) == (FORMAT, self.config):
            return newest
        return None

    def keep(self, count: int) -> None:
        """Drop all but the last ones, and what a killed process was writing."""
        for path in [*self._files()[:-count], *self.folder.glob(".step_*.tmp")]:
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Drop all checkpoints: the run is to start over."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest(self) -> Checkpoint | None:
        for path in reversed(self._files()):
            try:
                content = path.read_bytes()
                if _digest(content[:-DIGEST_BYTES]) != content[-DIGEST_BYTES:]:
                    raise ValueError("it does not have its recorded SHA-256")
            except (OSError, ValueError) as error:
                print(f"warning: checkpoint {path} is damaged: {error}", file=sys.stderr)
                continue
            with np.load(io.BytesIO(content), allow_pickle=False) as members:
                arrays = {name: members[name] for name in members.files if name != STATE}
                record = json.loads(members[STATE])
            return Checkpoint(arrays, record["state"], record)
        return None

    def _refuse(self, difference: str) -> NoReturn:
        raise ResultsError(
            f"the checkpoints in {self.folder} have {difference}; use another --results-dir, or "
            "--overwrite to start anew"
        )

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step_*.npz"))


def _packed(arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> bytes:
    """A zip file but for the last bytes, those of its comment."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        # Without a time: the same checkpoint has the same bytes.
        archive.writestr(zipfile.ZipInfo(STATE), json.dumps(record))
        for name, array in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), npy_bytes(array))
        archive.comment = bytes(DIGEST_BYTES)
    return buffer.getvalue()[:-DIGEST_BYTES]


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _kind(array: np.ndarray | None) -> str:
    return "nothing" if array is None else f"{array.dtype} {array.shape}"
