"""The one door: read the command line and a config, see what is done already, run the rest."""

import argparse
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

from data_dir.data_errors import DataError
from experiment_config import (
    CONFIG_FOLDER,
    ROOT,
    ConfigError,
    ExperimentConfig,
    LCDEA5Config,
    LCDEToyConfig,
    SSMA5Config,
    SSMToyConfig,
    load_config,
    parse_setting,
    parse_value,
)
from experiment_plan import plan_lcde_a5, plan_lcde_toy, plan_ssm_a5, plan_ssm_toy
from experiment_results import (
    ResultsError,
    Run,
    Status,
    UnavailableError,
    check_writable,
    run_state,
    runs_to_do,
)

EPILOG = """\
examples:
  python run_experiment.py -m LCDE -e toy                  the paper's Linear CDE of Figure 1
  python run_experiment.py -m LCDE -e toy --plan           what would run, and what is done
  python run_experiment.py -m LCDE -e toy -i 2 --set runs=1 --results-dir results/mine
  python run_experiment.py -m LCDE -e toy -c experiment_configs/quick_lcde_toy.yaml
  python run_experiment.py -m LCDE -e A5 -l 5              the Linear CDE of Figure 2, one length
  python run_experiment.py -m SequenceModel -e toy -n Mamba -d 1 -i 2 --set runs=1
  python run_experiment.py -m SequenceModel -e A5 -n RNN -l 3 -d 1

A run whose files are there with the same config is not repeated; files of another config are
never replaced without --overwrite. Exit codes: 0 done, 1 failed, 2 wrong usage or config.
"""


@dataclass(frozen=True)
class Experiment:
    """One experiment: its config, its runs, and where the code is, imported once it is chosen."""

    config_class: type[ExperimentConfig]
    config_file: str
    plan: Callable[[Any, Path], list[Run]]
    wing: str
    function: str
    extra: str


