"""One typed, checked config for each experiment: YAML in, clear errors out.

Values live in `experiment_configs/*.yaml` alone: a key without a value there is an error, so a
file always states the whole experiment.
"""

import difflib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_dir.a5_dataset import training_rows
from data_dir.datasets import ToyDataset, load_toy_dataset, training_paths
from data_dir.finite_groups import GROUP_NAMES, group
from harness.atomic_files import atomic_write
from harness.errors import ConfigError
from harness.paths import CONFIG_FOLDER, LOGS

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Length = Annotated[int, Field(ge=2)]
LONGEST_SHOWN = 100  # characters of a wrong value in a message


class ExperimentConfig(BaseModel):
    """What every experiment's config shares."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    # Short command-line flag -> the key it sets; a flag that is not here does not apply.
    flags: ClassVar[Mapping[str, str]] = {"-s": "seed"}
    # Keys that say which runs to do or where they go, not what a run is.
    not_identity: ClassVar[frozenset[str]] = frozenset({"results_dir"})
    # The paper's values of keys that older records lack; they say nothing of these.
    unsaid: ClassVar[Mapping[str, Any]] = {}

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    results_dir: Annotated[str, Field(min_length=1)]

    @classmethod
    def one_or_list(cls, key: str, value: Any) -> Any:
        """A flag's value, put in a list where the key takes a list."""
        is_list = get_origin(cls.model_fields[key].annotation) is list
        return [value] if is_list and not isinstance(value, list) else value

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
        for key, value in self:
            if isinstance(value, list) and len(set(value)) < len(value):
                raise ValueError(f"{key}: {value} names a value twice")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that define a run's result, as JSON types."""
        settings = self.model_dump(mode="json", exclude=set(self.not_identity))
        return {k: x for k, x in settings.items() if k not in self.unsaid or x != self.unsaid[k]}


class ToyConfig(ExperimentConfig):
    """What the two experiments on the toy task share: the runs and their data."""

    runs: PositiveInt
    input_dims: Annotated[list[Literal[2, 3]], Field(min_length=1)]
    num_paths: Annotated[int, Field(ge=10)]
    train_fraction: Fraction
    paper_data: bool

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        training_paths(self.train_fraction, self.num_paths)
        return self

    def data(self, data_dir: Path, input_dim: int) -> ToyDataset:
        """The paths of one dimension. Raises: DataError, OSError."""
        settings = self.model_dump(include={"num_paths", "train_fraction", "paper_data"})
        return load_toy_dataset(data_dir, input_dim, **settings)


class LinearCDEConfig(ExperimentConfig):
    """What the two experiments with Linear CDEs share: their width and the structure of A."""

    hidden_dim: PositiveInt
    structure: Literal["dense", "block_diagonal"]
    block_size: PositiveInt

    @model_validator(mode="after")
    def _check_blocks(self) -> Self:
        if self.blocks and self.hidden_dim % self.blocks:
            allowed = [k for k in range(1, self.hidden_dim + 1) if self.hidden_dim % k == 0]
            raise ValueError(
                f"block_size: {self.blocks} does not divide hidden_dim {self.hidden_dim} "
                f"(allowed with structure: block_diagonal: {', '.join(map(str, allowed))})"
            )
        return self

    @property
    def blocks(self) -> int | None:
        """The size of A's blocks, None for a dense A."""
        return self.block_size if self.structure == "block_diagonal" else None

    def identity(self) -> dict[str, Any]:
        """As the others', without the keys of A's structure where it is dense, as in the paper."""
        settings = super().identity()
        if self.blocks is None:
            del settings["structure"], settings["block_size"]
        return settings


class SSMConfig(ExperimentConfig):
    """What the two experiments with trained sequence models share."""

    unsaid: ClassVar[Mapping[str, Any]] = {"matmul_precision": "float32"}

    hidden_dim: PositiveInt
    state_dim: PositiveInt
    batch_size: PositiveInt
    eval_interval: PositiveInt
    eval_batch_size: PositiveInt
    checkpoint_interval: PositiveInt
    s4_mode: Literal["convolution", "scan"]
    s4_softplus_step: bool
    scan_backend: Literal["auto", "triton", "mamba_ssm", "cpp", "reference"]
    matmul_precision: Literal["float32", "tf32"]
    compile: bool


