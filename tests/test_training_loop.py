"""When a training run evaluates, stops and resumes, without any framework."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import training_loop
from experiments.training_loop import DataOrder, Prepared, Schedule, do_run, train
from harness.checkpoints import Checkpoints
from harness.errors import ResultsError
from harness.process import Stop
from harness.progress import progress_bar
from harness.records import Run, RunContext, Status, outcome, read_record, run_state


class Walk:
    """A model whose state is a sum of its steps' draws; its metric is the number of updates."""

    def __init__(self, stop_at=None):
        self.total, self.updates, self.stop_at = 0.0, 0.0, stop_at

    def update(self, step):
        if step == self.stop_at:
            raise KeyboardInterrupt
        draw = float(np.random.default_rng([7, step]).random())
        self.total, self.updates = self.total + draw, self.updates + 1
        return draw

    def evaluate(self):
        return self.updates

    def arrays(self):
        return {"place": np.array([self.total, self.updates])}

    def restore(self, arrays):
        self.total, self.updates = map(float, arrays["place"])


def test_a_run_whose_data_changed_is_not_gone_on_with(tmp_path):
    def go_on(walk, sha256):
        files = (tmp_path / "out" / "steps.npy", tmp_path / "out" / "updates.npy")
        run = Run("a walk", files, {"max_steps": 25, "eval_interval": 10})
        do_run(run, Prepared(walk, SCHEDULE, "updates", {"A5=3.csv": sha256}), {})

    with pytest.raises(KeyboardInterrupt):
        go_on(Walk(stop_at=9), "abc")
    with pytest.raises(ResultsError, match=r"data file A5=3\.csv 'abc' where this run has 'def'"):
        go_on(Walk(), "def")
    go_on(Walk(), "abc")
    record = json.loads((tmp_path / "out" / "steps.json").read_text())
    assert record["provenance"]["data"] == {"A5=3.csv": "abc"}


class Explosive(Walk):
    def update(self, step):
        return super().update(step) if step < 3 else float("nan")


SCHEDULE = Schedule(max_steps=25, eval_interval=10, checkpoint_interval=4)


def test_evaluations_come_before_the_first_update_at_every_interval_and_at_the_end(tmp_path):
    history, outcome = train(Walk(), SCHEDULE, Checkpoints(tmp_path, {}), "updates")
    assert history.steps == history.metric == [0, 10, 20, 25]
    assert outcome == "finished"
    assert history.train_loss[0] is None
    draws = [np.random.default_rng([7, step]).random() for step in range(25)]
    means = [np.mean(draws[:10]), np.mean(draws[10:20]), np.mean(draws[20:])]
    assert history.train_loss[1:] == pytest.approx(means)


def test_training_stops_above_the_threshold_and_not_at_it(tmp_path):
    schedule = Schedule(max_steps=25, eval_interval=5, checkpoint_interval=4, stop_above=10)
    history, outcome = train(Walk(), schedule, Checkpoints(tmp_path, {}), "updates")
    assert (history.steps[-1], outcome) == (15, "solved")


def test_a_threshold_never_exceeded_is_not_solved(tmp_path):
    schedule = Schedule(max_steps=25, eval_interval=5, checkpoint_interval=4, stop_above=25)
    assert train(Walk(), schedule, Checkpoints(tmp_path, {}), "updates")[1] == "not solved"


@pytest.mark.parametrize("stop_at", [3, 4, 10, 12, 24])
def test_a_stopped_run_goes_on_to_the_history_of_an_undisturbed_one(tmp_path, stop_at):
    whole, _ = train(Walk(), SCHEDULE, Checkpoints(tmp_path / "whole", {}), "updates")
    checkpoints = Checkpoints(tmp_path / "stopped", {})
    with pytest.raises(KeyboardInterrupt):
        train(Walk(stop_at), SCHEDULE, checkpoints, "updates")
    again, _ = train(Walk(), SCHEDULE, checkpoints, "updates")
    assert (again.steps, again.metric, again.train_loss) == (
        whole.steps,
        whole.metric,
        whole.train_loss,
    )