EXPERIMENTS: Mapping[tuple[str, str], Experiment] = {
    ("LCDE", "toy"): Experiment(
        config_class=LCDEToyConfig,
        config_file="lcde_toy.yaml",
        plan=plan_lcde_toy,
        wing="linear_cde",
        function="run_lcde_toy_experiment",
        extra="jax",
    ),
    ("LCDE", "A5"): Experiment(
        config_class=LCDEA5Config,
        config_file="lcde_a5.yaml",
        plan=plan_lcde_a5,
        wing="linear_cde_a5",
        function="run_lcde_A5_experiment",
        extra="jax",
    ),
    ("SequenceModel", "toy"): Experiment(
        config_class=SSMToyConfig,
        config_file="ssm_toy.yaml",
        plan=plan_ssm_toy,
        wing="torch_sequence_models",
        function="run_sm_toy_experiment",
        extra="torch",
    ),
    ("SequenceModel", "A5"): Experiment(
        config_class=SSMA5Config,
        config_file="ssm_a5.yaml",
        plan=plan_ssm_a5,
        wing="torch_sequence_models",
        function="run_sm_A5_experiment",
        extra="torch",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for. Returns the exit code."""
    arguments = build_parser().parse_args(argv)
    with noticed_interrupt() as interrupted:
        try:
            return run(arguments)
        except (Exception, KeyboardInterrupt) as error:
            if interrupted.is_set():
                return fail("stopped; finished runs are kept, the same command goes on", code=130)
            if isinstance(error, ConfigError | ResultsError | UnavailableError):
                return fail(str(error), code=2)
            if isinstance(error, DataError | OSError | FloatingPointError):
                return fail(f"{error}\nruns finished before this are kept")
            raise


@contextmanager
def noticed_interrupt() -> Iterator[Event]:
    """An event that Ctrl-C sets: JAX may turn the KeyboardInterrupt itself into another error."""
    interrupted = Event()

    def notice(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, notice)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def build_parser() -> argparse.ArgumentParser:
    """The command line; the short flags are those of the released code."""
    parser = argparse.ArgumentParser(
        description="Run an experiment of 'Theoretical Foundations of Deep Selective State-Space "
        "Models' (NeurIPS 2024).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-m", "--model", required=True, choices=["LCDE", "SequenceModel"])
    parser.add_argument("-e", "--experiment", required=True, choices=["toy", "A5"])
    flags = parser.add_argument_group("settings of the config (each only where it applies)")
    flags.add_argument("-s", dest="-s", metavar="SEED", help="random seed")
    flags.add_argument("-n", dest="-n", metavar="NAME", help="sequence model: its name")
    flags.add_argument("-l", dest="-l", metavar="LENGTH", help="A5: sequence length")
    flags.add_argument("-d", dest="-d", metavar="DEPTH", help="sequence model: number of blocks")
    flags.add_argument("-i", dest="-i", metavar="INPUT_DIM", help="toy: path dimension, 2 or 3")
    flags.add_argument("-nl", dest="-nl", metavar="BOOL", help="toy sequence model: nonlinear")
    flags.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any key; may be repeated"
    )
    parser.add_argument(
        "-c", "--config", type=Path, metavar="CONFIG.yaml", help="default: the paper's"
    )
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data_dir", metavar="DIR")
    parser.add_argument("--results-dir", type=Path, metavar="DIR", help="default: the config's")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--overwrite", action="store_true", help="repeat and replace existing results"
    )
    parser.add_argument(
        "--plan", action="store_true", help="print the runs and their state, run nothing"
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Load, check, plan and dispatch. Returns the exit code."""
    experiment = EXPERIMENTS[arguments.model, arguments.experiment]
    path = arguments.config or CONFIG_FOLDER / experiment.config_file
    config = load_config(
        experiment.config_class, path, overrides(arguments, experiment.config_class)
    )
    results_dir = (arguments.results_dir or ROOT / config.results_dir).absolute()
    runs = experiment.plan(config, results_dir)
    if arguments.plan:
        print_plan(runs)
        return 0
    to_do = runs_to_do(runs, arguments.overwrite)
    announce(runs, to_do, results_dir)
    if to_do:
        check_writable(to_do[0].record.parent)
        run_wing(experiment, config, to_do, arguments.data_dir.absolute(), arguments.device)
    print_next_step(results_dir)
    return 0


def overrides(
    arguments: argparse.Namespace, config_class: type[ExperimentConfig]
) -> dict[str, tuple[Any, str]]:
    """The keys the command line sets: key -> (value, its words). Raises: ConfigError."""
    found: dict[str, tuple[Any, str]] = {}
    settings = [(flag, getattr(arguments, flag)) for flag in ("-s", "-n", "-l", "-d", "-i", "-nl")]
    for flag, text in settings:
        if text is None:
            continue
        where = f"-m {arguments.model} -e {arguments.experiment}"
        if flag not in config_class.flags:
            allowed = ", ".join(config_class.flags)
            raise ConfigError(f"{flag} {text}: does not apply to {where}, which takes {allowed}")
        key = config_class.flags[flag]
        value = config_class.one_or_list(key, parse_value(text, f"{flag} {text}"))
        add_override(found, key, value, f"{flag} {text}")
    for setting in arguments.set:
        key, value = parse_setting(setting)
        add_override(found, key, value, f"--set {setting}")
    return found


def add_override(found: dict[str, tuple[Any, str]], key: str, value: Any, words: str) -> None:
    """Add one override. Raises: ConfigError, when the key is set already."""
    if key in found:
        raise ConfigError(f"{words}: '{key}' is set already by {found[key][1]}")
    found[key] = (value, words)


def print_plan(runs: Sequence[Run]) -> None:
    """One line a run: its state, its label, its first file."""
    states = [run_state(run) for run in runs]
    for state in states:
        reason = f"  ({state.reason})" if state.reason else ""
        print(f"{state.status:<10} {state.run.label:<12} {state.run.files[0]}{reason}")
    counts = ", ".join(f"{sum(s.status is status for s in states)} {status}" for status in Status)
    print(f"{len(runs)} runs: {counts}")


def announce(runs: Sequence[Run], to_do: Sequence[Run], results_dir: Path) -> None:
    """Say how many runs are done already, and how to do them again."""
    done = len(runs) - len(to_do)
    if done:
        print(
            f"{done} of {len(runs)} runs are done already in {results_dir}, with this config: not "
            "repeated (--results-dir DIR runs them afresh elsewhere, --overwrite replaces them)"
        )
    if to_do:
        print(f"{len(to_do)} runs to do, results in {to_do[0].record.parent}", flush=True)


def run_wing(
    experiment: Experiment,
    config: ExperimentConfig,
    to_do: Sequence[Run],
    data_dir: Path,
    device: str,
) -> None:
    """Import the wing an experiment lives in, and run it there.

    Raises: UnavailableError, naming what to install; whatever the experiment raises.
    """
    try:
        wing = import_module(experiment.wing)
        getattr(wing, experiment.function)(config, to_do, data_dir, device)
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"{error.name or error} is not installed; install what this experiment needs with "
            f"pip install -c requirements-lock.txt '.[{experiment.extra}]' in {ROOT}"
        ) from None


def print_next_step(results_dir: Path) -> None:
    """Where to go from results: the figure and the comparison."""
    folder = (
        results_dir.relative_to(Path.cwd())
        if results_dir.is_relative_to(Path.cwd())
        else results_dir
    )
    print(f"beside the paper: python compare_to_paper.py --results-dir {folder}")


def fail(message: str, code: int = 1) -> int:
    """Print an error to standard error; returns the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
