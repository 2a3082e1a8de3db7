"""Whatever happens to the processes, the disk or the clock: no result is lost, wrong or halved."""

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import walks
from harness.checkpoints import FORMAT

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results of the run that the tests disturb."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = walks.finish(folder)
    assert done.returncode == 0, done.stderr
    return walks.results(folder)


@pytest.fixture
def small_disk(tmp_path, mount_disk):
    """A folder whose results are on a disk of their own, of 128 KiB."""
    results = tmp_path / "results"
    results.mkdir()
    mount_disk(results, 128)
    return tmp_path


def wait_for_step(folder, step, process):
    while process.poll() is None and walks.newest_step(folder) < step:
        time.sleep(0.002)


def kill_at_step(folder, step, **settings):
    """Start, and kill some steps after the checkpoint of this step, which is there then."""
    process = walks.start_held(folder, step + 5, **settings)
    assert walks.newest_step(folder) == step
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -9, errors


def assert_finishes(folder, undisturbed, **settings):
    done = walks.finish(folder, **settings)
    assert done.returncode == 0, done.stderr
    assert walks.results(folder) == undisturbed
    assert len(list((folder / "results" / "checkpoints").glob("*/*"))) == 1
    assert not list((folder / "results").rglob("*.tmp"))
    return done


def fill(disk: Path) -> Path:
    """Leave one page free: enough for a lock, not for a checkpoint or a result."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(file.tell() - os.sysconf("SC_PAGE_SIZE"))
    return filler


def test_killed_at_12_random_moments_a_run_ends_with_the_bytes_of_an_undisturbed_one(
    tmp_path, undisturbed
):
    rng = np.random.default_rng(20)
    for kill in range(12):
        process = walks.start(tmp_path)
        if kill % 4:  # while it trains, saves or evaluates; else at any moment, starting included
            wait_for_step(tmp_path, walks.newest_step(tmp_path) + rng.integers(1, 12), process)
            time.sleep(rng.uniform(0, 0.02))
        else:
            time.sleep(rng.uniform(0, 0.6))
        process.kill()
        process.communicate()
    assert_finishes(tmp_path, undisturbed)


def test_a_disk_that_is_full_at_a_checkpoint_is_named_and_the_run_goes_on_once_there_is_room(
    small_disk, undisturbed
):
    process = walks.start_held(small_disk, 25)
    filler = fill(small_disk / "results")
    walks.let_go(small_disk)
    _, errors = process.communicate()
    assert process.returncode == 1, errors
    assert "error: [Errno 28] No space left on device: " in errors and "Traceback" not in errors
    assert str(small_disk / "results") in errors
    assert walks.newest_step(small_disk) == 20
    assert walks.worker_pids(small_disk) == []  # no lock is left, nor one that cannot be read
    filler.unlink()
    done = assert_finishes(small_disk, undisturbed)
    assert "damaged" not in done.stderr


def test_a_disk_that_is_full_at_a_result_keeps_the_curve_so_far(small_disk, undisturbed):
    rare = {"checkpoint_interval": 1000}
    process = walks.start_held(small_disk, 25, **rare)
    outputs = small_disk / "results" / "outputs_A5"
    filler = fill(small_disk / "results")
    walks.let_go(small_disk)
    _, errors = process.communicate()
    assert process.returncode == 1, errors
    assert "No space left on device" in errors and "Traceback" not in errors
    (record,) = walks.results(small_disk).keys() & {p.name for p in outputs.glob("*.json")}
    assert json.loads((outputs / record).read_text())["outcome"] == "unfinished"
    steps, accuracies = (np.load(p) for p in sorted(outputs.glob("*.npy"), reverse=True))
    assert len(steps) == len(accuracies) >= 1
    filler.unlink()
    assert_finishes(small_disk, undisturbed, **rare)


def test_a_results_folder_that_became_read_only_is_refused_and_left_alone(small_disk, undisturbed):
    kill_at_step(small_disk, 20)
    remount = ["mount", "-o", "remount,{}", small_disk / "results"]
    subprocess.run([str(word).format("ro") for word in remount], check=True)
    refused = walks.finish(small_disk)
    subprocess.run([str(word).format("rw") for word in remount], check=True)
    assert refused.returncode == 2
    assert "outputs_A5 cannot be written: Read-only file system" in refused.stderr
    assert_finishes(small_disk, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_run_that_is_told_to_stop_saves_a_checkpoint_first(tmp_path, undisturbed, number):
    rare = {"checkpoint_interval": 1000}
    process = walks.start_held(tmp_path, 25, **rare)
    process.send_signal(number)
    walks.let_go(tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 75, errors
    assert "the same command goes on" in errors and "Traceback" not in errors
    assert walks.newest_step(tmp_path) == 26 and walks.worker_pids(tmp_path) == []
    assert_finishes(tmp_path, undisturbed, **rare)


def test_a_background_job_ignores_ctrl_c_as_its_shell_wants_and_sigterm_stops_it(tmp_path):
    background = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
    process = walks.start_held(tmp_path, 25, through=background, checkpoint_interval=1000)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    walks.let_go(tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 75, errors  # 130 where Ctrl-C was heard
    assert walks.newest_step(tmp_path) == 26


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_saves_a_checkpoint_first_and_a_second_one_ends_at_once(
    tmp_path, undisturbed, times
):
    process = walks.start_held(tmp_path, 25)
    process.send_signal(signal.SIGINT)
    while "Ctrl-C again" not in process.stderr.readline():
        assert process.poll() is None
    if times == 2:
        process.send_signal(signal.SIGINT)  # while it is held
    else:
        walks.let_go(tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors and "Traceback" not in errors
    assert walks.newest_step(tmp_path) == (26 if times == 1 else 20)
    assert walks.worker_pids(tmp_path) == []
    assert_finishes(tmp_path, undisturbed)


def test_two_processes_on_one_results_folder_do_each_run_once(tmp_path):
    settings = {"lengths": [4, 5, 6], "epochs": 100}
    processes = [walks.start(tmp_path, **settings) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    lines = "".join(out for out, _ in outputs).splitlines()
    for length in settings["lengths"]:
        label = f"A5 length {length}, RNN, depth 1: not solved"
        assert sum(line.startswith(label) for line in lines) == 1, lines
    plan = walks.finish(tmp_path, "--plan", **settings)
    assert "3 runs: 3 done" in plan.stdout


def test_a_checkpoint_with_a_flipped_bit_is_named_and_the_one_before_is_used(tmp_path, undisturbed):
    kill_at_step(tmp_path, 30)
    newest = max((tmp_path / "results" / "checkpoints").glob("*/step_*.npz"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    done = assert_finishes(tmp_path, undisturbed)
    assert f"warning: checkpoint {newest} is damaged" in done.stderr


def test_a_checkpoint_of_another_config_is_refused_with_the_difference(tmp_path, undisturbed):
    kill_at_step(tmp_path, 20)
    shutil.rmtree(tmp_path / "results" / "outputs_A5")
    refused = walks.finish(tmp_path, weight_decay=0.5)
    assert refused.returncode == 2
    assert "weight_decay 0.01 where this run has 0.5" in refused.stderr
    assert_finishes(tmp_path, undisturbed)


def test_a_checkpoint_of_another_version_is_refused_with_the_difference(tmp_path):
    kill_at_step(tmp_path, 20)
    newest = max((tmp_path / "results" / "checkpoints").glob("*/step_*.npz"))
    newest.with_suffix(".json").write_text('{"format": 2}')
    refused = walks.finish(tmp_path)
    assert refused.returncode == 2
    assert f"a format before 3 where this version reads {FORMAT}" in refused.stderr
    assert str(newest.parent) in refused.stderr


def test_a_time_of_day_that_goes_backwards_changes_nothing(tmp_path, undisturbed):
    kill_at_step(tmp_path, 30, variables={"CLOCK": "backwards"})
    assert_finishes(tmp_path, undisturbed, variables={"CLOCK": "backwards"})
    (record,) = (tmp_path / "results" / "outputs_A5").glob("*.json")
    seconds = json.loads(record.read_text())["history"]["seconds"]
    assert seconds == sorted(seconds) and seconds[0] >= 0


def test_a_results_folder_that_vanishes_is_made_again(tmp_path, undisturbed):
    process = walks.start_held(tmp_path, 25)
    (tmp_path / "results").rename(tmp_path / "gone")
    walks.let_go(tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert_finishes(tmp_path, undisturbed)
