"""One typed, checked config for each experiment: YAML in, clear errors out.

Values live in `experiment_configs/*.yaml` alone: a key without a value there is an error, so a
file always states the whole experiment.
"""

import difflib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from data_dir.finite_groups import GROUP_NAMES
from harness.atomic_files import atomic_write
from harness.errors import ConfigError
from harness.paths import CONFIG_FOLDER, LOGS

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class ExperimentConfig(BaseModel):
    """What every experiment's config shares."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    # Short command-line flag -> the key it sets; a flag that is not here does not apply.
    flags: ClassVar[Mapping[str, str]] = {"-s": "seed"}
    # Keys that say which runs to do or where they go, not what a run is.
    not_identity: ClassVar[frozenset[str]] = frozenset({"results_dir"})

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    results_dir: Annotated[str, Field(min_length=1)]

    @classmethod
    def one_or_list(cls, key: str, value: Any) -> Any:
        """A flag's value, put in a list where the key takes a list."""
        is_list = get_origin(cls.model_fields[key].annotation) is list
        return [value] if is_list and not isinstance(value, list) else value

    def identity(self) -> dict[str, Any]:
        """The settings that define a run's result: all but `not_identity`, as JSON types."""
        return self.model_dump(mode="json", exclude=set(self.not_identity))


class LCDEToyConfig(ExperimentConfig):
    """The random Linear CDE with a trained linear readout on the toy task (paper, Figure 1)."""

    flags: ClassVar[Mapping[str, str]] = {"-s": "seed", "-i": "input_dims"}
    not_identity: ClassVar[frozenset[str]] = frozenset({"results_dir", "runs", "input_dims"})

    runs: PositiveInt
    input_dims: Annotated[list[Literal[2, 3]], Field(min_length=1)]
    hidden_dim: PositiveInt
    num_paths: Annotated[int, Field(ge=10)]
    train_fraction: Fraction
    paper_data: bool
    solver: Literal["tsit5", "scan"]
    rtol: PositiveFloat
    atol: PositiveFloat
    dt0: PositiveFloat
    share_flows: bool
    matmul_precision: Literal["float32", "tf32"]
    batch_size: PositiveInt
    flow_batch_size: PositiveInt

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if len(set(self.input_dims)) != len(self.input_dims):
            raise ValueError("input_dims: each dimension may be named once")
        if not 0 < int(self.train_fraction * self.num_paths) < self.num_paths:
            raise ValueError(
                f"train_fraction: {self.train_fraction} of num_paths: {self.num_paths} leaves no "
                "path to train on, or none to validate on"
            )
        if self.matmul_precision == "tf32" and self.share_flows:
            raise ValueError(
                "matmul_precision: tf32 rounds inside every stage of every path's solve, so it "
                "needs share_flows: false (allowed with share_flows: true: float32)"
            )
        return self


class LCDEA5Config(ExperimentConfig):
    """The Linear CDE on the word problem of a finite group (paper, Figure 2)."""

    flags: ClassVar[Mapping[str, str]] = {"-s": "seed", "-l": "lengths"}
    not_identity: ClassVar[frozenset[str]] = frozenset(
        {"results_dir", "lengths", "checkpoint_interval", "eval_batch_size"}
    )

    group: Literal[GROUP_NAMES]
    lengths: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]
    samples: Annotated[int, Field(ge=10)]
    data_seed: Annotated[int, Field(ge=0)]
    train_fraction: Fraction
    hidden_dim: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]
    learning_rate: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    batch_size: PositiveInt
    short_batch_size: Annotated[int, Field(ge=0)]
    max_steps: PositiveInt
    eval_interval: PositiveInt
    eval_batch_size: PositiveInt
    stop_accuracy: Annotated[float, Field(gt=0, le=1)]
    checkpoint_interval: PositiveInt


ToyModel = Literal["Mamba", "S4", "S5"]
A5Model = Literal["RNN", "Transformer", "S4", "Mamba"]
ScanBackend = Literal["auto", "mamba_ssm", "cpp", "reference"]
Depth = PositiveInt
Length = Annotated[int, Field(ge=2)]


class SSMConfig(ExperimentConfig):
    """What the two experiments with trained sequence models share."""

    hidden_dim: PositiveInt
    state_dim: PositiveInt
    batch_size: PositiveInt
    eval_interval: PositiveInt
    eval_batch_size: PositiveInt
    checkpoint_interval: PositiveInt
    s4_mode: Literal["convolution", "scan"]
    s4_softplus_step: bool
    scan_backend: ScanBackend
    compile: bool


class SSMToyConfig(SSMConfig):
    """S4, Mamba and S5 trained on the toy task (paper, Figure 1)."""

    flags: ClassVar[Mapping[str, str]] = {
        "-s": "seed",
        "-n": "models",
        "-d": "depths",
        "-i": "input_dims",
        "-nl": "nonlinear",
    }
    not_identity: ClassVar[frozenset[str]] = frozenset(
        {"results_dir", "runs", "models", "input_dims", "depths", "nonlinear"}
        | {"checkpoint_interval", "eval_batch_size"}
    )

    runs: PositiveInt
    models: Annotated[list[ToyModel], Field(min_length=1)]
    input_dims: Annotated[list[Literal[2, 3]], Field(min_length=1)]
    depths: Annotated[list[Depth], Field(min_length=1)]
    nonlinear: Annotated[list[bool], Field(min_length=1)]
    num_paths: Annotated[int, Field(ge=10)]
    train_fraction: Fraction
    paper_data: bool
    block_order: Literal["activate_then_mix", "mix_then_activate"]
    learning_rate: PositiveFloat
    max_steps: PositiveInt


