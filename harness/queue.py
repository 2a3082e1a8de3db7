"""The runs that this process does: one at a time, each under its lock, none that others hold."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path

from harness.atomic_files import remove_temporaries
from harness.checkpoints import Checkpoints, checkpoint_folder
from harness.errors import ResultsError
from harness.locks import Lock
from harness.paths import LOCKS
from harness.process import Stop
from harness.records import Run, RunContext, Show, Status, provenance, run_state, save_not_needed

POLL_S = 2.0
Version = tuple[int, int] | None
Display = Callable[[Run], AbstractContextManager[Show]]


def run_lock(run: Run) -> Lock:
    """The lock of a run, in a folder beside that of its results."""
    return Lock(run.record.parents[1] / LOCKS, run.record.stem)


def claimed_runs(
    runs: Sequence[Run], stop: Stop, display: Display, *, overwrite: bool, wait: bool
) -> Generator[Run]:
    """The runs still to be done, each with its context, its lock held while the caller does it.

    A run that another process holds is passed over with a line that names the owner. With `wait`
    its turn comes again after the others, until it is done, or its owner is dead. With `overwrite`
    a run starts anew, unless another process has done it since this call.
    display: opens where a run's values are shown. To be closed, so that no lock is kept.
    Raises: ResultsError, UnavailableError, OSError, KeyboardInterrupt once `stop` is wanted.
    """
    # Now: the body of a generator would begin when the first run is asked for.
    replaced = {run.record: _version(run.record) for run in runs} if overwrite else {}

    def claimed() -> Generator[Run]:
        turn, first = runs, True
        while True:
            others = []
            for run in turn:
                lock = run_lock(run)
                try:
                    owner = lock.try_acquire()
                    if owner is None and _is_due(run, replaced):
                        with display(run) as show:
                            yield replace(run, context=RunContext(lock.confirm, stop, show))
                finally:
                    lock.release()
                if owner is None:
                    if stop.wanted:
                        raise KeyboardInterrupt
                elif _is_replaced(run, replaced) or run_state(run).status is not Status.DONE:
                    others.append(run)
                    if first:
                        print(f"{run.label}: passed over, held by {owner}", flush=True)
            if not wait or not others:
                return
            if first:
                labels = "; ".join(run.label for run in others)
                print(f"waiting for what others hold: {labels}", flush=True)
            turn, first = others, False
            time.sleep(POLL_S)

    return claimed()


def _version(path: Path) -> Version:
    """What is another once a file was replaced; None where there is none. Raises: OSError."""
    with suppress(FileNotFoundError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def _is_replaced(run: Run, replaced: Mapping[Path, Version]) -> bool:
    """Whether a run's result is to be replaced, and nobody did so meanwhile."""
    return run.record in replaced and (
        replaced[run.record] == _version(run.record) or run_state(run).status is not Status.DONE
    )


def _is_due(run: Run, replaced: Mapping[Path, Version]) -> bool:
    """Whether a run is still to be done, now that nobody else can do it.

    One that is not needed any more gets a record that says so. Raises: ResultsError, OSError.
    """
    for path in (run.record, *run.files):
        remove_temporaries(path)
    state = run_state(run)
    if _is_replaced(run, replaced) and state.status is not Status.NOT_NEEDED:
        Checkpoints(checkpoint_folder(run), run.config).remove()
        return True
    match state.status:
        case Status.DONE:
            print(f"{run.label}: done by another process meanwhile", flush=True)
        case Status.CONFLICT:
            raise ResultsError(state.reason)
        case Status.NOT_NEEDED:
            print(f"{run.label}: not needed, {state.reason}", flush=True)
            save_not_needed(run, state.reason, provenance((), "none"))
    return state.status is Status.MISSING
