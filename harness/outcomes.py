"""How runs end, in the words of their records, and which of these ends are failures."""

# A run that has results so far, but is not done.
UNFINISHED = "unfinished"
# A run without files, whose result others have made needless.
NOT_NEEDED = "not needed"
# A run that went on to its end without what it was to reach.
NOT_SOLVED = "not solved"
# A run that had nothing to reach, or whose record does not name any end.
FINISHED = "finished"


def diverged(outcome: str | None) -> bool:
    """Whether a run ended because its numbers were no longer finite."""
    return outcome is not None and outcome.startswith("diverged")


def failed(outcome: str | None) -> bool:
    """Whether a run has failed: it solved nothing to its end, or diverged. None: not known."""
    return outcome in (FINISHED, NOT_SOLVED) or diverged(outcome)
