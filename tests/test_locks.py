"""Two processes never hold one lock, and a lock is free once its process is dead."""

import errno
import os
import signal
import subprocess
import sys
from threading import Barrier, Event, Thread, current_thread

import pytest

from harness.errors import LockLostError, UnavailableError
from harness.locks import Lock, this_process, waiting
from harness.paths import ROOT

pytestmark = pytest.mark.processes

# Takes the lock, does as the test says, and waits for its standard input to end.
HOLD = """
import os, subprocess, sys
from pathlib import Path
from harness.locks import Lock
lock = Lock(Path(sys.argv[1]), "run")
print(lock.try_acquire(), flush=True)
{}
sys.stdin.read()
"""
# A child of the owner, whose number is said once it has begun.
CHILDREN = {
    "forked": "if not os.fork(): print(os.getpid(), flush=True)",
    "started": "print(subprocess.Popen(['sleep', '1000']).pid, flush=True)",
}


def hold(folder, then=""):
    """A process that holds the lock."""
    command = [sys.executable, "-c", HOLD.format(then), folder]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    assert process.stdout.readline() == "None\n"
    return process


def test_a_held_lock_is_refused_by_its_owners_name_until_it_is_given_back(tmp_path):
    one, two = Lock(tmp_path, "run"), Lock(tmp_path, "run")
    assert one.try_acquire() is None
    assert two.try_acquire() == two.holder() == one.holder() == this_process()
    one.confirm()
    one.release()
    assert two.holder() is None and two.try_acquire() is None
    two.release()
    assert list(tmp_path.iterdir()) == []


def test_the_owner_is_named_by_process_host_and_job(tmp_path):
    with hold(tmp_path) as owner:
        found = Lock(tmp_path, "run").try_acquire()
        assert found == this_process().replace(str(os.getpid()), str(owner.pid))
    assert this_process({}).endswith(f" on {os.uname().nodename}")
    assert this_process({"SLURM_JOB_ID": "15"}).endswith(", SLURM job 15")
    array = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "15"}
    assert this_process(array).endswith(", SLURM job 12_3")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_owners_lock_is_free_at_once(tmp_path, number):
    lock = Lock(tmp_path, "run")
    with hold(tmp_path) as owner:
        assert lock.holder() is not None
        owner.send_signal(number)
        os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)  # dead, and nobody has looked
        assert lock.path.exists() and lock.try_acquire() is None
        lock.confirm()


@pytest.mark.parametrize("how", CHILDREN)
def test_a_dead_owners_child_does_not_keep_its_lock(tmp_path, how):
    with hold(tmp_path, CHILDREN[how]) as owner:
        child = int(owner.stdout.readline())
        try:
            assert Lock(tmp_path, "run").try_acquire() is not None
            owner.kill()
            owner.wait()
            os.kill(child, 0)  # it is alive
            assert Lock(tmp_path, "run").try_acquire() is None
        finally:
            os.kill(child, signal.SIGKILL)


def test_of_many_that_find_a_lock_free_at_once_exactly_one_gets_it(tmp_path):
    barrier, got = Barrier(8), []

    def take(lock):
        barrier.wait()
        if lock.try_acquire() is None:
            got.append(lock)

    threads = [Thread(target=take, args=(Lock(tmp_path, "run"),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (owner,) = got
    owner.confirm()


def test_a_look_at_a_free_lock_is_not_mistaken_for_an_owner(tmp_path, monkeypatch):
    with hold(tmp_path) as owner:
        owner.kill()
    found, arrived, take = [], Event(), Lock.take
    taker = Thread(target=lambda: found.append(Lock(tmp_path, "run").try_acquire()))

    def take_when_seen(lock, blocking):
        if current_thread() is taker:
            arrived.set()
        return take(lock, blocking)

    def release_once_another_tries(lock):
        if lock.name == "run" and not arrived.is_set():  # the look has the lock
            taker.start()
            arrived.wait()
            taker.join(0.2)  # a taker that is not held up fails meanwhile
        return release(lock)

    release = Lock.release
    monkeypatch.setattr(Lock, "take", take_when_seen)
    monkeypatch.setattr(Lock, "release", release_once_another_tries)
    assert Lock(tmp_path, "run").holder() is None
    taker.join()
    assert found == [None]


def test_a_lock_whose_folder_was_removed_is_made_again_unless_another_has_it(tmp_path):
    folder = tmp_path / "locks"
    lock, other = Lock(folder, "run"), Lock(folder, "run")
    lock.try_acquire()
    folder.rename(tmp_path / "gone")
    lock.confirm()
    assert other.try_acquire() is not None
    lock.path.unlink()
    assert other.try_acquire() is None
    with pytest.raises(LockLostError, match=f"run.lock went to {this_process()}"):
        lock.confirm()
    lock.release()
    other.confirm()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused_by_name(tmp_path, monkeypatch, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    for take in (Lock(tmp_path, "run").try_acquire, waiting(tmp_path, "data").__enter__):
        with pytest.raises(UnavailableError, match=f"{tmp_path} has no file locks") as refused:
            take()
        assert os.strerror(number) in str(refused.value)


def test_locks_whose_names_begin_alike_are_apart(tmp_path):
    apart = [Lock(tmp_path, name) for name in ("run_1", "run_1.5", "run")]
    assert [lock.try_acquire() for lock in apart] == [None, None, None]


def test_giving_back_leaves_the_file_of_another_owner(tmp_path):
    lock, other = Lock(tmp_path, "run"), Lock(tmp_path, "run")
    lock.try_acquire()
    lock.path.unlink()
    other.try_acquire()
    lock.release()
    assert other.path.exists()


def test_waiting_ends_when_the_owner_gives_back_and_leaves_no_file(tmp_path):
    owner, inside = Lock(tmp_path, "data"), Event()
    owner.take(blocking=False)

    def wait():
        with waiting(tmp_path, "data"):
            inside.set()

    waiter = Thread(target=wait)
    waiter.start()
    assert not inside.wait(0.2)
    owner.release()
    waiter.join()
    assert inside.is_set() and list(tmp_path.iterdir()) == []
