"""How each result was made, as its record says: config, hardware, wall time, commit, date."""

import json
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from harness.file_names import (
    A5CurveKey,
    A5ScoreKey,
    Key,
    ToyCurveKey,
    ToyScoreKey,
    configuration_label,
)
from harness.paths import A5_RESULTS, TOY_RESULTS
from harness.records import Origin, Record
from verdict.results import UNVERIFIED, FoundRun, find_runs

# In the order in which they are shown: their names, and what their runs are sorted by.
EXPERIMENTS = {
    ToyScoreKey: ("Linear CDE on the toy task", attrgetter("input_dim", "run")),
    ToyCurveKey: (
        "sequence models on the toy task",
        attrgetter("input_dim", "model", "depth", "nonlinear", "run"),
    ),
    A5ScoreKey: ("Linear CDE on A5", attrgetter("length")),
    A5CurveKey: ("sequence models on A5", attrgetter("model", "length", "depth")),
}
NOT_RECORDED = "not recorded"
# A run's label says these, so that runs which differ in nothing else have one config.
_IN_LABEL = {"input_dim", "run", "length", "model", "depth", "nonlinear"}


@dataclass(frozen=True)
class MadeRun:
    """How one run was made; what its record leaves out is 'not recorded'."""

    label: str
    outcome: str
    wall_time: str
    date: str
    commit: str


@dataclass(frozen=True)
class RecordGroup:
    """Runs of one experiment with the same config, hardware and software."""

    experiment: str
    config: dict[str, Any]
    hardware: str
    software: str
    runs: list[MadeRun]


@dataclass(frozen=True)
class Provenance:
    """What is known of the results of a folder; `unrecorded` names the runs without a record."""

    groups: list[RecordGroup]
    unrecorded: list[str]


def load_provenance(results_dir: Path) -> Provenance:
    """Read the records of all results under `results_dir`.

    A record that cannot be used counts as none; the loaders of results report it.
    """
    found = [
        run for folder in (TOY_RESULTS, A5_RESULTS) for run in find_runs(results_dir, folder)[0]
    ]
    groups: dict[tuple, RecordGroup] = {}
    unrecorded = []
    for kind, (experiment, place) in EXPERIMENTS.items():
        runs = [run for run in found if isinstance(run.key, kind)]
        for run in sorted(runs, key=lambda run: place(run.key)):
            label = _label(run.key)
            if run.record is None:
                unrecorded.append(f"{experiment}, {label}")
                continue
            config = {name: value for name, value in run.config.items() if name not in _IN_LABEL}
            origin = run.record.provenance
            packages = ", ".join(f"{name} {version}" for name, version in origin.packages.items())
            made_with = _hardware(origin), packages or NOT_RECORDED
            key = (experiment, json.dumps(config, sort_keys=True), *made_with)
            group = groups.setdefault(key, RecordGroup(experiment, config, *made_with, []))
            group.runs.append(_made(label, run))
    return Provenance(list(groups.values()), unrecorded)


def _label(key: Key) -> str:
    said = vars(key)
    parts = []
    if "model" in said:
        parts = [configuration_label(key.model, key.depth, said.get("nonlinear", False))]
    words = {"input_dim": "{}D", "run": "run {}", "length": "length {}"}
    return ", ".join(parts + [words[name].format(said[name]) for name in words if name in said])


def _made(label: str, run: FoundRun) -> MadeRun:
    origin = run.record.provenance
    commit = origin.commit and origin.commit[:7] + (" with changes" if origin.dirty else "")
    return MadeRun(
        label,
        run.record.outcome if run.verified else UNVERIFIED,
        wall_time=_wall_time(run.record),
        date=(origin.started or "").partition("T")[0] or NOT_RECORDED,
        commit=commit or NOT_RECORDED,
    )


def _wall_time(record: Record) -> str:
    """One number of a Linear CDE on the toy task, the last evaluation's of a training run."""
    seconds = record.wall_time_s
    if seconds is None:
        seconds = record.history.get("seconds", [None])[-1]
    return NOT_RECORDED if seconds is None else duration(seconds)


def duration(seconds: float) -> str:
    """A time with two digits or more, and its unit."""
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        amount = seconds / size
        if amount >= 1.5:
            return f"{amount:.0f} {unit}" if amount >= 10 else f"{amount:.1f} {unit}"
    return f"{seconds:.2f} s"


def _hardware(origin: Origin) -> str:
    machine = origin.machine
    parts = [
        ("device {}", origin.device),
        ("{}", machine.get("cpu")),
        ("{} cores", machine.get("cores")),
        ("threads: {}", origin.threads),
        ("{} GiB", machine.get("memory_gib")),
        ("{}", machine.get("platform")),
        ("Python {}", machine.get("python")),
    ]
    return ", ".join(words.format(value) for words, value in parts if value) or NOT_RECORDED
