"""`--plan --time`: what is measured is scaled to whole runs, and nothing is done or left."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import timing
from experiments.timing import Cost, groups_of_runs, measure, print_hours
from experiments.training_loop import Prepared, Schedule
from harness.records import Run
from run_experiment import main
from verdict.results import published_stop

SCHEDULE = Schedule(max_steps=1000, eval_interval=300, checkpoint_interval=1000)
STEP_S, ROW_S = 0.5, 0.01


class Clock:
    """Seconds that pass when somebody works."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


class Slow:
    """A trainable whose first update and evaluation compile, for a minute each."""

    def __init__(self, clock, rows=1000):
        self.clock, self.validation = clock, (np.zeros(rows), np.zeros((rows, 3)))
        self.steps, self.compiled = [], 0

    def update(self, step):
        self.clock.now += STEP_S if self.steps else 60
        self.steps.append(step)
        return 0.0

    def evaluate(self):
        rows = {len(x) for x in self.validation}
        assert len(rows) == 1
        self.clock.now += ROW_S * rows.pop() if self.compiled else 60
        self.compiled += 1
        return 0.0


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(timing, "time", found)
    return found


@pytest.mark.parametrize(("rows", "measured"), [(5, 5), (1000, 640), (200, 200)])
def test_a_measurement_leaves_out_compiling_and_scales_the_evaluated_rows(clock, rows, measured):
    cost = measure(Slow(clock, rows), SCHEDULE, batch=10)
    assert cost.step_s == pytest.approx(STEP_S)
    assert cost.evaluation_s == pytest.approx(ROW_S * rows)
    assert (cost.measured, cost.rows) == (measured, rows)


@pytest.mark.parametrize(("first", "last"), [(0, 1000), (600, 1000), (0, 300), (300, 900)])
def test_a_run_is_its_updates_and_its_evaluations(first, last):
    schedule = Schedule(max_steps=last, eval_interval=300, checkpoint_interval=1)
    evaluated = [step for step in range(first, last + 1) if schedule.evaluates(step)]
    cost = Cost(schedule, STEP_S, 7.0, 1, 1)
    assert cost.seconds(last, first) == (last - first) * STEP_S + 7.0 * len(evaluated)


def run_of(folder, **config):
    name = "_".join(map(str, config.values()))
    files = folder / "results" / f"{name}.npy", folder / "results" / f"acc_{name}.npy"
    return Run(f"{config['model']}, run {config['run']}", files, config)


def test_runs_that_differ_in_seed_number_or_rate_are_measured_once(tmp_path):
    same = [run_of(tmp_path, model="S4", run=r, learning_rate=10.0**-r) for r in (1, 2)]
    other = run_of(tmp_path, model="S5", run=1, learning_rate=0.1)
    assert groups_of_runs([same[0], other, same[1]]) == [same, [other]]


def test_hours_are_those_of_all_runs_to_the_end_and_to_the_papers_stop(tmp_path, clock, capsys):
    config = SimpleNamespace(eval_batch_size=10)
    solvable = Schedule(10_000, 10_000, 10_000, stop_above=0.9)

    def run(config, runs, data_dir, device, do):
        for run in runs:
            do(run, Prepared(Slow(clock), solvable, "accuracy", {}), {})

    experiment = SimpleNamespace(run=run, prepare=None)
    runs = [run_of(tmp_path, model=m, run=r) for m in ("RNN", "S4") for r in (0, 1)]
    stops = {"RNN": 1000}
    print_hours(experiment, config, runs, tmp_path, "cpu", lambda c: stops.get(c["model"]))
    lines = capsys.readouterr().out.splitlines()[1:]
    whole, stopped = 10_000 * STEP_S + 2 * 10, 1000 * STEP_S + 2 * 10
    assert lines[0].startswith("RNN, 2 runs: 0.5000 s a step, 10.00 s an evaluation (estimated fr")
    assert f"0.5020 s a step with evaluations, {2 * whole / 3600:.2g} hours to" in lines[0]
    assert f"{2 * stopped / 3600:.2g} hours to 1,000, where the paper's" in lines[0]
    assert lines[1].startswith("S4, 2 runs") and "paper" not in lines[1]
    total = f"4 missing runs: {4 * whole / 3600:.2g} hours; 2 of them to where the paper's were "
    assert lines[2] == f"{total}solved: {2 * stopped / 3600:.2g} hours"


def test_the_papers_stopping_steps_are_found_by_a_runs_config():
    assert published_stop({"group": "A5", "length": 18}) == 20_000
    words = {"group": "A5", "model": "Mamba", "depth": 2}
    assert published_stop({**words, "length": 4}) == 80_000
    assert published_stop({**words, "length": 5}) is None
    assert published_stop({**words, "group": "S5", "length": 4}) is None
    assert published_stop({"model": "S4", "depth": 1, "input_dim": 2}) is None


TINY = {
    "A5": {"samples": 500, "hidden_dim": 8, "batch_size": 8, "eval_interval": 10},
    "toy": {"num_paths": 50, "paper_data": "false", "hidden_dim": 8, "runs": 2},
}
SSM = {"state_dim": 3, "scan_backend": "reference"}
COMMANDS = {
    "LCDE toy": (["-i", "2"], {"solver": "scan", "share_flows": "false", "batch_size": 10}),
    "SequenceModel A5": (
        ["-n", "RNN", "-l", "4", "-d", "1"],
        {**SSM, "epochs": 2, "num_heads": 2, "feed_forward_dim": 16},
    ),
    "SequenceModel toy": (
        ["-n", "S4", "-d", "1", "-i", "2", "-nl", "false"],
        {**SSM, "max_steps": 9, "batch_size": 8},
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_measures_what_is_missing_and_leaves_nothing(
    name, tmp_path, rng, write_toy_files, capsys, monkeypatch
):
    model, experiment = name.split()
    pytest.importorskip("jax" if model == "LCDE" else "torch", reason="the other environment's")
    monkeypatch.setattr(timing, "LEAST_S", 0.0)
    walks = rng.standard_normal((50, 5, 2)).astype(np.float32)
    write_toy_files(tmp_path / "data", walks, walks[:, 0, 0])
    flags, settings = COMMANDS[name]
    words = ["-m", model, "-e", experiment, *flags, "--plan", "--time"]
    words += ["--data-dir", str(tmp_path / "data"), "--results-dir", str(tmp_path / "results")]
    for key, value in {**TINY[experiment], **settings}.items():
        words += ["--set", f"{key}={value}"]
    if model == "LCDE":
        import jax

        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            assert main(words) == 0
    else:
        assert main(words) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    runs = 2 if experiment == "toy" else 1
    assert re.fullmatch(rf"{runs} missing runs: [\d.e-]+ hours(; .*)?", last)
    assert not (tmp_path / "results").exists()


def test_time_without_a_plan_is_refused(capsys):
    assert main(["-m", "LCDE", "-e", "toy", "--time"]) == 2
    assert "--time: needs --plan" in capsys.readouterr().err
