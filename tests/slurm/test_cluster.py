"""Runs on a real SLURM cluster of one node: each lands once, whatever is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import walks
from harness.paths import CONFIG_FOLDER, ROOT
from run_experiment import main

pytestmark = pytest.mark.processes

SCRIPT = Path(__file__).with_name("cluster.sh")
# The PyTorch part, as small as it goes.
TINY = {
    "hidden_dim": 8,
    "state_dim": 4,
    "num_heads": 2,
    "feed_forward_dim": 8,
    "samples": 300,
    "eval_interval": 20,
    "checkpoint_interval": 1_000_000,
    "scan_backend": "reference",
}


def install():
    """Have SLURM; skip with the reason where it cannot be had."""
    if os.geteuid() != 0:
        pytest.skip("starting SLURM's daemons needs root")
    if all(map(shutil.which, ("slurmctld", "slurmd", "sbatch", "munged"))):
        return
    if not os.environ.get("CI"):
        pytest.skip(f"SLURM is not installed; on Debian: {SCRIPT} install")
    done = subprocess.run([SCRIPT, "install"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"SLURM cannot be installed here: {done.stderr.strip()[-300:]}")


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    """A running cluster; its folder."""
    install()
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True)
            assert started.returncode == 0, started.stderr
            yield folder
        finally:
            subprocess.run([SCRIPT, "stop", folder], check=True)


@pytest.fixture
def slurm(tmp_path):
    """Make the words that launch on the cluster, with changes of its settings."""

    def make(*words, **changes):
        settings = yaml.safe_load((CONFIG_FOLDER / "slurm.yaml").read_text())
        settings |= {"time_minutes": 60, "gpus": 0, "cpus": 1, "memory_gb": 0.5, "settle_s": 2.0}
        path = tmp_path / "slurm.yaml"
        path.write_text(yaml.safe_dump({**settings, "poll_interval_s": 0.5, **changes}))
        return ["--launcher", "slurm", "--slurm-config", path, *words]

    return make


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results of a walk in one process, undisturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = walks.finish(folder, epochs=2000)
    assert done.returncode == 0, done.stderr
    return walks.results(folder)


def wait_until(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def wait_for_empty_queue():
    command = ["squeue", "--noheader"]
    while subprocess.run(command, capture_output=True, check=True).stdout:
        time.sleep(0.2)


def logs(folder, kind):
    return "".join(path.read_text() for path in (folder / "results/logs/slurm").glob(f"*.{kind}"))


def number_of_job(folder):
    (path,) = (folder / "results/logs/slurm").glob("*.job")
    return json.loads(path.read_text())["number"]


def start_real(folder, *words, **settings):
    """The real experiment, in a process of its own."""
    words = walks.walk_words(folder, *words, **(TINY | settings))
    command = [sys.executable, ROOT / "run_experiment.py", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes)


def test_an_array_lands_all_results_and_records_of_runs_that_were_not_needed(tmp_path, slurm):
    pytest.importorskip("torch", reason="needs the PyTorch environment")
    # Chance is above this: every length is solved with one block, so that two are not needed.
    settings = {"lengths": [4, 5], "depths": [1, 2], "search": True, "stop_accuracy": 1e-4}
    settings["epochs"] = 5
    process = start_real(tmp_path, *slurm("--wait", array_parallelism=1), **settings)
    out, errors = process.communicate()
    assert process.returncode == 0, out + errors
    assert "0 pending, 0 running, 4 done, 0 failed" in out
    assert "not needed, 1 blocks solve length 4" in out

    alone = tmp_path / "alone"
    words = walks.walk_words(alone, **(TINY | settings))
    assert main(words) == 0
    arrays = [
        {name: content for name, content in walks.results(f).items() if name.endswith(".npy")}
        for f in (tmp_path, alone)
    ]
    assert arrays[0] == arrays[1] and len(arrays[0]) == 4
    wait_for_empty_queue()  # a task whose run is not needed may still have to start
    (record,) = (tmp_path / "results" / "outputs_A5").glob("RNN_5_2_*.json")
    assert json.loads(record.read_text())["not_needed"] == "1 blocks solve length 5"


def test_a_signal_in_the_middle_is_answered_by_a_checkpoint_and_the_run_goes_on(tmp_path, slurm):
    pytest.importorskip("torch", reason="needs the PyTorch environment")
    settings = {"lengths": [4], "epochs": 100}
    process = start_real(tmp_path, *slurm("--wait"), **settings)
    outputs = tmp_path / "results" / "outputs_A5"
    wait_until(lambda: list(outputs.glob("*.json")), process)
    subprocess.run(["scancel", "--signal=USR2", number_of_job(tmp_path)], check=True)
    # No other checkpoint is due in these few steps.
    wait_until(lambda: walks.newest_step(tmp_path) > 0, process)
    out, errors = process.communicate()
    assert process.returncode == 0, out + errors
    assert "Requeued job" in logs(tmp_path, "err") + logs(tmp_path, "out")
    alone = tmp_path / "alone"
    assert main(walks.walk_words(alone, **(TINY | settings))) == 0
    assert walks.results(tmp_path) == walks.results(alone)


def test_a_plain_requeue_is_answered_by_a_checkpoint_too(tmp_path, slurm, undisturbed):
    rare = {"epochs": 2000, "checkpoint_interval": 1_000_000}
    process = walks.start(tmp_path, *slurm("--wait"), **rare)
    wait_until(lambda: list((tmp_path / "results" / "outputs_A5").glob("*.json")), process)
    subprocess.run(["scontrol", "requeue", number_of_job(tmp_path)], check=True)
    wait_until(lambda: walks.newest_step(tmp_path) > 0, process)
    out, errors = process.communicate()
    assert process.returncode == 0, out + errors
    assert walks.results(tmp_path) == undisturbed


def test_a_killed_task_is_reported_and_the_next_command_goes_on(tmp_path, slurm, undisturbed):
    process = walks.start(tmp_path, *slurm("--wait"), epochs=2000)
    wait_until(lambda: walks.newest_step(tmp_path) >= 20, process)
    os.kill(walks.worker_pids(tmp_path)[0], signal.SIGKILL)
    out, errors = process.communicate()
    assert process.returncode == 1, out + errors
    assert "0 pending, 0 running, 0 done, 1 failed" in out
    assert "failed: A5 length 4, RNN, depth 1: job " in errors
    done = walks.finish(tmp_path, *slurm("--wait"), epochs=2000)
    assert done.returncode == 0, done.stderr
    assert walks.results(tmp_path) == undisturbed


def test_a_controller_that_is_killed_and_comes_back_loses_nothing(tmp_path, slurm, cluster):
    steps = 8000  # for longer than the controller takes to save its state
    process = walks.start(tmp_path, *slurm("--wait"), epochs=steps)
    wait_until(lambda: walks.newest_step(tmp_path) >= 20, process)
    # A job that it did not save as running it would start again when it comes back. It saves after
    # every change, such as this one.
    seen, state = time.time(), cluster / "state" / "job_state"
    change = ["scontrol", "update", f"JobId={number_of_job(tmp_path)}", "Comment=saved"]
    subprocess.run(change, check=True)
    wait_until(lambda: state.exists() and state.stat().st_mtime > seen, process)
    os.kill(int((cluster / "slurmctld.pid").read_text()), signal.SIGKILL)
    time.sleep(1)
    subprocess.run(["slurmctld"], check=True)
    out, errors = process.communicate()
    assert process.returncode == 0, out + errors
    alone = tmp_path / "alone"
    assert walks.finish(alone, epochs=steps).returncode == 0
    assert walks.results(tmp_path) == walks.results(alone)


def test_two_commands_at_once_do_no_run_twice(tmp_path, slurm):
    settings = {"lengths": [4, 5], "epochs": 500}
    processes = [walks.start(tmp_path, *slurm("--wait"), **settings) for _ in range(2)]
    for process in processes:
        out, errors = process.communicate()
        assert process.returncode == 0, out + errors
        assert "2 done, 0 failed" in out
    wait_for_empty_queue()
    for length in settings["lengths"]:
        line = f"A5 length {length}, RNN, depth 1: not solved"
        assert logs(tmp_path, "out").count(line) == 1


def test_a_run_that_fails_is_reported_with_the_end_of_its_log(tmp_path, slurm):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "broken").touch()
    done = walks.finish(tmp_path, *slurm("--wait"))
    assert done.returncode == 1
    assert "0 pending, 0 running, 0 done, 1 failed" in done.stdout
    assert "failed: A5 length 4, RNN, depth 1: job " in done.stderr
    assert f"  | error: {tmp_path / 'data' / 'broken'}: these data are broken" in done.stderr


def test_without_wait_the_command_returns_and_the_next_one_submits_nothing_again(tmp_path, slurm):
    held = slurm(sbatch={"hold": True})
    done = walks.finish(tmp_path, *held, lengths=[4, 5])
    assert done.returncode == 0, done.stderr
    assert "submitted 2 runs as job " in done.stdout
    assert "look at them with squeue --me" in done.stdout
    again = walks.finish(tmp_path, *held, lengths=[4, 5, 6])
    assert "2 runs are in the queue already" in again.stdout
    assert "submitted 1 runs as job " in again.stdout
    subprocess.run(["scancel", "--me"], check=True)


def test_ctrl_c_ends_the_waiting_and_not_the_jobs(tmp_path, slurm):
    process = walks.start(tmp_path, *slurm("--wait", sbatch={"hold": True}))
    while "1 pending" not in process.stdout.readline():
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    assert process.returncode == 130 and "the jobs go on: squeue --me shows them" in out
    queue = subprocess.run(["squeue", "--noheader"], capture_output=True, check=True, text=True)
    assert number_of_job(tmp_path).partition("_")[0] in queue.stdout
    subprocess.run(["scancel", "--me"], check=True)


def test_what_sbatch_refuses_is_an_error_in_its_words(tmp_path, slurm):
    done = walks.finish(tmp_path, *slurm(partition="none such"))
    assert done.returncode == 2
    assert "error: --launcher slurm: sbatch refused the job: " in done.stderr
    assert "invalid partition specified: none such" in done.stderr
