import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from harness.file_names import A5ScoreKey, ToyCurveKey, parse_name
from harness.paths import A5_RESULTS, TOY_RESULTS
from verdict.provenance import NOT_RECORDED, duration, load_provenance

MACHINE = {
    "cpu": "A CPU",
    "cores": 2,
    "memory_gib": 8.0,
    "platform": "Linux x86_64",
    "python": "3.11",
}
PROVENANCE = {
    "commit": "0123456789abcdef",
    "dirty": False,
    "packages": {"jax": "1.2", "numpy": "2.4"},
    "device": "cpu",
    "machine": MACHINE,
    "started": "2024-05-06T07:08:09+00:00",
}


def write(results_dir: Path, folder: str, name: str, record: dict | str | None) -> Path:
    path = results_dir / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(1.0))
    if isinstance(record, str):
        path.with_suffix(".json").write_text(record)
    elif record is not None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        files = dict.fromkeys(parse_name(name).names, digest)
        text = json.dumps({"files": files, **record})
        path.with_suffix(".json").write_text(text)
    return path


def score(results_dir, run, **changes):
    record = {
        "config": {"hidden_dim": 256, "input_dim": 2, "run": run},
        "wall_time_s": 25.74,
        "provenance": PROVENANCE,
    }
    return write(results_dir, TOY_RESULTS, f"lin_cde_mse_2_run_{run}.npy", record | changes)


def test_a_record_says_config_hardware_time_commit_and_date(tmp_path):
    score(tmp_path, 3)
    (group,) = load_provenance(tmp_path).groups
    assert group.experiment == "Linear CDE on the toy task"
    assert group.config == {"hidden_dim": 256}
    assert group.hardware == "device cpu, A CPU, 2 cores, 8.0 GiB, Linux x86_64, Python 3.11"
    assert group.software == "jax 1.2, numpy 2.4"
    (run,) = group.runs
    assert (run.label, run.wall_time, run.commit, run.date) == (
        "2D, run 3",
        "26 s",
        "0123456",
        "2024-05-06",
    )


def test_a_record_that_counts_threads_shows_them(tmp_path):
    score(tmp_path, 0, provenance=PROVENANCE | {"threads": 1})
    (group,) = load_provenance(tmp_path).groups
    assert "2 cores, threads: 1, 8.0 GiB" in group.hardware


def test_runs_that_differ_in_config_hardware_or_software_are_kept_apart(tmp_path):
    score(tmp_path, 0)
    score(tmp_path, 1)
    score(tmp_path, 2, config={"hidden_dim": 8, "input_dim": 2, "run": 2})
    score(tmp_path, 3, provenance=PROVENANCE | {"device": "gpu"})
    score(tmp_path, 4, provenance=PROVENANCE | {"packages": {"jax": "1.3"}})
    groups = load_provenance(tmp_path).groups
    assert [[run.label for run in group.runs] for group in groups] == [
        ["2D, run 0", "2D, run 1"],
        ["2D, run 2"],
        ["2D, run 3"],
        ["2D, run 4"],
    ]


def test_a_training_run_took_as_long_as_its_history_and_lengths_are_in_order(tmp_path):
    for length in (10, 3):
        record = {
            "config": {"length": length},
            "outcome": "solved",
            "history": {"steps": [0, 1000], "seconds": [0.0, 60.0 * length]},
        }
        write(tmp_path, A5_RESULTS, A5ScoreKey(length).names[0], record)
    (group,) = load_provenance(tmp_path).groups
    found = [(run.label, run.wall_time, run.outcome) for run in group.runs]
    assert found == [("length 3", "3.0 min", "solved"), ("length 10", "10 min", "solved")]


def test_what_a_record_leaves_out_is_said_to_be_missing(tmp_path):
    score(tmp_path, 0, provenance={"dirty": None}, wall_time_s=None)
    (group,) = load_provenance(tmp_path).groups
    (run,) = group.runs
    found = {group.hardware, group.software, run.wall_time, run.commit, run.date}
    assert found == {NOT_RECORDED}


def test_a_commit_with_changes_says_so(tmp_path):
    score(tmp_path, 0, provenance=PROVENANCE | {"dirty": True})
    assert load_provenance(tmp_path).groups[0].runs[0].commit == "0123456 with changes"


@pytest.mark.parametrize("record", [None, "{"])
def test_runs_without_a_usable_record_are_named(tmp_path, record):
    key = ToyCurveKey("Mamba", 2, True, 3, 0.0001, 256, 4)
    write(tmp_path, TOY_RESULTS, key.names[0], record)
    write(tmp_path, "checkpoints", "linear_cde_length_3_steps.npy", None)
    provenance = load_provenance(tmp_path)
    assert provenance.groups == []
    assert provenance.unrecorded == [
        "sequence models on the toy task, Mamba, depth 2, nonlinear, 3D, run 4"
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.25 s"),
        (25.74, "26 s"),
        (89, "89 s"),
        (90, "1.5 min"),
        (5400, "1.5 h"),
        (1e6, "278 h"),
    ],
)
def test_a_duration_has_the_unit_that_suits_it(seconds, text):
    assert duration(seconds) == text
