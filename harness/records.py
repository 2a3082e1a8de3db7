"""Where results live: run records, what is done already, saving a result with provenance."""

import hashlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from harness.atomic_files import npy_bytes, write_together
from harness.errors import ResultFileError, ResultsError
from harness.machine import describe_machine, package_versions
from harness.outcomes import FINISHED, NOT_NEEDED, UNFINISHED, diverged
from harness.paths import ROOT
from harness.process import Stop

Show = Callable[[int, Mapping[str, float]], None]
# Settings that leave every update as it is: how long a run may go on, and when it is evaluated.
HORIZON = {"max_steps", "epochs"}
SCHEDULE = {"eval_interval", *HORIZON}


class Status(StrEnum):
    """What the results folder says of a run."""

    DONE = "done"
    MISSING = "missing"
    NOT_NEEDED = "not needed"
    CONFLICT = "conflict"


class Origin(BaseModel):
    """What a record says of how its result was made; what it leaves out is None or empty."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    version: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    packages: dict[str, str] = {}
    device: str | None = None
    threads: int | None = None
    machine: dict[str, Any] = {}
    started: str | None = None  # the run's first process
    processes: list[dict[str, Any]] = []  # all that did a part of the run, the last one too


class Record(BaseModel):
    """A run's record, checked: its config, its files with their SHA-256, how it ended.

    A training run has a history, one value an evaluation; a run of one number its wall time. What
    else a record holds is kept.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)

    config: dict[str, Any]
    files: dict[Annotated[str, Field(pattern=r"^[^/]+$")], str]
    outcome: str = FINISHED
    mse: float | None = None
    wall_time_s: float | None = None
    history: dict[str, Annotated[list[int | float | None], Field(min_length=1)]] = {}
    provenance: Origin = Origin()

    @field_validator("config")
    @classmethod
    def _ends_at_a_number(cls, config: dict[str, Any]) -> dict[str, Any]:
        for key in HORIZON & config.keys():
            if not isinstance(config[key], int):
                raise ValueError(f"{key}: {config[key]!r} is not a whole number")
        return config

    @field_validator("outcome")
    @classmethod
    def _one_word_for_unfinished(cls, outcome: str) -> str:
        """Earlier records have another."""
        return UNFINISHED if outcome == "under way" else outcome

    @field_validator("history")
    @classmethod
    def _one_name_for_accuracy(cls, history: dict[str, Any]) -> dict[str, Any]:
        """The first records of the Linear CDE on A5 have that of its file."""
        return {"accuracy" if name == "val_accs" else name: v for name, v in history.items()}

    @model_validator(mode="after")
    def _history_is_a_table(self) -> Self:
        steps = self.history.get("steps", [])
        if None in steps or any(len(v) != len(steps) for v in self.history.values()):
            raise ValueError("history: a value without its step")
        return self

    def describes(self, path: Path) -> bool:
        """Whether a file holds the bytes that were recorded under its name."""
        return path.is_file() and self.files.get(path.name) == _sha256(path.read_bytes())


def read_record(path: Path) -> Record:
    """The record in a file. Raises: FileNotFoundError; ResultFileError, which says what is odd."""
    try:
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    raise ResultFileError(f"not a usable run record ({reason})")


@dataclass(frozen=True)
class RunContext:
    """What the process that does a run gives it; the default gives nothing."""

    # Raises LockLostError once another process has taken the run over; asked before every save.
    confirm: Callable[[], None] = lambda: None
    stop: Stop = field(default_factory=Stop)
    # Shows values by name at a step, while the run goes on.
    show: Show = lambda step, values: None
    # When this process began it (UTC).
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


@dataclass(frozen=True)
class Run:
    """One run: its label for people, its result files and what defines its result.

    The record is a JSON file beside the first result file, under the same stem.
    """

    label: str
    files: tuple[Path, ...]
    config: Mapping[str, Any]
    # Why the results folder, as it is when asked, makes a missing run needless; "" where not.
    not_needed: Callable[[], str] = field(default=str, compare=False)
    context: RunContext = field(default_factory=RunContext, compare=False)

    @property
    def record(self) -> Path:
        """Path of the run's JSON record."""
        return self.files[0].with_suffix(".json")


