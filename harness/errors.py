"""Every error that a user may meet; `run_experiment.py` turns each into a line and an exit code."""


class ConfigError(ValueError):
    """A command line or config that cannot be used; the message names file, key and values."""


class DataError(ValueError):
    """A data file is missing, malformed or inconsistent; the message names the file and line."""


class ResultFileError(ValueError):
    """A result file exists but its content cannot be used; the message says why."""


class ResultsError(RuntimeError):
    """Results that cannot be written, or that would replace others; the message names the files."""


class UnavailableError(RuntimeError):
    """A device or library that was asked for is not there; the message says how to get it."""


class CompilationError(RuntimeError):
    """The operators do not compile here; the message ends with the compiler's last lines."""


class LockLostError(RuntimeError):
    """Another process took the lock over: what was done under it must not be saved."""


class OutputError(RuntimeError):
    """Standard output that cannot be written: a full disk, or a pipe that nobody reads."""
