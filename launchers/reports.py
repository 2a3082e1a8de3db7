"""What launchers say of the runs they started."""

import sys
from pathlib import Path

from harness.outcomes import diverged
from harness.records import Run, Status, latest_metric, outcome, run_state

LOG_LINES = 15


def is_finished(run: Run) -> bool:
    """Whether nothing more is to be done for a run."""
    return run_state(run).status in (Status.DONE, Status.NOT_NEEDED)


def divergence(run: Run) -> str:
    """How a finished run diverged, in its record's words; empty if it did not."""
    words = outcome(run)
    return words if diverged(words) else ""


def result_in_words(run: Run) -> str:
    """The state of a finished run, with its metric or the reason why it was not needed."""
    state = run_state(run)
    return f"{state.status}, {state.reason or latest_metric(run)}"


def print_failure(label: str, reason: str, log: Path) -> None:
    """Say on standard error that a run failed, with the last lines of its log. Raises: OSError."""
    text = log.read_text(errors="replace") if log.exists() else "(there is no log)"
    lines = "".join(f"  | {line}\n" for line in text.splitlines()[-LOG_LINES:])
    print(f"failed: {label}: {reason}; the end of {log}:\n{lines}", end="", file=sys.stderr)
