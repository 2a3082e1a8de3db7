"""Two processes never hold one lock, and the lock of a dead owner is free."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from threading import Barrier, Thread

import pytest

from harness import locks
from harness.errors import LockLostError
from harness.locks import Lock, Owner
from harness.paths import ROOT

HOLD = """
import sys, time
from pathlib import Path
from harness.locks import Lock
print(Lock(Path(sys.argv[1]), "run").try_acquire(), flush=True)
time.sleep(1000)
"""
ELSEWHERE = replace(Owner.this_process({}), host="node7", machine="another", nonce="theirs")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def write_owner(folder, owner, number=1):
    folder.mkdir(exist_ok=True)
    (folder / f"run.{number}").write_text(json.dumps(asdict(owner)))


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Put a `squeue` first on the PATH that answers as told."""

    def answer(output="", errors="", code=0):
        script = tmp_path / "bin" / "squeue"
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\necho '{output}'\necho '{errors}' >&2\nexit {code}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)

    return answer


def test_a_held_lock_is_refused_by_its_owners_name_until_it_is_given_back(tmp_path):
    one, two = Lock(tmp_path, "run"), Lock(tmp_path, "run")
    assert one.try_acquire() is None
    assert two.try_acquire() == two.holder() == f"process {os.getpid()} on {one.owner.host}"
    one.confirm()
    one.release()
    assert list(tmp_path.iterdir()) == [] and two.holder() is None
    assert two.try_acquire() is None