def test_the_rate_of_a_resumed_run_is_that_of_its_own_steps(tmp_path, monkeypatch):
    bars = []

    def remembered(*arguments):
        bars.append(progress_bar(*arguments))
        return bars[-1]

    monkeypatch.setattr(training_loop, "progress_bar", remembered)
    checkpoints = Checkpoints(tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        train(Walk(stop_at=9), SCHEDULE, checkpoints, "updates")
    train(Walk(), SCHEDULE, checkpoints, "updates")
    # tqdm's rate is that of the units from `initial` to `n`.
    assert [(bar.initial, bar.n) for bar in bars] == [(0, 9), (8, 25)]


class Timed(Walk):
    """A second passes with every update."""

    def __init__(self, stop_at=None):
        super().__init__(stop_at)
        self.now = 500.0 if stop_at is None else 0.0

    def update(self, step):
        self.now += 1
        return super().update(step)


def test_a_resumed_run_counts_the_seconds_up_to_its_checkpoint_and_its_own(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, {})
    for walk in (Timed(stop_at=9), Timed()):
        monkeypatch.setattr(training_loop, "time", SimpleNamespace(monotonic=lambda w=walk: w.now))
        with pytest.raises(KeyboardInterrupt) if walk.stop_at else nullcontext():
            history, _ = train(walk, SCHEDULE, checkpoints, "updates")
    assert history.seconds == history.steps == [0, 10, 20, 25]


class Stopped(Walk):
    def __init__(self, stop):
        super().__init__()
        self.stop = stop

    def update(self, step):
        self.stop.number = 15 if step == 6 else None
        return super().update(step)


def test_a_wish_to_stop_is_met_after_the_step_with_a_checkpoint(tmp_path):
    whole, _ = train(Walk(), SCHEDULE, Checkpoints(tmp_path / "whole", {}), "updates")
    stop, checkpoints = Stop(), Checkpoints(tmp_path / "stopped", {})
    with pytest.raises(KeyboardInterrupt):
        train(Stopped(stop), SCHEDULE, checkpoints, "updates", stop=stop)
    assert checkpoints.load(Walk().arrays()).state["step"] == 7
    again, _ = train(Walk(), SCHEDULE, checkpoints, "updates")
    assert (again.metric, again.train_loss) == (whole.metric, whole.train_loss)


def walk_to(folder, max_steps, walk, stop_above=None):
    """Do a run whose files are in a folder below this one."""
    schedule = Schedule(max_steps, 10, checkpoint_interval=4, stop_above=stop_above)
    files = (folder / "out" / "steps.npy", folder / "out" / "updates.npy")
    run = Run("a walk", files, {"max_steps": max_steps, "eval_interval": 10})
    do_run(run, Prepared(walk, schedule, "updates", {}), {})
    return run


def files_of(folder):
    """What a run leaves, but for its times: its files, and the state that is kept."""
    (kept,) = (folder / "checkpoints").glob("*/*.npz")
    history = json.loads((folder / "out" / "steps.json").read_text())["history"]
    with np.load(kept) as members:
        place = members["place"].tobytes()
    arrays = [path.read_bytes() for path in sorted((folder / "out").glob("*.npy"))]
    return kept.name, place, arrays, history["train_loss"]


@pytest.mark.parametrize("ends", [[20], [24], [25], [7, 23], [20, 25]])
@pytest.mark.parametrize("stop_at", [None, 6, 19])
def test_a_longer_schedule_goes_on_to_the_bits_of_one_long_run(tmp_path, ends, stop_at):
    walk_to(tmp_path / "once", 40, Walk())
    folder = tmp_path / "further"
    if stop_at is not None:
        with pytest.raises(KeyboardInterrupt):
            walk_to(folder, ends[0], Walk(min(stop_at, ends[0] - 1)))
        ends = ends[1:]  # an interrupted run goes on under a longer schedule too
    for end in ends:
        walk_to(folder, end, Walk())
    last = Counted()
    walk_to(folder, 40, last)
    assert files_of(folder) == files_of(tmp_path / "once")
    if ends:
        assert last.steps == list(range(ends[-1], 40))


class Counted(Walk):
    def __init__(self):
        super().__init__()
        self.steps = []

    def update(self, step):
        self.steps.append(step)
        return super().update(step)


def test_the_state_of_a_solved_run_is_kept(tmp_path):
    run = walk_to(tmp_path, 40, Walk(), stop_above=15)
    assert outcome(run) == "solved"
    assert files_of(tmp_path)[0] == "step_000000020.npz"


def test_a_record_names_every_process_that_did_a_part(tmp_path):
    files = (tmp_path / "out" / "steps.npy", tmp_path / "out" / "updates.npy")
    run = Run("a walk", files, {"max_steps": 25})
    for commit, walk in (("a", Walk(6)), ("b", Walk(12)), ("c", Walk())):
        context = RunContext(started=f"start of {commit}")
        origin = {"commit": commit, "host": "here"}
        with nullcontext() if commit == "c" else pytest.raises(KeyboardInterrupt):
            prepared = Prepared(walk, SCHEDULE, "updates", {})
            do_run(replace(run, context=context), prepared, origin)
    found = read_record(run.record).provenance
    assert (found.commit, found.started) == ("c", "start of a")
    assert found.processes == [
        {"host": "here", "commit": commit, "started": f"start of {commit}"} for commit in "abc"
    ]


def test_what_is_tested_at_the_end_is_saved_with_the_curve_and_none_is_before(tmp_path, capsys):
    files = tuple(tmp_path / "out" / f"{name}.npy" for name in ("steps", "updates", "tested"))
    run = Run("a walk", files, {"max_steps": 25})

    def prepared(walk):
        def test():
            return training_loop.Tested([np.array([walk.updates])], {"found": walk.updates}, ["so"])

        return Prepared(walk, SCHEDULE, "updates", {}, test)

    with pytest.raises(KeyboardInterrupt):
        do_run(run, prepared(Walk(stop_at=15)), {})
    assert not run.record.exists()
    assert do_run(run, prepared(Walk()), {}) == "finished"
    assert [np.load(path).tolist() for path in files] == [[0, 10, 20, 25]] * 2 + [[25]]
    assert read_record(run.record).model_extra["found"] == 25
    assert capsys.readouterr().out.strip().endswith("s, so")


def test_without_the_kept_state_a_longer_schedule_starts_at_step_0_and_says_so(tmp_path, capsys):
    walk_to(tmp_path, 20, Walk())
    assert "starts at step 0" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "checkpoints")
    again = Counted()
    walk_to(tmp_path, 40, again)
    assert again.steps == list(range(40))
    assert f"a walk: starts at step 0, {tmp_path / 'checkpoints'}" in capsys.readouterr().out


