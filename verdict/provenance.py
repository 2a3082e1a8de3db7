"""How each result was made, as its record says: config, hardware, wall time, commit, date."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.file_names import (
    configuration_label,
    parse_a5_curve_name,
    parse_a5_lcde_name,
    parse_toy_curve_name,
    parse_toy_lcde_name,
)
from harness.paths import A5_RESULTS, TOY_RESULTS

EXPERIMENTS = (
    "Linear CDE on the toy task",
    "sequence models on the toy task",
    "Linear CDE on A5",
    "sequence models on A5",
)
NOT_RECORDED = "not recorded"
# A run's label says these, so that runs which differ in nothing else have one config.
_IN_LABEL = {"input_dim", "run", "length", "model", "depth", "nonlinear"}


@dataclass(frozen=True)
class RunRecord:
    """One run; what its record leaves out is 'not recorded'."""

    experiment: str
    label: str
    config: dict[str, Any]
    outcome: str
    wall_time: str
    hardware: str
    software: str
    commit: str
    date: str


@dataclass(frozen=True)
class RecordGroup:
    """Runs of one experiment with the same config, hardware and software."""

    experiment: str
    config: dict[str, Any]
    hardware: str
    software: str
    runs: list[RunRecord]


@dataclass(frozen=True)
class Provenance:
    """What is known of the results of a folder; `unrecorded` names the runs without a record."""

    groups: list[RecordGroup]
    unrecorded: list[str]


def load_provenance(results_dir: Path) -> Provenance:
    """Read the records of all results under `results_dir`.

    A record that cannot be used counts as none; the loaders of result_files report it.
    """
    identified = []
    for path in results_dir.glob("outputs_*/*.npy"):
        identity = _identify(path)
        if identity:
            identified.append((*identity, path.with_suffix(".json")))
    groups: dict[tuple, list[RunRecord]] = {}
    unrecorded = []
    for experiment, _, label, path in sorted(identified):
        content = _read(path)
        if content is None:
            unrecorded.append(f"{EXPERIMENTS[experiment]}, {label}")
            continue
        run = _record(EXPERIMENTS[experiment], label, content)
        config = json.dumps(run.config, sort_keys=True)
        key = (run.experiment, config, run.hardware, run.software)
        groups.setdefault(key, []).append(run)
    return Provenance(
        [
            RecordGroup(
                runs[0].experiment, runs[0].config, runs[0].hardware, runs[0].software, runs
            )
            for runs in groups.values()
        ],
        unrecorded,
    )


def _identify(path: Path) -> tuple[int, tuple, str] | None:
    """Experiment, place in its order and label of the run whose record is beside this file."""
    name = path.name
    if path.parent.name == TOY_RESULTS:
        if score := parse_toy_lcde_name(name):
            return 0, score, "{}D, run {}".format(*score)
        if (curve := parse_toy_curve_name(name)) and curve[0] == "steps":
            key = curve[1]
            label = configuration_label(key.model, key.depth, key.nonlinear)
            place = (key.input_dim, key.model, key.depth, key.nonlinear, key.run)
            return 1, place, f"{label}, {key.input_dim}D, run {key.run}"
    if path.parent.name == A5_RESULTS:
        if (lcde := parse_a5_lcde_name(name)) and lcde[0] == "steps":
            return 2, (lcde[1],), f"length {lcde[1]}"
        if (parsed := parse_a5_curve_name(name)) and parsed[0] == "steps":
            key = parsed[1]
            label = configuration_label(key.model, key.depth, nonlinear=False)
            return 3, (key.model, key.length, key.depth), f"{label}, length {key.length}"
    return None


def _read(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    usable = isinstance(content, dict) and isinstance(content.get("config"), dict)
    return content if usable else None


def _record(experiment: str, label: str, content: dict) -> RunRecord:
    provenance = _mapping(content, "provenance")
    return RunRecord(
        experiment,
        label,
        {name: value for name, value in content["config"].items() if name not in _IN_LABEL},
        outcome=str(content.get("outcome", "finished")),
        wall_time=_wall_time(content),
        hardware=_hardware(provenance),
        software=", ".join(f"{k} {v}" for k, v in _mapping(provenance, "packages").items())
        or NOT_RECORDED,
        commit=_commit(provenance),
        date=str(provenance.get("started", "")).partition("T")[0] or NOT_RECORDED,
    )


def _mapping(content: Mapping, name: str) -> Mapping:
    value = content.get(name)
    return value if isinstance(value, dict) else {}


def _wall_time(content: dict) -> str:
    """One number of a Linear CDE on the toy task, the last evaluation's of a training run."""
    seconds = content.get("wall_time_s")
    if seconds is None:
        seconds = (_mapping(content, "history").get("seconds") or [None])[-1]
    return NOT_RECORDED if seconds is None else duration(seconds)


def duration(seconds: float) -> str:
    """A time with two digits or more, and its unit."""
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        amount = seconds / size
        if amount >= 1.5:
            return f"{amount:.0f} {unit}" if amount >= 10 else f"{amount:.1f} {unit}"
    return f"{seconds:.2f} s"


def _hardware(provenance: Mapping) -> str:
    machine = _mapping(provenance, "machine")
    parts = [
        f"device {provenance['device']}" if "device" in provenance else "",
        str(machine.get("cpu", "")),
        f"{machine['cores']} cores" if "cores" in machine else "",
        f"threads: {provenance['threads']}" if "threads" in provenance else "",
        f"{machine['memory_gib']} GiB" if "memory_gib" in machine else "",
        str(machine.get("platform", "")),
        f"Python {machine['python']}" if "python" in machine else "",
    ]
    return ", ".join(filter(None, parts)) or NOT_RECORDED


def _commit(provenance: Mapping) -> str:
    commit = provenance.get("commit")
    if not commit:
        return NOT_RECORDED
    return str(commit)[:7] + (" with changes" if provenance.get("dirty") else "")
