"""The one door: read the command line and a config, see what is done already, run the rest."""

import argparse
import difflib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.schema import (
    ExperimentConfig,
    load_config,
    parse_setting,
    parse_value,
    save_config,
)
from harness.errors import (
    ConfigError,
    DataError,
    LockLostError,
    OutputError,
    ResultsError,
    UnavailableError,
)
from harness.paths import CONFIG_FOLDER, DATA_DIR, ROOT, user_path
from harness.process import Stop, on_standard_streams
from harness.progress import tensorboard
from harness.queue import Display, claimed_runs
from harness.records import Run, Status, check_writable, run_state, runs_to_do
from launchers.local import run_local

EPILOG = """\
examples:
  python run_experiment.py -m LCDE -e toy                  the paper's Linear CDE of Figure 1
  python run_experiment.py -m LCDE -e toy --plan           what would run, and what is done
  python run_experiment.py -m LCDE -e toy -i 2 --set runs=1 --results-dir results/mine
  python run_experiment.py -m LCDE -e toy -c experiment_configs/quick_lcde_toy.yaml
  python run_experiment.py -m LCDE -e A5 -l 5              the Linear CDE of Figure 2, one length
  python run_experiment.py -m LCDE -e theory               the theory in numbers, docs/theory.md
  python run_experiment.py -m SequenceModel -e toy -n Mamba -d 1 -i 2 --set runs=1
  python run_experiment.py -m SequenceModel -e A5 -n RNN -l 3 -d 1
  python run_experiment.py -m SequenceModel -e toy --launcher local --workers 2
  python run_experiment.py -m SequenceModel -e A5 --launcher slurm --wait

A run whose files are there with the same config is not repeated, nor one that was solved, however
often it was evaluated. With a longer schedule (max_steps, epochs) and the same eval_interval a run
goes on from where it ended, to the bits of one long run, and its files stay until it is as far.
Other files are never replaced without --overwrite. Processes that share a results folder never do a
run twice.
For that the last state of each trained run stays in checkpoints/ of the results folder: weights and
Adam's moments, 3 times the parameters' bytes (30 to 480 MiB for a model on A5, 3 to 11 on the toy
task). --save-model takes the parameters from there, of each run of the command that is done. Where
the state was deleted, a longer schedule starts at step 0 and says so.
Exit codes: 0 done, 1 failed, 2 wrong usage or config, 130 after Ctrl-C, 75 after SIGTERM or
SIGUSR2. They save a checkpoint first; a second Ctrl-C ends at once. SIGTERM also stops a script's
background job, which ignores Ctrl-C.
"""

