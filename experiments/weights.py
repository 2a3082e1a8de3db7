"""Trained parameters as files of their own: safetensors, their metadata saying what made them.

A file has the name of its run's record. Its metadata have one entry, `run`: JSON, so that the same
model is the same bytes.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from experiments.training_loop import checkpoint_config
from harness.atomic_files import atomic_write
from harness.checkpoints import Checkpoints, checkpoint_folder
from harness.errors import ConfigError, ResultFileError, ResultsError
from harness.outcomes import diverged
from harness.records import Run, Status, check_writable, read_record, run_state

# How checkpoints name what is no parameter, and the part of a state that is the model.
MOMENTS = ("adam.", "moments.")
MODEL, COMPILED = "model.", "_orig_mod."


class Made(BaseModel):
    """What made the parameters of a file: the run, how it ended, the code."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    experiment: Literal["lcde_a5", "ssm_toy", "ssm_a5"]
    config: dict[str, Any]
    outcome: str
    result: dict[str, int | float | None]  # the record's last entries: steps, the metric
    data: dict[str, str]  # SHA-256 of the data files
    commit: str | None
    dirty: bool | None


def check_saving(experiment: ModuleType, folder: Path) -> None:
    """Raises: ConfigError, where nothing is trained; ResultsError, where nothing can be written."""
    if not hasattr(experiment, "trained_model"):
        raise ConfigError(
            "--save-model: random Linear CDEs are drawn from their seed, and -e theory keeps no "
            "parameters (allowed: -m SequenceModel, or -m LCDE -e A5)"
        )
    check_writable(folder)


def save_models(experiment: str, runs: Sequence[Run], folder: Path) -> None:
    """Save the parameters of every run that is done, from the state that its folder keeps.

    experiment: its module's name. Runs that are not done, or diverged, are passed over with a line.
    Raises: ResultsError, when all others are saved, naming the runs without a state and the files
    that hold something else, which stay as they are; OSError.
    """
    problems = []
    for run in runs:
        path = folder / f"{run.record.stem}.safetensors"
        try:
            print(f"{run.label}: {_save(experiment, run, path)}", flush=True)
        except ResultsError as error:
            problems.append(f"{run.label}: {error}")
    if problems:
        raise ResultsError("\n".join(problems))


def _save(experiment: str, run: Run, path: Path) -> str:
    """Save one run's parameters. Returns what happened; raises: ResultsError, OSError."""
    if run_state(run).status is not Status.DONE:
        return "no parameters saved, it is not done"
    record = read_record(run.record)
    if diverged(record.outcome):
        return f"no parameters saved, it {record.outcome}"
    origin = record.provenance
    made = Made(
        experiment=experiment,
        config=record.config,
        outcome=record.outcome,
        result={name: values[-1] for name, values in record.history.items() if name != "seconds"},
        data=(origin.model_extra or {}).get("data", {}),
        commit=origin.commit,
        dirty=origin.dirty,
    )
    content = save(_last_parameters(run, made), {"run": made.model_dump_json()})
    if not path.exists():
        with atomic_write(path) as file:
            file.write(content)
        return f"parameters saved in {path}"
    if path.read_bytes() != content:
        raise ResultsError(f"{path} holds something else and was not touched; move it away")
    return f"its parameters are in {path} already"


def _last_parameters(run: Run, made: Made) -> dict[str, np.ndarray]:
    """The parameters that had the record's last metric. Raises: ResultsError."""
    folder = checkpoint_folder(run)
    kept = Checkpoints(folder, checkpoint_config(made.config, made.data)).kept()
    if kept is None or kept.state["step"] != made.result["steps"]:
        raise ResultsError(
            f"no parameters saved, {folder} does not hold its last state; another --results-dir "
            "does the run again"
        )
    parameters = {name: x for name, x in kept.arrays.items() if not name.startswith(MOMENTS)}
    return {name.removeprefix(MODEL).removeprefix(COMPILED): x for name, x in parameters.items()}


def load_model(path: Path, device: str = "auto") -> Any:
    """The model whose parameters a file holds: a `SequenceModel`, to evaluate, or an `A5LinearCDE`.

    device: "cpu", "cuda", or "auto": a GPU where there is one.
    Raises: ResultFileError, naming the file; FileNotFoundError; UnavailableError;
    ModuleNotFoundError, where the model's framework is not installed.
    """
    made, parameters = read_weights(path)
    experiment = import_module(f"experiments.{made.experiment}")
    try:
        return experiment.trained_model(made.config, parameters, device)
    except ValueError as error:
        raise ResultFileError(f"{path}: {error}") from None


def read_weights(path: Path) -> tuple[Made, dict[str, np.ndarray]]:
    """What made the parameters of a file, and the parameters. Raises: as `load_model`."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            parameters = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Made.model_validate_json(metadata.get("run", "")), parameters
    except FileNotFoundError:
        raise
    except SafetensorError as error:
        reason = f"not a safetensors file ({error})"
    except OSError as error:
        reason = str(error.strerror or error)
    except ValidationError:
        reason = "its metadata do not say which run made it: not written by --save-model"
    raise ResultFileError(f"{path}: {reason}")