@pytest.mark.parametrize("stop_at", [5, 15, 27, None])
def test_a_longer_run_replaces_the_curve_that_is_there_once_it_is_as_long(tmp_path, stop_at):
    def run_to(max_steps, walk):
        return walk_to(tmp_path, max_steps, walk)

    def steps():
        return np.load(tmp_path / "out" / "steps.npy").tolist()

    run_to(20, Walk())
    shutil.rmtree(tmp_path / "checkpoints")  # else it would not be shorter at any moment
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    if stop_at is not None:
        with pytest.raises(KeyboardInterrupt):
            run_to(40, Walk(stop_at))
        after = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert steps() == [0, 10, 20]
        assert (after == before) == (stop_at < 20)
    run = run_to(40, Walk())
    assert steps() == [0, 10, 20, 30, 40]
    assert outcome(run) == "finished"


def test_a_longer_run_that_ends_before_the_curve_that_is_there_replaces_it(tmp_path):
    files = (tmp_path / "out" / "steps.npy", tmp_path / "out" / "updates.npy")
    walk_to(tmp_path, 20, Walk())
    shutil.rmtree(tmp_path / "checkpoints")
    run = walk_to(tmp_path, 40, Explosive())
    assert np.load(files[0]).tolist() == [0]
    assert outcome(run).startswith("diverged")