@dataclass(frozen=True)
class RunState:
    """A run's status and, for a conflict or a run not needed, its reason in words."""

    run: Run
    status: Status
    reason: str = ""


def run_state(run: Run) -> RunState:
    """Decide from the files alone whether a run is done, missing, or in conflict with its files.

    Files of the same training with an earlier end are no conflict: the run goes further. If it
    ended by itself, solved or diverged, the run is done, however often it was evaluated.
    """
    if not all(path.exists() for path in run.files):
        found = _usable_record(run)
        never_began = found and not found.files and diverged(found.outcome)
        if never_began and continues(run.config, found.config, SCHEDULE):
            return RunState(run, Status.DONE, found.outcome)
        return _still_to_do(run)
    conflict = partial(RunState, run, Status.CONFLICT)
    try:
        record = read_record(run.record)
    except FileNotFoundError:
        name = run.record.name
        return conflict(f"{run.files[0]} has no record ({name}), so its config is unknown")
    except ResultFileError as error:
        return conflict(f"{run.record}: {error}")
    config, ended = record.config, record.outcome
    difference = config_difference(config, run.config)
    by_itself = ended == "solved" or diverged(ended)
    further = ended != UNFINISHED and ends_later(run.config, config)
    if not continues(run.config, config, SCHEDULE if by_itself or further else HORIZON):
        return conflict(f"{run.files[0]} has another config: {difference}")
    if ended == UNFINISHED:
        return _still_to_do(run, "unfinished: its files hold the results so far")
    for path in run.files:
        if not record.describes(path):
            return conflict(f"{path} is not the file its record describes")
    if not difference:
        return RunState(run, Status.DONE, ended if diverged(ended) else "")
    if by_itself:
        return RunState(run, Status.DONE, f"{ended}, with {difference}")
    return _still_to_do(run, f"its files end earlier, and stay until it is as far: {difference}")


def _still_to_do(run: Run, reason: str = "") -> RunState:
    not_needed = run.not_needed()
    status = Status.NOT_NEEDED if not_needed else Status.MISSING
    return RunState(run, status, not_needed or reason)


def continues(
    config: Mapping[str, Any], found: Mapping[str, Any], schedule: Set[str] = HORIZON
) -> bool:
    """Whether a config is another's but for these keys of its schedule, and ends no earlier."""
    if config.keys() != found.keys():
        return False
    different = {key for key in config if config[key] != found[key]}
    return different <= schedule and all(found[key] < config[key] for key in different & HORIZON)