class SSMA5Config(SSMConfig):
    """RNN, Transformer, S4 and Mamba trained on a word problem (paper, Figure 2)."""

    flags: ClassVar[Mapping[str, str]] = {
        "-s": "seed",
        "-n": "models",
        "-l": "lengths",
        "-d": "depths",
    }
    not_identity: ClassVar[frozenset[str]] = frozenset(
        {"results_dir", "models", "lengths", "depths", "learning_rates", "other_batch_sizes"}
        | {"batch_size", "search", "checkpoint_interval", "eval_batch_size"}
    )

    group: Literal[GROUP_NAMES]
    models: Annotated[list[A5Model], Field(min_length=1)]
    lengths: Annotated[list[Length], Field(min_length=1)]
    depths: Annotated[list[Depth], Field(min_length=1)]
    search: bool
    samples: Annotated[int, Field(ge=10)]
    data_seed: Annotated[int, Field(ge=0)]
    train_fraction: Fraction
    num_heads: PositiveInt
    feed_forward_dim: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]
    learning_rates: dict[A5Model, Annotated[list[PositiveFloat], Field(min_length=1)]]
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    other_batch_sizes: dict[A5Model, dict[Length, PositiveInt]]
    short_batch_size: Annotated[int, Field(ge=0)]
    epochs: PositiveInt
    stop_accuracy: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        for model in self.models:
            known = len(self.learning_rates.get(model, []))
            if known < max(self.depths):
                raise ValueError(
                    f"learning_rates: {known} for {model}, one for each depth up to "
                    f"{max(self.depths)} is needed"
                )
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"num_heads: {self.num_heads} does not divide hidden_dim: {self.hidden_dim}"
            )
        return self


# Values become `#SBATCH --key=value` lines, quoted; no value may begin a line of its own.
OneLine = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$")]
OptionName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]


class SlurmConfig(BaseModel):
    """How --launcher slurm uses a cluster."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    partition: OneLine | None
    account: OneLine | None
    time_minutes: PositiveInt
    gpus: Annotated[int, Field(ge=0)]
    cpus: PositiveInt
    memory_gb: PositiveFloat
    array_parallelism: PositiveInt
    signal_before_end_s: PositiveInt
    requeues: Annotated[int, Field(ge=0)]
    sbatch: dict[OptionName, OneLine | int | bool]
    setup: list[OneLine]
    python: OneLine | None
    poll_interval_s: PositiveFloat
    settle_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-2 as a number, as YAML 1.2 does, and refuses a key named twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is not a plain word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


C = TypeVar("C", bound=BaseModel)


def load_config(config_class: type[C], path: Path, overrides: Mapping[str, tuple[Any, str]]) -> C:
    """Read a YAML file, apply overrides, validate.

    overrides: key -> (value, the words of the command line it came from).
    Raises: ConfigError, with one line for each thing that is wrong.
    """
    values = _read_yaml(path)
    for key, (value, words) in overrides.items():
        if key not in config_class.model_fields:
            raise ConfigError(f"{words}: {_unknown_key(key, config_class)}")
        values[key] = value
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        sources = {key: words for key, (_, words) in overrides.items()}
        lines = [_describe(e, sources, path, config_class) for e in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def save_config(config: ExperimentConfig, results_dir: Path) -> Path:
    """Write a whole config where it stays as it is: what is started later does not see edits.

    Returns its path, which names its content. Raises: OSError.
    """
    text = yaml.safe_dump(config.model_dump(), sort_keys=False)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = results_dir / LOGS / f"config_{digest}.yaml"
    with atomic_write(path, "w") as file:
        file.write(text)
    return path


def parse_setting(setting: str) -> tuple[str, Any]:
    """Split KEY=VALUE and read the value as YAML. Raises: ConfigError."""
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {setting}: expected KEY=VALUE")
    return key, parse_value(text, f"--set {setting}")


def parse_value(text: str, words: str) -> Any:
    """Read a command line's value as YAML; `words` are what to name. Raises: ConfigError."""
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{words}: the value is not YAML: {_one_line(error)}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(sorted(p.name for p in CONFIG_FOLDER.glob("*.yaml")))
        raise ConfigError(f"{path}: no such config file; experiment_configs has {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    try:
        values = _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_one_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected a mapping of keys to values, found {type(values).__name__}"
        )
    return values


def _describe(error: Any, sources: Mapping[str, str], path: Path, config_class: type) -> str:
    if not error["loc"]:
        return f"{', '.join([str(path), *sources.values()])}: {error['ctx']['error']}"
    key = str(error["loc"][0])
    where = sources.get(key, str(path))
    if error["type"] == "extra_forbidden":
        return f"{where}: {_unknown_key(key, config_class)}"
    if error["type"] == "missing":
        return f"{where}: the key '{key}' is missing"
    message = error["msg"].removeprefix("Input ")
    return f"{where}: {key}: {error['input']!r} {message}"


def _unknown_key(key: str, config_class: type[ExperimentConfig]) -> str:
    known = sorted(config_class.model_fields)
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f", did you mean '{nearest[0]}'?" if nearest else ";"
    return f"unknown key '{key}'{hint} The keys are {', '.join(known)}"


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())