RATHER_THAN_OVERWRITE = " without --overwrite; earlier results left: --overwrite --only LABEL"
# Flags for keys of the config: metavar, help.
FLAGS: Mapping[str, tuple[str, str]] = {
    "-s": ("SEED", "random seed"),
    "-n": ("NAME", "sequence model: its name"),
    "-l": ("LENGTH", "A5: sequence length"),
    "-d": ("DEPTH", "sequence model: number of blocks"),
    "-i": ("INPUT_DIM", "toy: path dimension, 2 or 3"),
    "-nl": ("BOOL", "toy sequence model: nonlinear"),
    "--set": ("KEY=VALUE", "any key; may be repeated"),
}
# What -m and -e name: a module of `experiments`, imported once it is chosen, and its YAML file.
EXPERIMENTS: Mapping[tuple[str, str], str] = {
    ("LCDE", "toy"): "lcde_toy",
    ("LCDE", "A5"): "lcde_a5",
    ("LCDE", "theory"): "theory",
    ("SequenceModel", "toy"): "ssm_toy",
    ("SequenceModel", "A5"): "ssm_a5",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for. Returns the exit code."""
    return on_standard_streams(partial(command, argv))


def command(argv: Sequence[str] | None) -> int:
    """`main`, on standard streams. Raises: OutputError."""
    arguments = build_parser().parse_args(argv)
    with Stop() as stop:
        try:
            return run(arguments, stop)
        except OutputError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            # Asked first: JAX may turn the KeyboardInterrupt itself into another error.
            if stop.wanted:
                how = RATHER_THAN_OVERWRITE if arguments.overwrite else ""
                message = f"stopped; finished runs are kept, the same command goes on{how}"
                return fail(message, code=stop.exit_code)
            if isinstance(error, ConfigError | ResultsError | UnavailableError):
                return fail(str(error), code=2)
            if isinstance(error, DataError | OSError | FloatingPointError | LockLostError):
                return fail(f"{error}\nruns finished before this are kept")
            raise


def build_parser() -> argparse.ArgumentParser:
    """The command line; the short flags are those of the released code."""
    parser = argparse.ArgumentParser(
        description="Run an experiment of 'Theoretical Foundations of Deep Selective State-Space "
        "Models' (NeurIPS 2024).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-m", "--model", required=True, choices=["LCDE", "SequenceModel"])
    parser.add_argument("-e", "--experiment", required=True, choices=["toy", "A5", "theory"])
    flags = parser.add_argument_group("settings of the config (where they apply; lists: '[3, 4]')")
    # All that is given, so that a key set twice can be refused: argparse would take the last.
    kept: dict[str, Any] = {"dest": "given", "action": "append", "default": []}
    for flag, (metavar, words) in FLAGS.items():
        with_flag = partial(lambda flag, text: (flag, text), flag)
        flags.add_argument(flag, metavar=metavar, help=words, type=with_flag, **kept)
    parser.add_argument(
        "-c", "--config", type=Path, metavar="CONFIG.yaml", help="default: the paper's"
    )
    parser.add_argument("--data-dir", type=Path, default=DATA_DIR, metavar="DIR")
    parser.add_argument("--results-dir", type=Path, metavar="DIR", help="default: the config's")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="do runs anew; their results and states are replaced",
    )
    parser.add_argument(
        "--plan", action="store_true", help="print the runs and their state, run nothing"
    )
    parser.add_argument(
        "--time", action="store_true", help="with --plan: measure what the missing runs would take"
    )
    parser.add_argument("--only", metavar="LABEL", help="this run alone, by its label in --plan")
    parser.add_argument(
        "--save-model", type=Path, metavar="DIR", help="keep trained parameters there (safetensors)"
    )
    parser.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="write scalars there as the runs go"
    )
    add_launcher_flags(parser.add_argument_group("where the runs are done"))
    return parser


def add_launcher_flags(group: Any) -> None:
    """Add the flags that say which processes do the runs."""
    group.add_argument(
        "--launcher",
        choices=["in-process", "local", "slurm"],
        default="in-process",
        help="one after the other here (default), worker processes here, or a SLURM cluster",
    )
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="local: runs at the same time (default: one for each GPU, else 1)",
    )
    group.add_argument(
        "--slurm-config",
        type=Path,
        metavar="FILE",
        help="slurm: default experiment_configs/slurm.yaml",
    )
    group.add_argument(
        "--wait", action="store_true", help="slurm: follow the runs until all are done or failed"
    )
    group.add_argument(
        "--leave-held", action="store_true", help="do not wait for runs that other processes hold"
    )


def check_launcher_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags that the launcher does not read. Raises: ConfigError."""
    if arguments.time and not arguments.plan:
        raise ConfigError("--time: needs --plan; it measures a part of the runs and does none")
    launcher = arguments.launcher
    given = {
        "--workers": (arguments.workers is not None, "local"),
        "--slurm-config": (arguments.slurm_config is not None, "slurm"),
        "--wait": (arguments.wait, "slurm"),
        "--leave-held": (arguments.leave_held, "in-process"),
        "--overwrite": (arguments.overwrite, "in-process"),
    }
    for flag, (is_given, where) in given.items():
        if is_given and launcher != where:
            raise ConfigError(f"{flag}: applies to --launcher {where} alone, not to {launcher}")
    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"--workers {arguments.workers}: should be 1 or more")


