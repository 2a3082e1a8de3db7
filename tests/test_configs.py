"""A config is complete, typed and in range, or the message says what to change and where."""

import re
from importlib import import_module
from pathlib import Path
from typing import get_origin

import pytest
import yaml

from experiments.lcde_toy import Config as LCDEToyConfig
from experiments.schema import load_config, parse_setting, save_config
from harness.errors import ConfigError
from harness.paths import CONFIG_FOLDER
from launchers.slurm import SlurmConfig
from run_experiment import EXPERIMENTS

SHIPPED = sorted(CONFIG_FOLDER.glob("*.yaml"))


MODULES = {name: import_module(f"experiments.{name}") for name in EXPERIMENTS.values()}
CLASSES = [*(module.Config for module in MODULES.values()), SlurmConfig]
PAPER = yaml.safe_load((CONFIG_FOLDER / "lcde_toy.yaml").read_text())
FIELDS = list(LCDEToyConfig.model_fields)


def error_of(path: Path, overrides=None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(LCDEToyConfig, path, overrides or {})
    return str(caught.value)


@pytest.fixture
def config_file(tmp_path):
    """Write a config file: a text, or the paper's config with changes (None removes a key)."""

    def write(text: str = "", **changes) -> Path:
        values = {k: v for k, v in (PAPER | changes).items() if v is not None}
        path = tmp_path / "mine.yaml"
        path.write_text(text or yaml.safe_dump(values))
        return path

    return write


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_config_states_every_key_of_one_class_and_is_valid(path):
    keys = set(yaml.safe_load(path.read_text()))
    (config_class,) = (c for c in CLASSES if keys == set(c.model_fields))
    load_config(config_class, path, {})


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("fraction", [1e-6, 1 - 1e-6])
def test_a_fraction_that_leaves_no_row_is_refused_with_what_is_allowed(name, fraction):
    paths = "num_paths" in MODULES[name].Config.model_fields
    few = {"num_paths": 100} if paths else {"samples": 100}
    overrides = {k: (v, k) for k, v in {**few, "train_fraction": fraction}.items()}
    path = CONFIG_FOLDER / f"{name}.yaml"
    if fraction > 0.5 and paths:  # rounded down, as in the released code
        assert load_config(MODULES[name].Config, path, overrides).train_fraction == fraction
        return
    with pytest.raises(
        ConfigError, match=rf"train_fraction: {fraction} of .* \(allowed: 1 to 99\)"
    ):
        load_config(MODULES[name].Config, path, overrides)


@pytest.mark.parametrize("name", ["lcde_toy", "lcde_a5"])
def test_blocks_divide_the_width_and_are_part_of_what_a_run_is(name):
    def load(**changes):
        overrides = {key: (value, key) for key, value in changes.items()}
        return load_config(MODULES[name].Config, CONFIG_FOLDER / f"{name}.yaml", overrides)

    blocks = {"structure": "block_diagonal", "hidden_dim": 12}
    with pytest.raises(ConfigError, match=r"block_size: 5 .* 12 \(allowed .*: 1, 2, 3, 4, 6, 12\)"):
        load(**blocks, block_size=5)
    assert load(**blocks, block_size=3).identity().items() >= {**blocks, "block_size": 3}.items()
    # The records of dense runs are older than the keys, which change nothing there.
    dense = load(hidden_dim=12, block_size=5)
    assert dense.blocks is None and dense.identity() == load(hidden_dim=12).identity()
    assert not {"structure", "block_size"} & dense.identity().keys()


def test_an_older_record_of_words_lacks_the_keys_that_are_the_papers():
    path, keys = CONFIG_FOLDER / "lcde_a5.yaml", {"step", "time_channel"}
    config = MODULES["lcde_a5"].Config
    assert not keys & load_config(config, path, {}).identity().keys()
    others = {"step": "fixed", "time_channel": False}
    changed = load_config(config, path, {k: (v, k) for k, v in others.items()})
    assert changed.identity().items() >= others.items()


@pytest.mark.parametrize("name", MODULES)
def test_a_config_that_is_saved_for_other_processes_is_the_same_there(tmp_path, name):
    config_class = MODULES[name].Config
    config = load_config(config_class, CONFIG_FOLDER / f"{name}.yaml", {"seed": (7, "")})
    path = save_config(config, tmp_path)
    assert load_config(config_class, path, {}) == config
    assert save_config(config, tmp_path) == path
    assert save_config(config.model_copy(update={"seed": 8}), tmp_path) != path


@pytest.mark.parametrize("name", MODULES)
def test_every_run_has_a_label_of_its_own(tmp_path, name):
    config = load_config(MODULES[name].Config, CONFIG_FOLDER / f"{name}.yaml", {})
    labels = [run.label for run in MODULES[name].plan(config, tmp_path)]
    assert len(set(labels)) == len(labels)


def test_the_default_config_is_the_papers_experiment():
    config = load_config(LCDEToyConfig, CONFIG_FOLDER / "lcde_toy.yaml", {})
    assert config.identity() == {
        "seed": 2345,
        "hidden_dim": 256,
        "num_paths": 100_000,
        "train_fraction": 0.8,
        "paper_data": True,
        "solver": "tsit5",
        "rtol": 0.01,
        "atol": 0.01,
        "dt0": 0.01,
        "share_flows": True,
        "matmul_precision": "float32",
        "batch_size": 4000,
        "flow_batch_size": 12_500,
    }
    assert (config.runs, config.input_dims) == (5, [2, 3])


@pytest.mark.parametrize("name", ["ssm_toy", "ssm_a5"])
def test_records_from_before_there_was_tf32_are_those_of_float32(tmp_path, name):
    runs = {}
    for precision in ("float32", "tf32"):
        overrides = {"matmul_precision": (precision, "")}
        config = load_config(MODULES[name].Config, CONFIG_FOLDER / f"{name}.yaml", overrides)
        runs[precision] = MODULES[name].plan(config, tmp_path)[0].config
    assert "matmul_precision" not in runs["float32"]
    assert runs["tf32"] == {**runs["float32"], "matmul_precision": "tf32"}


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_key_is_named(config_file, field):
    path = config_file(**{field: None})
    assert error_of(path) == f"{path}: the key '{field}' is missing"


def test_an_unknown_key_brings_the_nearest_one_and_all_others(config_file):
    path = config_file(hiden_dims=8)
    message = error_of(path)
    assert message.startswith(f"{path}: unknown key 'hiden_dims', did you mean 'hidden_dim'?")
    assert all(field in message for field in FIELDS)
    assert "did you mean" not in error_of(config_file(xyz=8))


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("hidden_dim", -1, "-1 should be greater than 0"),
        ("hidden_dim", "8", "'8' should be a valid integer"),
        ("hidden_dim", 8.5, "8.5 should be a valid integer"),
        ("runs", True, "True should be a valid integer"),
        ("seed", -1, "-1 should be greater than or equal to 0"),
        ("seed", 2**32, "4294967296 should be less than 4294967296"),
        ("num_paths", 9, "9 should be greater than or equal to 10"),
        ("train_fraction", 1.0, "1.0 should be less than 1"),
        ("train_fraction", 0, "0 should be greater than 0"),
        ("rtol", 0.0, "0.0 should be greater than 0"),
        ("rtol", float("inf"), "inf should be a finite number"),
        ("atol", "small", "'small' should be a valid number"),
        ("solver", "rk4", "'rk4' should be 'tsit5' or 'scan'"),
        ("matmul_precision", "bf16", "'bf16' should be 'float32' or 'tf32'"),
        ("share_flows", "yes", "'yes' should be a valid boolean"),
        ("paper_data", 1, "1 should be a valid boolean"),
        ("input_dims", 2, "2 should be a valid list"),
        ("input_dims", [2, 4], "4 should be 2 or 3"),
        ("input_dims", [], "[] "),
        ("results_dir", "", "'' "),
        ("results_dir", 5, "5 should be a valid string"),
    ],
)
def test_a_value_of_wrong_type_or_out_of_range_is_named_with_what_is_allowed(
    config_file, key, value, found
):
    path = config_file(**{key: value})
    assert error_of(path).startswith(f"{path}: {key}: {found}")