class WordConfig(ExperimentConfig):
    """What the two experiments on the words of a group share: the words, and when training ends."""

    group: Literal[GROUP_NAMES]
    lengths: Annotated[list[Length], Field(min_length=1)]
    samples: Annotated[int, Field(ge=10)]
    data_seed: Annotated[int, Field(ge=0)]
    train_fraction: Fraction
    dropout: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    short_batch_size: Annotated[int, Field(ge=0)]
    stop_accuracy: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        for length in self.lengths:
            training_rows(self.train_fraction, min(self.samples, group(self.group).order ** length))
        return self


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values, and nothing that people write without meaning it.

    YAML 1.1 reads 060 as 48, 1:30 as 90, 24:00:00 as 86,400 and 2026-11-30 as a date. Here the
    first three are refused with what to write, a date is text, and tags, aliases and a key named
    twice are refused.
    """

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if getattr(event, "anchor", None):
            raise _refusal("anchors and aliases are not used in configs", event)
        if getattr(event, "tag", None):
            raise _refusal(f"tags such as {event.tag} are not used in configs", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal("a key is not a plain word", key)
            if key.value in seen:
                raise _refusal(f"the key {key.value!r} stands here twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def refuse_ambiguous(self, node: yaml.ScalarNode) -> NoReturn:
        """A number that YAML 1.1 and people read differently."""
        words = (
            f"{node.value} may be read as another number: write it in decimal digits alone (60, "
            f"not 060, 0x3c, 6_0 or 1:00), or '{node.value}' in quotes for text"
        )
        raise _refusal(words, node)


def _refusal(words: str, place: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=words, problem_mark=place.start_mark)


# In this order: the first that fits decides.
for _tag, _pattern in (
    ("!ambiguous", r"[-+]?(0[0-9_]+|0[xob][0-9a-fA-F_]+|[0-9]+(_[0-9]+)+)"),
    ("!ambiguous", r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?",
    ),
    ("tag:yaml.org,2002:float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|"),
):
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), None)
_Loader.add_constructor("!ambiguous", _Loader.refuse_ambiguous)


def _load_yaml(text: str, words: str) -> Any:
    """Read YAML; `words` are what to name. Raises: ConfigError, in one line."""
    try:
        return _Loader(text).get_single_data()
    except RecursionError:
        reason = "nested too deeply"
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
    raise ConfigError(f"{words}: {reason}")


C = TypeVar("C", bound=BaseModel)


def load_config(config_class: type[C], path: Path, overrides: Mapping[str, tuple[Any, str]]) -> C:
    """Read a YAML file, apply overrides, validate.

    overrides: key -> (value, the words of the command line it came from).
    Raises: ConfigError, with one line for each thing that is wrong.
    """
    values = _read_yaml(path)
    _check_whose(values, path, config_class)
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
    return _load_yaml(text, f"{words}: the value is not YAML")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(sorted(p.name for p in CONFIG_FOLDER.glob("*.yaml")))
        raise ConfigError(f"{path}: no such config file; experiment_configs has {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    values = _load_yaml(text, f"{path}: not valid YAML")
    if not isinstance(values, dict):
        found = type(values).__name__
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {found}")
    return values


def _check_whose(values: Mapping[str, Any], path: Path, config_class: type[BaseModel]) -> None:
    """Refuse another experiment's config as a whole. Raises: ConfigError."""
    if len(values.keys() - config_class.model_fields.keys()) < 3:
        return
    for shipped in sorted(CONFIG_FOLDER.glob("[!q]*.yaml")):  # not the quick ones: the same keys
        if _read_yaml(shipped).keys() == values.keys():
            raise ConfigError(
                f"{path}: has the keys of {shipped.name}, which belongs to another experiment; "
                f"this one's are {', '.join(sorted(config_class.model_fields))}"
            )


def _describe(error: Any, sources: Mapping[str, str], path: Path, config_class: type) -> str:
    if not error["loc"]:
        return f"{', '.join([str(path), *sources.values()])}: {error['ctx']['error']}"
    key, name = str(error["loc"][0]), ".".join(map(str, error["loc"]))
    where = sources.get(key, str(path))
    if error["type"] == "extra_forbidden":
        words = _unknown_key(key, config_class) if key == name else f"unknown key '{name}'"
        return f"{where}: {words}"
    if error["type"] == "missing":
        return f"{where}: the key '{name}' is missing"
    message = error["msg"].removeprefix("Input ")
    found = repr(error["input"])
    found = found if len(found) <= LONGEST_SHOWN else f"{found[:LONGEST_SHOWN]}…"
    return f"{where}: {key}: {found} {message}"


def _unknown_key(key: str, config_class: type[ExperimentConfig]) -> str:
    known = sorted(config_class.model_fields)
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f", did you mean '{nearest[0]}'?" if nearest else ";"
    return f"unknown key '{key}'{hint} The keys are {', '.join(known)}"