def test_a_killed_owners_lock_is_taken_over_at_once(tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "None\n"
        lock = Lock(tmp_path, "run")
        assert lock.try_acquire().startswith(f"process {owner.pid} on ")
        owner.kill()
        os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # dead, and nobody has looked
        assert lock.try_acquire() is None


def test_a_process_that_has_a_dead_owners_number_is_not_the_owner(tmp_path):
    me = Owner.this_process({})
    write_owner(tmp_path, replace(me, started=me.started - 1))
    assert Lock(tmp_path, "run").try_acquire() is None


def test_an_owner_that_the_system_hides_from_other_users_is_not_taken_for_dead(
    tmp_path, monkeypatch
):
    def belongs_to_another_user(pid, number):
        raise PermissionError

    write_owner(tmp_path, replace(Owner.this_process({}), pid=2**22 + 1))  # Linux has none above
    monkeypatch.setattr(os, "kill", belongs_to_another_user)
    clock = Clock()
    lock = Lock(tmp_path, "run", patience_s=300, clock=clock)
    assert lock.try_acquire() is not None
    clock.now += 301
    assert lock.try_acquire() is None


@pytest.mark.parametrize("before", ["free", "dead"])
def test_of_many_that_find_a_lock_free_at_once_exactly_one_gets_it(tmp_path, before, monkeypatch):
    if before == "dead":
        write_owner(tmp_path, replace(Owner.this_process({}), started=1))
    locks = [Lock(tmp_path, "run") for _ in range(4)]
    barrier, create, got = Barrier(len(locks)), Lock._create, []

    def create_once_all_have_looked(lock, number):
        barrier.wait()
        return create(lock, number)

    def take(lock):
        if lock.try_acquire() is None:
            got.append(lock)

    with monkeypatch.context() as patch:
        patch.setattr(Lock, "_create", create_once_all_have_looked)
        threads = [Thread(target=take, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    (owner,) = got
    owner.confirm()
    owner.release()


def test_an_owner_on_another_host_is_dead_after_the_observers_own_patience(tmp_path):
    clock = Clock()
    write_owner(tmp_path, ELSEWHERE)
    lock = Lock(tmp_path, "run", patience_s=300, clock=clock)
    assert "on node7" in lock.try_acquire()
    clock.now += 299
    # A heartbeat is any change, whatever the other host's clock says: here it went back by years.
    os.utime(tmp_path / "run.1", (0, 0))
    assert "on node7" in lock.try_acquire()
    clock.now += 299
    assert "on node7" in lock.try_acquire()
    clock.now += 2
    assert lock.try_acquire() is None


def test_the_time_of_day_decides_nothing(tmp_path, monkeypatch):
    write_owner(tmp_path, ELSEWHERE)
    lock = Lock(tmp_path, "run", clock=Clock())
    for day in (0, 1e10, 5):
        monkeypatch.setattr(time, "time", lambda day=day: day)
        monkeypatch.setattr(time, "time_ns", lambda day=day: int(day * 1e9))
        assert "on node7" in lock.try_acquire()


def test_an_owner_killed_before_it_wrote_who_it_is_has_the_lock_for_half_a_minute(tmp_path):
    clock = Clock()
    (tmp_path / "run.1").touch()
    lock = Lock(tmp_path, "run", patience_s=300, clock=clock)
    assert lock.try_acquire() == "another process"
    clock.now += 29
    assert lock.try_acquire() == "another process"
    clock.now += 2
    assert lock.try_acquire() is None


def test_a_held_lock_has_a_heartbeat(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.01)
    lock = Lock(tmp_path, "run")
    lock.try_acquire()
    os.utime(tmp_path / "run.1", (0, 0))
    while (tmp_path / "run.1").stat().st_mtime == 0:
        time.sleep(0.01)
    lock.release()


@pytest.mark.parametrize(
    ("answer", "free"),
    [
        ({"output": "RUNNING"}, False),
        ({"output": "COMPLETING"}, False),
        ({"output": "PENDING"}, True),  # requeued: what had the lock has been killed
        ({"output": ""}, True),
        ({"errors": "slurm_load_jobs error: Invalid job id specified", "code": 1}, True),
        ({"errors": "Unable to contact slurm controller", "code": 1}, False),
    ],
    ids=str,
)
def test_a_jobs_lock_is_free_once_slurm_says_that_the_job_is_gone(tmp_path, squeue, answer, free):
    squeue(**answer)
    write_owner(tmp_path / "locks", replace(ELSEWHERE, slurm_job="12_3"))
    owner = Lock(tmp_path / "locks", "run").try_acquire()
    assert owner is None if free else owner.endswith("on node7, SLURM job 12_3")


def test_a_running_jobs_lock_is_kept_without_a_heartbeat_and_a_silent_slurms_is_not(
    tmp_path, squeue
):
    write_owner(tmp_path / "locks", replace(ELSEWHERE, slurm_job="12"))
    clock = Clock()
    lock = Lock(tmp_path / "locks", "run", patience_s=300, clock=clock)
    squeue(output="RUNNING")
    assert lock.try_acquire() is not None
    clock.now += 1000
    assert lock.try_acquire() is not None
    squeue(errors="Unable to contact slurm controller", code=1)
    clock.now += 1000
    assert lock.try_acquire() is None


def test_a_requeued_job_takes_over_from_itself(tmp_path, squeue, monkeypatch):
    squeue(output="RUNNING")
    environment = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "15"}
    before = replace(Owner.this_process(environment), machine="another", nonce="before")
    assert before.slurm_job == "12_3"
    write_owner(tmp_path / "locks", before)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Lock(tmp_path / "locks", "run").try_acquire() is not None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert Lock(tmp_path / "locks", "run").try_acquire() is None


def test_an_owner_whose_lock_was_taken_notices_and_leaves_it(tmp_path):
    slow = Lock(tmp_path, "run")
    slow.try_acquire()
    write_owner(tmp_path, ELSEWHERE, number=2)
    with pytest.raises(LockLostError, match="on node7"):
        slow.confirm()
    slow.release()
    assert slow.holder() == ELSEWHERE.words


def test_an_owner_notices_a_taker_that_it_does_not_see_yet(tmp_path, monkeypatch):
    slow = Lock(tmp_path, "run")
    slow.try_acquire()
    top = slow._top()
    write_owner(tmp_path, ELSEWHERE, number=2)
    with monkeypatch.context() as out_of_date:  # as NFS may list a folder
        out_of_date.setattr(slow, "_top", lambda: top)
        with pytest.raises(LockLostError):
            slow.confirm()


def test_a_taker_whose_view_is_out_of_date_steps_back(tmp_path, monkeypatch):
    write_owner(tmp_path, replace(Owner.this_process({}), started=1))
    late = Lock(tmp_path, "run")
    dead, read_again = late._top(), late._top
    (tmp_path / "run.1").unlink()  # taken over, given back...
    current = Lock(tmp_path, "run")
    assert current.try_acquire() is None  # ...and taken again
    views = iter([dead])
    monkeypatch.setattr(late, "_top", lambda: next(views, None) or read_again())
    assert late.try_acquire() == current.owner.words
    current.confirm()


def test_a_lock_whose_folder_was_removed_is_made_again_unless_another_has_it(tmp_path):
    folder = tmp_path / "locks"
    lock = Lock(folder, "run")
    lock.try_acquire()
    (folder / "run.1").unlink()
    folder.rmdir()
    lock.confirm()
    other = Lock(folder, "run")
    assert other.try_acquire() == lock.owner.words
    (folder / "run.2").unlink()
    assert other.try_acquire() is None
    with pytest.raises(LockLostError):
        lock.confirm()
    lock.release()
    assert other.holder() == other.owner.words


def test_locks_whose_names_begin_alike_are_apart(tmp_path):
    assert Lock(tmp_path, "run_1").try_acquire() is None
    assert Lock(tmp_path, "run_1.5").try_acquire() is None
    assert Lock(tmp_path, "run").try_acquire() is None