# The last value that is allowed and one beyond it.
WORD_LIMITS = {
    "lengths": ([2], [1]),
    "samples": (10, 9),
    "data_seed": (0, -1),
    "dropout": (0.0, 1.0),
    "weight_decay": (0.0, -0.1),
    "short_batch_size": (0, -1),
    "stop_accuracy": (1.0, 1.1),
}
LIMITS = [("ssm_toy", "num_paths", 10, 9)]
LIMITS += [(name, k, *v) for name in ("lcde_a5", "ssm_a5") for k, v in WORD_LIMITS.items()]


@pytest.mark.parametrize(("name", "key", "last", "beyond"), LIMITS)
def test_settings_of_trained_models_reach_to_their_limits_and_not_beyond(name, key, last, beyond):
    def load(value):
        path = CONFIG_FOLDER / f"{name}.yaml"
        return load_config(MODULES[name].Config, path, {key: (value, "here")})

    assert getattr(load(last), key) == last
    with pytest.raises(ConfigError, match=f"{key}.*: .* should be "):
        load(beyond)


LISTS = [
    (name, key)
    for name, module in MODULES.items()
    for key, field in module.Config.model_fields.items()
    if get_origin(field.annotation) is list
]


@pytest.mark.parametrize(("name", "key"), LISTS)
def test_no_list_may_be_empty(name, key):
    with pytest.raises(ConfigError, match=rf"{key}: \[\] List should have at least 1 item"):
        load_config(MODULES[name].Config, CONFIG_FOLDER / f"{name}.yaml", {key: ([], "here")})


def test_every_mistake_has_a_line_of_its_own(config_file):
    path = config_file(hidden_dim=0, solver="rk4", extra=1)
    lines = error_of(path).splitlines()
    starts = ("hidden_dim: 0 ", "solver: 'rk4' ", "unknown key 'extra'")
    assert len(lines) == len(starts)
    assert all(any(line.startswith(f"{path}: {s}") for line in lines) for s in starts)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"matmul_precision": "tf32"}, ["tf32", "share_flows: false", "float32"]),
        ({"input_dims": [2, 2]}, ["input_dims", "twice"]),
    ],
)
def test_values_that_contradict_each_other_are_refused(config_file, changes, named):
    path = config_file(**changes)
    message = error_of(path)
    assert message.startswith(str(path)) and all(words in message for words in named)


