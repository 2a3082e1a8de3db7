"""The error every data file of this repository raises when it is not what it should be."""


class DataError(ValueError):
    """A data file is missing, malformed or inconsistent; the message names the file and line."""
