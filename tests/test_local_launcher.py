"""Runs in worker processes on this machine: each once, whatever is killed."""

import os
import random
import signal
import stat
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

import walks
from harness.paths import ROOT
from launchers.local import gpus, machine_slots

pytestmark = pytest.mark.processes

LOCAL = ("--launcher", "local", "--workers", "2")


def logs(folder):
    return {path.stem: path.read_text() for path in (folder / "results" / "logs").glob("*.log")}


def is_a_worker(pid, folder):
    """Whether a process is one of the launcher's that has begun its run; a number may be reused."""
    try:
        return str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def test_runs_whose_workers_are_killed_again_and_again_are_all_done_and_none_twice(tmp_path):
    settings = {"lengths": [3, 4, 5, 6], "depths": [1, 2], "epochs": 200}
    random.seed(40)
    process = walks.start(tmp_path, *LOCAL, **settings)
    kills = 0
    while True:
        try:
            # A run takes 0.4 s at least, so looks this close together cannot miss every one.
            out, errors = process.communicate(timeout=0.1)
            break
        except subprocess.TimeoutExpired:
            pids = [pid for pid in walks.worker_pids(tmp_path) if is_a_worker(pid, tmp_path)]
            if pids and kills < 5 and random.random() < 0.5:  # fewer than one run is allowed
                with suppress(ProcessLookupError):  # it may just have ended
                    os.kill(random.choice(pids), signal.SIGKILL)
                    kills += 1
    assert process.returncode == 0, out + errors
    assert kills and "its worker was ended by SIGKILL, goes on in another" in out
    assert "8 of 8 runs done, 0 failed" in out
    plan = walks.finish(tmp_path, "--plan", **settings)
    assert "8 runs: 8 done, 0 missing" in plan.stdout
    ends = [text.count("not solved, accuracy") for text in logs(tmp_path).values()]
    # A worker may be killed after it saved and before it said so, so a run may have no such line.
    assert len(ends) == 8 and max(ends) == 1


def test_a_run_that_fails_is_reported_with_the_end_of_its_log(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "broken").touch()
    done = walks.finish(tmp_path, *LOCAL, lengths=[4, 5])
    assert done.returncode == 1
    assert "0 of 2 runs done, 2 failed" in done.stdout
    assert "failed: A5 length 4, RNN, depth 1: exit code 1; the end of " in done.stderr
    assert f"  | error: {tmp_path / 'data' / 'broken'}: these data are broken" in done.stderr
    (tmp_path / "data" / "broken").unlink()
    again = walks.finish(tmp_path, *LOCAL, lengths=[4, 5], epochs=300)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_launcher_that_is_stopped_ends_its_workers_with_checkpoints(tmp_path, number):
    settings = {"lengths": [4, 5], "epochs": 100_000, "checkpoint_interval": 100_000}
    settings["eval_interval"] = 50
    process = walks.start(tmp_path, *LOCAL, **settings)
    outputs = tmp_path / "results" / "outputs_A5"
    while len(list(outputs.glob("*.json"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    workers = walks.worker_pids(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else 75), errors
    assert not any(is_a_worker(pid, tmp_path) for pid in workers)
    # Checkpoints come at the end of 100,000 steps, or because of the signal.
    checkpoints = list((tmp_path / "results" / "checkpoints").glob("*/step_*.npz"))
    assert len(checkpoints) == 2


def test_the_workers_have_the_config_that_the_command_had(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text((ROOT / "experiment_configs" / "ssm_a5.yaml").read_text())
    done = walks.finish(tmp_path, *LOCAL, "-c", config, "-s", "7", lengths=[4], epochs=10)
    assert done.returncode == 0, done.stderr
    (name,) = (name for name in walks.results(tmp_path) if name.endswith(".json"))
    record = walks.results(tmp_path)[name]["config"]
    assert (record["seed"], record["epochs"]) == (7, 10)


def test_flags_of_another_launcher_are_refused(tmp_path):
    for words, found in {
        ("--workers", "2"): "--workers: applies to --launcher local alone, not to in-process",
        ("--wait",): "--wait: applies to --launcher slurm alone, not to in-process",
        (*LOCAL, "--overwrite"): "--overwrite: applies to --launcher in-process alone",
        ("--launcher", "local", "--workers", "0"): "--workers 0: should be 1 or more",
        ("--only", "A5 length 4"): "--only A5 length 4: no such run",
    }.items():
        refused = walks.finish(tmp_path, *words)
        assert refused.returncode == 2 and f"error: {found}" in refused.stderr
        assert not (tmp_path / "results").exists()


def test_workers_have_equal_shares_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5, 7}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    slots = machine_slots(2, [])
    assert [slot.cores for slot in slots] == [{0, 1}, {2, 5}]
    assert [slot.environment["OMP_NUM_THREADS"] for slot in slots] == ["2", "2"]
    assert all(len(slot.cores) == 1 for slot in machine_slots(8, []))
    assert len(machine_slots(None, [])) == 1


def test_workers_have_a_gpu_each(monkeypatch, tmp_path):
    lister = tmp_path / "nvidia-smi"
    lister.write_text(
        "#!/bin/sh\necho 'GPU 0: NVIDIA A100 (UUID: GPU-aa)'\n"
        "echo '  MIG 1g.10gb     Device  0: (UUID: MIG-cc)'\n"
        "echo 'GPU 1: NVIDIA A100 (UUID: GPU-bb)'\n"
    )
    lister.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == ["GPU-aa", "GPU-bb"]
    slots = machine_slots(None, gpus())
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in slots] == ["GPU-aa", "GPU-bb"]
    assert all("XLA_PYTHON_CLIENT_PREALLOCATE" not in s.environment for s in slots)
    shared = machine_slots(3, gpus())
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in shared] == ["GPU-aa", "GPU-bb", "GPU-aa"]
    assert shared[0].environment["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert gpus() == ["2", "3"]