def test_tf32_path_by_path_is_accepted(config_file):
    config = load_config(LCDEToyConfig, config_file(matmul_precision="tf32", share_flows=False), {})
    assert config.matmul_precision == "tf32"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("seed: [1", "not valid YAML"),
        ("seed: 1\nruns: 2\nseed: 3\n", "the key 'seed' stands here twice"),
        ("? [1, 2]\n: 3\n", "not valid YAML"),
        ("- seed\n", "expected a mapping of keys to values, found list"),
        ("# nothing here\n", "found NoneType"),
        ("a\0b: 1", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_line(config_file, text, found):
    path = config_file(text)
    message = error_of(path)
    assert message.startswith(f"{path}: ") and found in message and "\n" not in message


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    missing = tmp_path / "missing.yaml"
    message = error_of(missing)
    assert message.startswith(f"{missing}: no such config file")
    assert all(path.name in message for path in SHIPPED)
    assert error_of(tmp_path).startswith(f"{tmp_path}: cannot be read")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert error_of(binary).startswith(f"{binary}: cannot be read")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-2", 0.01), ("1E3", 1000.0), ("1.0e-2", 0.01), ("-5e+1", -50.0), ("1e", "1e"), ("2", 2)],
)
def test_numbers_with_an_exponent_are_numbers(text, value):
    key, found = parse_setting(f"rtol={text}")
    assert key == "rtol" and found == value and type(found) is type(value)


def test_settings_are_typed_as_in_a_file():
    assert parse_setting("input_dims=[2, 3]") == ("input_dims", [2, 3])
    assert parse_setting("share_flows=false") == ("share_flows", False)
    assert parse_setting("results_dir=a=b") == ("results_dir", "a=b")


@pytest.mark.parametrize(
    "text", ["010", "-07", "0x1f", "0o17", "0b11", "1_000", "1:30", "24:00:00", "1:30.5", "[3, 08]"]
)
def test_a_number_that_yaml_reads_in_a_way_of_its_own_is_refused_with_what_to_write(text):
    with pytest.raises(ConfigError, match=r"^--set seed=.* write it in decimal digits alone"):
        parse_setting(f"seed={text}")
    assert parse_setting(f"seed='{text}'")[1] == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-3", -3),
        ("+4", 4),
        ("0.5", 0.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("true", True),
        ("null", None),
        ("", None),
        ("no", "no"),
        ("1.2.3", "1.2.3"),
        ("2026-11-31", "2026-11-31"),
    ],
)
def test_plain_values_are_read_as_yaml_1_2_reads_them(text, value):
    found = parse_setting(f"seed={text}")[1]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    ['!!int "abc"', "!!python/object:os.system x", "9" * 5000, "[" * 5000, "&a [1, *a]"],
    ids=["a tag", "a python tag", "a long number", "deep nesting", "an alias"],
)
def test_what_yaml_cannot_turn_into_a_value_is_refused_in_a_line(text):
    with pytest.raises(ConfigError, match=r"^--set seed=") as caught:
        parse_setting(f"seed={text}")
    assert "\n" not in str(caught.value)


def test_the_config_of_another_experiment_is_named_as_such():
    path = CONFIG_FOLDER / "quick_ssm_toy.yaml"
    message = error_of(path)
    assert message.startswith(f"{path}: has the keys of ssm_toy.yaml, which belongs to another")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("words", ["seed", "=5", "seed=[1"])
def test_a_setting_that_cannot_be_read_repeats_its_words(words):
    with pytest.raises(ConfigError, match=f"^--set {re.escape(words)}: "):
        parse_setting(words)


def test_an_override_wins_over_the_file_and_leaves_the_rest(config_file):
    path = config_file(seed=1, hidden_dim=32)
    config = load_config(LCDEToyConfig, path, {"seed": (7, "-s 7")})
    assert (config.seed, config.hidden_dim, config.runs) == (7, 32, PAPER["runs"])


def test_a_bad_override_is_named_by_its_words_and_a_bad_file_by_its_path(config_file):
    path = config_file(rtol=-1.0)
    message = error_of(path, {"hidden_dim": (-1, "--set hidden_dim=-1")})
    assert sorted(message.splitlines()) == [
        "--set hidden_dim=-1: hidden_dim: -1 should be greater than 0",
        f"{path}: rtol: -1.0 should be greater than 0",
    ]


def test_an_unknown_override_is_named_by_its_words(config_file):
    message = error_of(config_file(), {"sedd": (1, "--set sedd=1")})
    assert message.startswith("--set sedd=1: unknown key 'sedd', did you mean 'seed'?")


def test_a_config_cannot_be_changed_after_it_was_checked():
    config = load_config(LCDEToyConfig, CONFIG_FOLDER / "lcde_toy.yaml", {})
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 5