def ends_later(config: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether a schedule goes on where another ends, however often it evaluates."""
    return any(key in config and config[key] > found.get(key, config[key]) for key in HORIZON)


def steps_to_keep(run: Run) -> int:
    """The last step of files that `run` goes further than; -1 where there are no such files."""
    record = _usable_record(run)
    if record is None:
        return -1
    schedule = SCHEDULE if ends_later(run.config, record.config) else HORIZON
    if not continues(run.config, record.config, schedule):
        return -1
    if record.outcome != UNFINISHED and record.config == run.config:
        return -1
    return int(max(record.history.get("steps", [-1])))


def outcome(run: Run) -> str | None:
    """How a finished run of this config ended, in its record's words; None for any other."""
    if not run.record.exists() or run_state(run).status is not Status.DONE:
        return None
    return read_record(run.record).outcome


def runs_to_do(runs: Sequence[Run], overwrite: bool) -> list[Run]:
    """The runs still to be done: those missing, or all with `overwrite`.

    Raises: ResultsError, when a file of another config (or of unknown origin) is in the way.
    """
    if overwrite:
        return list(runs)
    states = [run_state(run) for run in runs]
    conflicts = [state.reason for state in states if state.status is Status.CONFLICT]
    if conflicts:
        raise ResultsError(
            "these results are in the way and were not touched:\n  "
            + "\n  ".join(conflicts)
            + "\nuse --results-dir for another folder, or --overwrite to replace them"
        )
    return [state.run for state in states if state.status is Status.MISSING]


def check_writable(folder: Path) -> None:
    """Make the folder and see that a file can be written there. Raises: ResultsError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ResultsError(f"the folder {folder} cannot be written: {error.strerror}") from None


def save_run(
    run: Run,
    arrays: Sequence[np.ndarray],
    details: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Save a finished run: one .npy for each of `run.files`, and the record that names them.

    Without arrays, of a run that diverged before its first value, the record alone is left.

    Every byte is on disk before a name changes, so a full disk leaves what was there before.
    Raises: OSError, ValueError, LockLostError.
    """
    run.context.confirm()
    files = run.files if arrays else ()
    contents = {p: npy_bytes(array) for p, array in zip(files, arrays, strict=True)}
    digests = {path.name: _sha256(data) for path, data in contents.items()}
    origin = {"started": run.context.started, **provenance}
    record = {"config": run.config, "files": digests, **details, "provenance": origin}
    for path in set(run.files) - set(files):
        path.unlink(missing_ok=True)
    # Meanwhile the record says so: a crash between two names leaves a run that counts as missing.
    meanwhile = {**record, "outcome": UNFINISHED}
    first, last = map(_json_bytes, (meanwhile, record))
    write_together([(run.record, first), *contents.items(), (run.record, last)])


def save_not_needed(run: Run, reason: str, provenance: Mapping[str, Any]) -> None:
    """Record why a run was not done, or not gone on with. Raises: OSError, LockLostError."""
    run.context.confirm()
    record = _usable_record(run)
    if record and continues(run.config, record.config):
        content = record.model_dump(exclude_unset=True)
    else:
        content = {"config": run.config, "files": {}, "outcome": NOT_NEEDED}
        content["provenance"] = provenance
    write_together([(run.record, _json_bytes({**content, "not_needed": reason}))])


def _usable_record(run: Run) -> Record | None:
    """A run's record as it is now; None where there is none that can be read."""
    try:
        return read_record(run.record)
    except (FileNotFoundError, ResultFileError):
        return None


def latest_metric(run: Run) -> str:
    """The last value of a run's metric by its record, in words; empty where there is none."""
    record = _usable_record(run)
    if record is None or record.config != run.config:
        return ""
    if record.mse is not None:
        return f"MSE {record.mse:.4e}"
    last = {name: values[-1] for name, values in record.history.items()}
    return " ".join(
        f"{name} {value:.4f} at step {last['steps']:,}"
        for name, value in last.items()
        if name not in ("steps", "train_loss", "seconds") and value is not None
    )


def provenance(packages: Sequence[str], device: str) -> dict[str, Any]:
    """How this process makes results: command line, version, commit, packages, hardware."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    commit, dirty = _commit()
    return {
        "version": project["version"],
        "command": _command(),
        "host": socket.gethostname(),
        "commit": commit,
        "dirty": dirty,
        "packages": package_versions(packages),
        "device": device,
        "machine": describe_machine(),
    }


def _command() -> str:
    """The command line; of absolute paths, which mean nothing elsewhere, the last part."""
    words = (re.sub(r"(^|=)/.*/", r"\1.../", word) for word in sys.argv[1:])
    return shlex.join([Path(sys.argv[0]).name, *words])


def _commit() -> tuple[str, bool] | tuple[None, None]:
    """The repository's commit, and whether files differ from it; None without git or a clone."""
    describe = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    # An export without .git may lie in another repository, whose commit says nothing of it.
    how = {"cwd": ROOT, "env": {**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)}}
    try:
        done = subprocess.run(describe, **how, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None, None
    commit, _, dirty = done.stdout.strip().partition("-")
    return commit, bool(dirty)


def config_difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The keys in which two configs differ, with both values, in words; empty where none does."""
    absent = "nothing"
    pairs = {key: (found.get(key, absent), wanted.get(key, absent)) for key in {*found, *wanted}}
    parts = [f"{key} {a!r} where this run has {b!r}" for key, (a, b) in pairs.items() if a != b]
    return ", ".join(sorted(parts))


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
