"""Where things are: the repository's own root, and the folders inside data and results folders."""

from argparse import ArgumentTypeError
from pathlib import Path

from harness.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
CONFIG_FOLDER = ROOT / "experiment_configs"
DATA_DIR = ROOT / "data_dir"
RESULTS_DIR = ROOT / "results"

# Below a data folder. The word problems' has the name that their authors gave it.
TOY_DATA = "toy_data"
WORD_DATA = "illusion"

# Below a results folder; the first two have the names of the released ones.
TOY_RESULTS = "outputs_toy"
A5_RESULTS = "outputs_A5"
THEORY_RESULTS = "outputs_theory"
CHECKPOINTS = "checkpoints"
LOCKS = "locks"
LOGS = "logs"


def user_path(path: Path, words: str) -> Path:
    """A path with ~ replaced; words: what to name. Raises: ConfigError, where there is no home."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(f"{words}: no home folder is known for {path.parts[0]}") from None


def path_argument(text: str) -> Path:
    """An argument of argparse that is a user's path. Raises: ArgumentTypeError."""
    try:
        return user_path(Path(text), text)
    except ConfigError as error:
        raise ArgumentTypeError(str(error)) from None