def test_a_loss_that_is_not_finite_ends_the_run_and_is_named(tmp_path):
    history, outcome = train(Explosive(), SCHEDULE, Checkpoints(tmp_path, {}), "updates")
    assert outcome == "diverged: the loss was nan at step 3"
    assert history.steps == [0]


class NotANumber(Walk):
    """Its metric is NaN from an update on."""

    def __init__(self, since):
        super().__init__()
        self.since = since

    def evaluate(self):
        return self.updates if self.updates < self.since else float("nan")


@pytest.mark.parametrize("since", [0, 10, 20])
def test_a_metric_that_is_not_finite_ends_the_run_with_a_record(tmp_path, since):
    run = walk_to(tmp_path, 40, NotANumber(since))
    record = read_record(run.record)
    assert record.outcome == f"diverged: the updates was nan at step {since}"
    steps = list(range(0, since, 10))
    assert record.history.get("steps", []) == steps
    assert [np.load(path).tolist() for path in run.files if path.exists()] == [steps] * 2 * (
        since > 0
    )
    assert run_state(run).status is Status.DONE
    longer = replace(run, config={**run.config, "max_steps": 80})
    assert run_state(longer).status is Status.DONE


def test_a_run_that_diverges_at_once_leaves_no_file_of_the_result_it_replaces(tmp_path):
    walk_to(tmp_path, 20, Walk())
    shutil.rmtree(tmp_path / "checkpoints")
    run = walk_to(tmp_path, 20, NotANumber(0))
    assert not any(path.exists() for path in run.files)
    assert run_state(run).status is Status.DONE


class Unread(Walk):
    """Its losses note when they are read."""

    def __init__(self):
        super().__init__()
        self.reads = []

    def update(self, step):
        walk, loss = self, super().update(step)

        class Loss:
            def __float__(self):
                walk.reads.append((step, walk.updates))
                return loss

        return Loss()


def test_a_loss_is_read_once_and_not_at_every_step(tmp_path):
    walk = Unread()
    schedule = Schedule(max_steps=250, eval_interval=1000, checkpoint_interval=130)
    history, _ = train(walk, schedule, Checkpoints(tmp_path, {}), "updates")
    due = [100] * 100 + [130] * 30 + [200] * 70 + [250] * 50
    assert walk.reads == list(enumerate(due))
    total = 0.0
    for step in range(250):
        total += float(np.random.default_rng([7, step]).random())
    assert history.train_loss[-1] == total / 250


def test_no_state_is_saved_after_a_loss_that_was_not_finite(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    assert "at step 3" in train(Explosive(), SCHEDULE, checkpoints, "updates")[1]
    assert checkpoints.load(Walk().arrays()) is None


def test_data_order_visits_every_row_once_an_epoch_and_needs_no_past():
    order = DataOrder(10, 2, seed=(1, 2))
    epoch = np.concatenate([order.rows(step) for step in range(5)])
    assert sorted(epoch) == list(range(10))
    assert np.array_equal(DataOrder(10, 2, seed=(1, 2)).rows(7), order.rows(7))
    second = np.concatenate([order.rows(step) for step in range(5, 10)])
    assert sorted(second) == list(range(10))
    assert not np.array_equal(second, epoch)


def test_data_orders_of_other_seeds_differ():
    orders = [DataOrder(100, 100, seed).rows(0) for seed in ((1, 2), (1, 3), (2, 2))]
    assert not any(np.array_equal(orders[i], orders[j]) for i in range(3) for j in range(i))