def run(arguments: argparse.Namespace, stop: Stop) -> int:
    """Load, check, plan and dispatch. Returns the exit code."""
    check_launcher_flags(arguments)
    for flag in ("config", "data_dir", "results_dir", "tensorboard", "slurm_config", "save_model"):
        if path := getattr(arguments, flag):
            setattr(arguments, flag, user_path(path, f"--{flag.replace('_', '-')} {path}"))
    name = experiment_name(arguments.model, arguments.experiment)
    experiment = import_module(f"experiments.{name}")
    path = arguments.config or CONFIG_FOLDER / f"{name}.yaml"
    config = load_config(experiment.Config, path, overrides(arguments, experiment.Config))
    configured = ROOT / user_path(Path(config.results_dir), f"results_dir: {config.results_dir}")
    results_dir = (arguments.results_dir or configured).absolute()
    runs = chosen_runs(experiment.plan(config, results_dir), arguments.only)
    if arguments.plan:
        print_plan(runs)
        if arguments.time:
            time_missing(experiment, config, runs, arguments)
        return 0
    display = display_of(arguments.tensorboard)
    to_do = runs_to_do(runs, arguments.overwrite)
    if arguments.only and run_state(runs[0]).status is Status.NOT_NEEDED:
        to_do = runs  # started for this run alone, it says in the run's record why it did nothing
    if arguments.save_model:
        from experiments.weights import check_saving, save_models

        check_saving(experiment, arguments.save_model)
    announce(runs, to_do, results_dir)
    code = 0
    if to_do:
        check_writable(to_do[0].record.parent)
        if arguments.launcher == "in-process":
            try:
                do_runs(experiment, config, to_do, arguments, stop, display)
            except FloatingPointError as error:  # at the end, of the runs that diverged
                code = fail(str(error))
        else:
            code = launch(arguments, config, to_do, results_dir)
    if arguments.save_model:
        save_models(name, runs, arguments.save_model)
    print_next_step(name, results_dir)
    return code


def experiment_name(model: str, experiment: str) -> str:
    """The module of `experiments` that -m and -e name. Raises: ConfigError."""
    if (model, experiment) not in EXPERIMENTS:
        allowed = ", ".join(of for name, of in EXPERIMENTS if name == model)
        raise ConfigError(f"-e {experiment}: not an experiment of -m {model} (allowed: {allowed})")
    return EXPERIMENTS[model, experiment]


def chosen_runs(runs: list[Run], label: str | None) -> list[Run]:
    """All runs, or the one of a label. Raises: ConfigError."""
    chosen = [run for run in runs if label in (None, run.label)]
    if label and not chosen:
        nearest = "; ".join(difflib.get_close_matches(label, [r.label for r in runs], cutoff=0.0))
        raise ConfigError(f"--only {label}: no such run; --plan lists them, the nearest: {nearest}")
    return chosen


def display_of(folder: Path | None) -> Display:
    """Where values are shown as runs go. Raises: UnavailableError."""
    if folder is None:
        return lambda run: nullcontext(lambda step, values: None)
    with installed("tensorboard", "--tensorboard"):
        import_module("tensorboard")
    return partial(tensorboard, folder.absolute())


