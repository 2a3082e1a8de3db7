"""Records of results: those that a test has written, and those of this repository."""

import hashlib
import json
from pathlib import Path
from types import ModuleType

from experiments.schema import ExperimentConfig, load_config
from harness.paths import CONFIG_FOLDER
from harness.records import Run

# A run's setting, and the list of the config that it is taken from.
LISTS = {
    "model": "models",
    "length": "lengths",
    "depth": "depths",
    "input_dim": "input_dims",
    "nonlinear": "nonlinear",
}


def write_record(paths: list[Path], config: dict, **more) -> Path:
    """Write the record of a run that left these files; returns its path."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    record = paths[0].with_suffix(".json")
    record.write_text(json.dumps({"config": config, "files": digests, **more}))
    return record


def planned(experiment: ModuleType, settings: dict, folder: Path) -> tuple[ExperimentConfig, Run]:
    """The shipped config, changed to what a record has, and the run of it that is the record's."""
    fields = experiment.Config.model_fields
    values = {key: value for key, value in settings.items() if key in fields}
    values |= {LISTS[key]: [value] for key, value in settings.items() if key in LISTS}
    if "run" in settings:
        values["runs"] = settings["run"] + 1
    overrides = {key: (value, "a record") for key, value in values.items()}
    name = experiment.__name__.rpartition(".")[2]
    config = load_config(experiment.Config, CONFIG_FOLDER / f"{name}.yaml", overrides)
    (run,) = [run for run in experiment.plan(config, folder) if run.config == settings]
    return config, run