def overrides(
    arguments: argparse.Namespace, config_class: type[ExperimentConfig]
) -> dict[str, tuple[Any, str]]:
    """The keys the command line sets: key -> (value, its words). Raises: ConfigError."""
    found: dict[str, tuple[Any, str]] = {}
    for flag, text in arguments.given:
        words = f"{flag} {text}"
        if flag == "--set":
            key, value = parse_setting(text)
        elif flag in config_class.flags:
            key = config_class.flags[flag]
            value = config_class.one_or_list(key, parse_value(text, words))
        else:
            where = f"-m {arguments.model} -e {arguments.experiment}"
            allowed = ", ".join(config_class.flags)
            raise ConfigError(f"{words}: does not apply to {where}, which takes {allowed}")
        if key in found:
            raise ConfigError(f"{words}: '{key}' is set already by {found[key][1]}")
        found[key] = (value, words)
    return found


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
    if done := len(runs) - len(to_do):
        print(
            f"{done} of {len(runs)} runs are done already in {results_dir}: not repeated "
            "(--results-dir DIR runs them afresh elsewhere, --overwrite replaces them)"
        )
    for state in map(run_state, runs):
        if state.reason and state.status in (Status.DONE, Status.MISSING):
            print(f"{state.run.label}: {state.status}, {state.reason}")
    if to_do:
        print(f"{len(to_do)} runs to do, results in {to_do[0].record.parent}", flush=True)


def do_runs(
    experiment: ModuleType,
    config: ExperimentConfig,
    to_do: Sequence[Run],
    arguments: argparse.Namespace,
    stop: Stop,
    display: Display,
) -> None:
    """Do the runs in this process, one after another.

    Raises: UnavailableError, naming what to install; whatever the experiment raises.
    """
    how = {"overwrite": arguments.overwrite, "wait": not arguments.leave_held}
    needed = installed(experiment.EXTRA, "this experiment")
    with needed, closing(claimed_runs(to_do, stop, display, **how)) as runs:
        experiment.run(config, runs, arguments.data_dir.absolute(), arguments.device)


def time_missing(
    experiment: ModuleType,
    config: ExperimentConfig,
    runs: Sequence[Run],
    arguments: argparse.Namespace,
) -> None:
    """Measure a part of the missing runs, and print the hours of all. Raises: as `do_runs`."""
    from experiments.timing import print_hours
    from verdict.results import published_stop

    data_dir = arguments.data_dir.absolute()
    with installed(experiment.EXTRA, "this experiment"):
        print_hours(experiment, config, runs, data_dir, arguments.device, published_stop)


def launch(
    arguments: argparse.Namespace, config: ExperimentConfig, to_do: Sequence[Run], results_dir: Path
) -> int:
    """Have other processes do the runs, each with the config as it is now. Returns the exit code.

    Raises: ConfigError, UnavailableError, OSError.
    """
    words = ["-m", arguments.model, "-e", arguments.experiment]
    words += ["-c", str(save_config(config, results_dir)), "--results-dir", str(results_dir)]
    words += ["--data-dir", str(arguments.data_dir.absolute()), "--device", arguments.device]
    if arguments.tensorboard:
        words += ["--tensorboard", str(arguments.tensorboard.absolute())]
    # Depth by depth: what the A5 search learns from one, deeper runs that start later need not do.
    runs = sorted(to_do, key=lambda run: run.config.get("depth", 0))
    if arguments.launcher == "local":
        return run_local(runs, words, results_dir, arguments.workers, arguments.device)
    with installed("slurm", "--launcher slurm"):
        launcher = import_module("launchers.slurm")
    path = arguments.slurm_config or CONFIG_FOLDER / "slurm.yaml"
    return launcher.run_slurm(runs, words, results_dir, path, arguments.wait)


@contextmanager
def installed(extra: str, what: str) -> Iterator[None]:
    """What needs an extra. Raises: UnavailableError, naming what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"{error.name or error} is not installed; install what {what} needs with "
            f"pip install -c requirements-lock.txt '.[{extra}]' in {ROOT}"
        ) from None


def print_next_step(name: str, results_dir: Path) -> None:
    """Where to go from an experiment's results: to the theory's figure, or beside the paper."""
    here = Path.cwd()
    folder = results_dir.relative_to(here) if results_dir.is_relative_to(here) else results_dir
    paper = "beside the paper: python compare_to_paper.py"
    step = "drawn: python plot_theory.py" if name == "theory" else paper
    print(f"{step} --results-dir {shlex.quote(str(folder))}")


def fail(message: str, code: int = 1) -> int:
    """Print an error to standard error; returns the exit code."""
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
