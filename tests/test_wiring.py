"""What joins settings, data and models: a setting without its effect and rows misread show here.

Every experiment is run at a tiny size, and what its curve shows is compared.
"""

import numpy as np
import pytest

from experiments import lcde_a5, lcde_toy, ssm_a5, ssm_toy
from experiments.schema import load_config
from harness.errors import DataError
from harness.paths import CONFIG_FOLDER
from harness.records import read_record

TINY_WORDS = {
    "lengths": [4],
    "samples": 500,
    "stop_accuracy": 1.0,
    "hidden_dim": 8,
    "batch_size": 150,
    "short_batch_size": 3,
    "eval_interval": 1,
}
TINY_SSM = {"hidden_dim": 8, "state_dim": 3, "scan_backend": "reference", "eval_interval": 1}
TINY_TOY = {"num_paths": 50, "paper_data": False, "runs": 1, "input_dims": [2], "hidden_dim": 8}
TINY = {
    lcde_toy: {**TINY_TOY, "solver": "scan", "share_flows": False},
    lcde_a5: {**TINY_WORDS, "max_steps": 2},
    ssm_toy: {**TINY_TOY, **TINY_SSM, "models": ["Mamba"], "depths": [1], "nonlinear": [False]}
    | {"max_steps": 2, "batch_size": 18},
    ssm_a5: {**TINY_WORDS, **TINY_SSM, "models": ["Mamba"], "depths": [1], "epochs": 1}
    | {"num_heads": 2, "feed_forward_dim": 16},
}
TRAINED = [lcde_a5, ssm_toy, ssm_a5]
WORDS = [lcde_a5, ssm_a5]


def name_of(experiment):
    return experiment.__name__.rpartition(".")[2]


def config_of(experiment, **changes):
    overrides = {key: (value, "test") for key, value in {**TINY[experiment], **changes}.items()}
    path = CONFIG_FOLDER / f"{name_of(experiment)}.yaml"
    return load_config(experiment.Config, path, overrides)


def needs(experiment):
    pytest.importorskip(
        "jax" if experiment.EXTRA == "jax" else "torch", reason="needs the other environment"
    )


@pytest.fixture(autouse=True)
def as_users_run_it(request):
    """JAX without the checks of conftest.py: biases are broadcast over whole batches here."""
    if "experiment" not in request.fixturenames:
        yield
        return
    experiment = request.getfixturevalue("experiment")
    needs(experiment)
    if experiment.EXTRA != "jax":
        yield
        return
    import jax

    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def telling_step(state, batches, key, optimizer, dropout):
    """In the place of `train_step`, which takes seconds to compile: an update that shows its input.

    The loss depends on the parameters, the first batch and what dropout leaves of them; every batch
    moves the parameters by the optimizer.
    """
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from experiments.lcde_training import TrainState
    from linear_cde import drop

    def shown(batch):
        return float(np.mean(np.sin(batch.tokens + 100.0 * batch.targets)))

    sizes = sum(jnp.mean(x) for x in jax.tree.leaves(eqx.filter(state.model, eqx.is_array)))
    kept = drop(jnp.ones(50), dropout, jax.random.clone(key))
    loss = sizes + shown(batches[0]) + jnp.sum(kept * jnp.sin(jnp.arange(50.0)))
    for batch in batches:
        gradients = jax.tree.map(
            lambda x, batch=batch: jnp.full_like(x, shown(batch)) if eqx.is_array(x) else None,
            state.model,
        )
        updates, moments = optimizer.update(gradients, state.moments, state.model)
        state = TrainState(eqx.apply_updates(state.model, updates), moments)
    return state, loss


@pytest.fixture
def quick_step(monkeypatch, experiment):
    """The Linear CDE's update on words replaced by `telling_step`."""
    if experiment is lcde_a5:
        monkeypatch.setattr("experiments.lcde_training.train_step", telling_step)


def tolerant_solve(A, B, y0, ts, omega, xi, *, rtol, atol, dt0, **settings):
    """In the place of the adaptive solver, which takes seconds to compile: it shows its settings.

    What the solver makes of them is for tests/test_linear_cde.py.
    """
    import jax.numpy as jnp

    from linear_cde import scan_cde_solve

    z = scan_cde_solve(A, B, y0, ts, omega, xi, **settings)
    return z + rtol * jnp.sin(z) + atol * jnp.sin(2 * z) + dt0 * jnp.sin(3 * z)


@pytest.fixture
def toy_files(tmp_path, rng, lattice_walks, write_toy_files):
    """Toy data in two and three dimensions; returns a function that sets the labels."""
    paths = [lattice_walks(60, 5, d) for d in (2, 3)]

    def write(labels):
        for walks in paths:
            write_toy_files(tmp_path / "data", walks, np.asarray(labels, np.float32))

    write(rng.standard_normal(60))
    return write


@pytest.fixture
def record(tmp_path):
    """Run an experiment's first run, with changes; returns its record."""
    count = iter(range(100))

    def make(experiment, **changes):
        config = config_of(experiment, **changes)
        folder = tmp_path / f"results_{next(count)}"
        run = experiment.plan(config, folder)[-1]
        words = experiment in WORDS  # their files depend on settings
        experiment.run(config, [run], folder if words else tmp_path / "data", "cpu")
        return read_record(run.files[0].with_suffix(".json"))

    return make


@pytest.fixture(scope="module")
def curves() -> dict:
    """The curves of settings that several tests compare with, each run once."""
    return {}


@pytest.fixture
def parts(tmp_path):
    """Set an experiment's first run up without doing it: (trainable, schedule)."""

    def make(experiment, **changes):
        found = []

        def remembered(run, prepared, origin):
            found.append((prepared.trainable, prepared.schedule))
            return "finished"

        config = config_of(experiment, **changes)
        runs = experiment.plan(config, tmp_path)[-1:]
        experiment.run(config, runs, tmp_path / "data", "cpu", remembered)
        return found[0]

    return make


# (a) Rows


def test_the_readout_is_fitted_to_training_paths_and_scored_on_the_others(toy_files, record):
    needs(lcde_toy)
    toy_files([0.0] * 40 + [100.0] * 10 + [1e6] * 10)
    # 40 train, 10 validate, 10 are beyond num_paths: any other choice of rows has another error.
    assert record(lcde_toy).mse == pytest.approx(1e4)


def test_sequence_models_train_on_training_paths_and_are_scored_on_the_others(toy_files, record):
    needs(ssm_toy)
    toy_files([0.0] * 40 + [100.0] * 10 + [1e6] * 10)
    history = record(ssm_toy, batch_size=60, learning_rate=1e-9).history
    assert history["rmse"] == pytest.approx([100] * 3, rel=0.05)
    assert all(loss < 10 for loss in history["train_loss"][1:])


def marked_split(split):
    """`split`, the targets of training rows all 1, those of validation rows all 2."""

    def mark(*arguments):
        (tokens, targets), (others, other_targets) = split(*arguments)
        return (tokens, np.full_like(targets, 1)), (others, np.full_like(other_targets, 2))

    return mark


def share_of(trainable, symbol):
    """The accuracy of a model that says one symbol always."""
    if hasattr(trainable, "state"):
        import equinox as eqx

        bias = np.zeros(60, np.float32)
        bias[symbol] = 1e6
        model = eqx.tree_at(lambda m: m.out.bias, trainable.state.model, bias)
        trainable.state = trainable.state._replace(model=model)
    else:
        trainable.model.output.bias.data[:] = 0
        trainable.model.output.bias.data[symbol] = 1e6
    return trainable.evaluate()


def rows_of(trainable):
    """Tokens, targets and order of each source that a step draws from."""
    if hasattr(trainable, "orders"):
        return [(*map(np.asarray, data), order) for data, order in trainable.orders]
    return [
        (tokens.numpy(), targets.numpy(), order) for tokens, targets, order in trainable.sources
    ]


@pytest.mark.parametrize("experiment", WORDS, ids=name_of)
def test_words_train_on_training_rows_and_all_pairs_and_are_scored_on_validation_rows(
    experiment, parts, monkeypatch
):
    monkeypatch.setattr(lcde_a5, "split", marked_split(lcde_a5.split))
    trainable, _ = parts(experiment)
    (tokens, targets, order), (pairs, products, short_order) = rows_of(trainable)
    assert tokens.shape == (400, 4) and np.all(targets == 1) and order.num_rows == 400
    assert pairs.shape == (500, 2) and not np.all(products == 1) and short_order.num_rows == 500
    assert [share_of(trainable, symbol) for symbol in (1, 2)] == [0.0, 1.0]


# (b) Dropout


@pytest.mark.parametrize("experiment", WORDS, ids=name_of)
def test_training_drops_and_evaluation_does_not(experiment, record, quick_step):
    without, with_dropout = (record(experiment, dropout=p).history for p in (0.0, 0.9))
    assert without["accuracy"][0] == with_dropout["accuracy"][0] > 0
    assert without["train_loss"][1] != with_dropout["train_loss"][1]


def test_dropout_is_off_in_every_evaluation_and_on_in_every_step(parts):
    needs(ssm_a5)
    trainable, _ = parts(ssm_a5, dropout=0.9)
    for group in trainable.optimizer.param_groups:
        group.update(lr=0.0, weight_decay=0.0)
    outputs = []
    trainable.metric = lambda model, *rows: (
        outputs.append(model(trainable.sources[0][0][:20])) or 0.0
    )
    losses = []
    for step in range(3):
        trainable.evaluate()
        losses.append(trainable.update(0 if step < 2 else 1))
    assert outputs[0].equal(outputs[1]) and outputs[1].equal(outputs[2])
    trainable.model.eval()
    tokens, targets, order = trainable.sources[0]
    undropped = trainable.loss(trainable.model(tokens[order.rows(0)]), targets[order.rows(0)])
    assert losses[0] == losses[1] != pytest.approx(undropped.item(), abs=1e-4)


# (c) Settings

FIRST, LATER, LENGTH = "the first loss", "later losses alone", "the steps alone"
S4 = {"models": ["S4"]}
TRANSFORMER = {"models": ["Transformer"]}
GELU = {"depths": [2], "nonlinear": [True]}
TSIT5 = {"solver": "tsit5"}


def rates(rate):
    return {model: [rate] * 2 for model in ("RNN", "Transformer", "S4", "Mamba")}


# Key of a run's identity: what changes of a curve, settings of both runs, settings of the second.
SHARED = {
    "seed": (FIRST, {}, {"seed": 1}),
    "hidden_dim": (FIRST, {}, {"hidden_dim": 16}),
    "train_fraction": (FIRST, {}, {"train_fraction": 0.6}),
}
TOY = {
    "num_paths": (FIRST, {}, {"num_paths": 60}),
    "input_dim": (FIRST, {}, {"input_dims": [3]}),
    "run": (FIRST, {}, {"runs": 2}),  # the last of them is done
}
WORD = {
    "group": (FIRST, {}, {"group": "S5"}),
    "samples": (FIRST, {}, {"samples": 510}),
    "data_seed": (FIRST, {}, {"data_seed": 1}),
    "length": (FIRST, {}, {"lengths": [5]}),
    "dropout": (FIRST, {}, {"dropout": 0.5}),
    "weight_decay": (LATER, {}, {"weight_decay": 10.0}),
    "short_batch_size": (LATER, {}, {"short_batch_size": 0}),
    "stop_accuracy": (LENGTH, {}, {"stop_accuracy": 1e-6}),
}
TRAINING = {
    "batch_size": (FIRST, {}, {"batch_size": 140}),
    "eval_interval": (LENGTH, {}, {"eval_interval": 2}),
}
LEARNING_RATE = (LATER, {}, {"learning_rate": 0.1})
STEPS = (LENGTH, {}, {"max_steps": 3})
SSM = {
    "model": (FIRST, {}, S4),
    "depth": (FIRST, {}, {"depths": [2]}),
    "state_dim": (FIRST, {}, {"state_dim": 4}),
    "s4_softplus_step": (FIRST, S4, {"s4_softplus_step": False}),
}
CHANGES = {
    lcde_toy: SHARED
    | TOY
    | {
        "solver": (FIRST, {}, TSIT5),
        **{key: (FIRST, TSIT5, {key: 0.1}) for key in ("rtol", "atol", "dt0")},
        "matmul_precision": (FIRST, {}, {"matmul_precision": "tf32"}),
    },
    lcde_a5: SHARED | WORD | TRAINING | {"max_steps": STEPS, "learning_rate": LEARNING_RATE},
    ssm_toy: SHARED
    | TOY
    | TRAINING
    | SSM
    | {
        "nonlinear": (FIRST, {"depths": [2]}, {"nonlinear": [True]}),
        "block_order": (FIRST, GELU, {"block_order": "mix_then_activate"}),
        "learning_rate": LEARNING_RATE,
        "max_steps": STEPS,
    },
    ssm_a5: SHARED
    | WORD
    | TRAINING
    | SSM
    | {
        "num_heads": (FIRST, TRANSFORMER, {"num_heads": 4}),
        "feed_forward_dim": (FIRST, TRANSFORMER, {"feed_forward_dim": 8}),
        "learning_rate": (LATER, {}, {"learning_rates": rates(0.1)}),
        "epochs": (LENGTH, {}, {"epochs": 2}),
    },
}
# Keys of the identity that by design change nothing beyond rounding; each has a test below.
ROUNDING = {
    lcde_toy: {"paper_data", "share_flows", "batch_size", "flow_batch_size"},
    lcde_a5: set(),
    ssm_toy: {"paper_data", "s4_mode", "scan_backend", "compile"},
    ssm_a5: {"s4_mode", "scan_backend", "compile"},
}
CASES = [(experiment, key) for experiment, changes in CHANGES.items() for key in changes]


def curve_of(record):
    """The steps, then (metric, loss until then) at each; of a run of one number that number."""
    if not record.history:
        return [0, 1], [(record.mse, None), (record.mse, record.mse)]
    (metric,) = record.history.keys() & {"rmse", "accuracy"}
    values = zip(record.history[metric], record.history["train_loss"], strict=True)
    return record.history["steps"], list(values)


@pytest.mark.parametrize("experiment", CHANGES, ids=name_of)
def test_of_every_key_of_the_identity_it_is_said_what_it_changes(experiment, tmp_path):
    (identity,) = {tuple(run.config) for run in experiment.plan(config_of(experiment), tmp_path)}
    assert sorted([*CHANGES[experiment], *ROUNDING[experiment]]) == sorted(identity)


@pytest.mark.parametrize(("experiment", "key"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_every_key_of_the_identity_changes_the_curve(
    experiment, key, record, curves, toy_files, quick_step, monkeypatch
):
    if experiment is lcde_toy:
        monkeypatch.setattr("linear_cde.adaptive_cde_solve", tolerant_solve)
    what, both, second = CHANGES[experiment][key]
    name = (experiment, str(both))
    if name not in curves:
        curves[name] = curve_of(record(experiment, **both))
    (steps, values), (other_steps, others) = (
        curves[name],
        curve_of(record(experiment, **{**both, **second})),
    )
    if what == LENGTH:
        assert steps != other_steps
        one, other = (
            dict(zip(steps, values, strict=True)),
            dict(zip(other_steps, others, strict=True)),
        )
        assert all(one[step][0] == other[step][0] for step in one.keys() & other.keys())
        return
    assert steps == other_steps
    changed = [a[1] != b[1] for a, b in zip(values, others, strict=True)][1:]
    assert changed[0] if what == FIRST else changed == [False, *[True] * (len(changed) - 1)]


def same_curve(one, other, tolerance):
    steps, other_steps = curve_of(one)[0], curve_of(other)[0]
    values = [[x for pair in curve_of(r)[1] for x in pair if x is not None] for r in (one, other)]
    return steps == other_steps and values[0] == pytest.approx(values[1], rel=tolerance)


@pytest.mark.parametrize(
    "changes",
    [{"share_flows": True}, {"batch_size": 7}, {"share_flows": True, "flow_batch_size": 7}],
)
def test_how_features_are_computed_changes_an_error_by_rounding_alone(
    changes, record, toy_files, monkeypatch
):
    needs(lcde_toy)
    import kernels.shared_flows
    import linear_cde

    sizes = {"paths": [], "flows": []}
    solve, compose = linear_cde.solve_paths, kernels.shared_flows.compose_by_group

    def solve_paths(model, ts, paths, solver):
        sizes["paths"].append(len(paths))
        return solve(model, ts, paths, solver)

    def compose_by_group(flows, start, ids, size, *arguments):
        sizes["flows"].append(size)
        return compose(flows, start, ids, size, *arguments)

    monkeypatch.setattr(linear_cde, "solve_paths", solve_paths)
    monkeypatch.setattr(kernels.shared_flows, "compose_by_group", compose_by_group)
    plain = record(lcde_toy)
    assert sizes == {"paths": [50], "flows": []}
    assert same_curve(plain, record(lcde_toy, **changes), 1e-3)
    config = config_of(lcde_toy, **changes)
    if config.share_flows:
        assert sizes["flows"] == [config.flow_batch_size]
    else:
        assert sizes["paths"][1:] == [7] * 7 + [1]


@pytest.mark.parametrize("experiment", [ssm_toy, ssm_a5], ids=name_of)
def test_s4_as_a_scan_has_the_curve_of_the_convolution(experiment, record, toy_files, monkeypatch):
    import torch_layers

    modes = []
    forward = torch_layers.S4Recurrence.forward

    def remembered(layer, x):
        modes.append(layer.mode)
        return forward(layer, x)

    monkeypatch.setattr(torch_layers.S4Recurrence, "forward", remembered)
    curves = [record(experiment, models=["S4"], s4_mode=m) for m in ("convolution", "scan")]
    # Adam's first step is as long for a gradient that is only rounding.
    assert same_curve(*curves, 1e-3)
    assert modes == sorted(modes) and set(modes) == {"convolution", "scan"}


@pytest.mark.parametrize("experiment", [ssm_toy, ssm_a5], ids=name_of)
def test_the_scan_is_that_of_the_backend_asked_for(experiment, record, toy_files, monkeypatch):
    import torch_layers

    used = []

    def scan(*arguments, backend, **options):
        used.append(backend)
        return real(*arguments, backend="reference", **options)

    real = torch_layers.selective_scan
    monkeypatch.setattr(torch_layers, "selective_scan", scan)
    monkeypatch.setattr("experiments.ssm_training.choose_backend", lambda device, name: name)
    for backend in ("reference", "cpp"):
        used.clear()
        found = record(experiment, scan_backend=backend)
        assert set(used) == {backend} == {found.provenance.model_extra["scan_backend"]}


@pytest.mark.parametrize("experiment", [ssm_toy, ssm_a5], ids=name_of)
def test_a_model_is_compiled_where_that_is_asked_for(experiment, record, toy_files, monkeypatch):
    import torch

    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    curves = [record(experiment)]
    assert not compiled
    curves.append(record(experiment, compile=True))
    assert len(compiled) == 1 and same_curve(*curves, 1e-6)


@pytest.mark.parametrize("experiment", [lcde_toy, ssm_toy], ids=name_of)
def test_data_that_are_not_the_papers_are_refused_unless_they_are_meant(
    experiment, record, toy_files
):
    record(experiment)
    with pytest.raises(DataError, match=r"data_2\.npy"):
        record(experiment, paper_data=True)


# The other keys: which runs there are, how often they save, how many rows are evaluated together

PLANNED = {
    lcde_toy: {"runs": 3, "input_dims": [3]},
    lcde_a5: {"lengths": [5]},
    ssm_toy: {"runs": 3, "models": ["S5"], "input_dims": [3], "depths": [2], "nonlinear": [True]},
    ssm_a5: {"models": ["RNN"], "lengths": [5], "depths": [2], "batch_size": 7}
    | {"learning_rates": rates(0.1), "other_batch_sizes": {"Mamba": {4: 7}}},
}
ELSEWHERE = {"results_dir", "search"}  # tests/test_run_experiment.py, tests/test_ssm_experiments.py
SCHEDULED = {"checkpoint_interval", "eval_batch_size"}


@pytest.mark.parametrize("experiment", PLANNED, ids=name_of)
def test_keys_that_are_not_of_the_identity_make_another_plan_or_are_tested_by_name(
    experiment, tmp_path
):
    known = PLANNED[experiment].keys() | ELSEWHERE | SCHEDULED
    assert experiment.Config.not_identity <= known
    configs = [run.config for run in experiment.plan(config_of(experiment), tmp_path)]
    for key, value in PLANNED[experiment].items():
        changed = experiment.plan(config_of(experiment, **{key: value}), tmp_path)
        assert [run.config for run in changed] != configs, key


@pytest.mark.parametrize("experiment", TRAINED, ids=name_of)
def test_a_training_run_keeps_the_schedule_of_its_config(experiment, parts, toy_files):
    stop = {"stop_accuracy": 0.5} if experiment in WORDS else {}
    _, schedule = parts(experiment, eval_interval=5, checkpoint_interval=7, **stop)
    assert (schedule.eval_interval, schedule.checkpoint_interval) == (5, 7)
    assert (schedule.max_steps, schedule.stop_above) == (2, 0.5 if stop else None)


@pytest.mark.parametrize("experiment", TRAINED, ids=name_of)
def test_rows_are_evaluated_so_many_together(experiment, parts, toy_files, monkeypatch):
    module = "lcde_training" if experiment is lcde_a5 else "ssm_training"
    metric = "root_mean_square_error" if experiment is ssm_toy else "accuracy"
    sizes = []

    def sized(*arguments, **named):
        sizes.append(named.get("batch_size", arguments[-1]))
        return 0.0

    monkeypatch.setattr(f"experiments.{module}.{metric}", sized)
    parts(experiment, eval_batch_size=7)[0].evaluate()
    assert sizes == [7]


# Streams


def streams(experiment, trainable):
    """What a run draws: parameters, an order for each source, dropout."""
    if experiment is lcde_a5:
        import jax

        model, dropout = trainable.state.model, jax.random.key_data(trainable.key).tolist()
        parameters = [np.asarray(x) for x in (model.embedding, model.out.weight, model.cde.B)]
    else:
        model = trainable.model
        weights = [model.output.weight, *(block.mix.weight for block in model.blocks)]
        parameters = [x.detach().numpy() for x in weights]
        dropout = list(trainable.dropout[1]) if trainable.dropout else None
    return [*(x.ravel()[:8].tolist() for x in parameters), *orders(trainable), dropout]


def orders(trainable):
    sources = trainable.orders if hasattr(trainable, "orders") else trainable.sources
    return [source[-1].rows(0).tolist() for source in sources]


@pytest.mark.parametrize(
    ("experiment", "change"),
    [(e, c) for e in WORDS for c in ({"seed": 1}, {"lengths": [5]})]
    + [(ssm_toy, c) for c in ({"seed": 1}, {"runs": 2}, {"input_dims": [3]})],
)
def test_runs_of_other_names_draw_everything_anew(experiment, change, parts, toy_files):
    one, other = (parts(experiment, **changes)[0] for changes in ({}, change))
    found = zip(streams(experiment, one), streams(experiment, other), strict=True)
    assert all(mine is None or mine != theirs for mine, theirs in found)


@pytest.mark.parametrize("experiment", WORDS, ids=name_of)
def test_the_orders_of_words_and_of_pairs_are_streams_of_their_own(experiment, parts):
    orders = [order for *_, order in rows_of(parts(experiment)[0])]
    seeds = [order.seed for order in orders]
    assert len(seeds) == len(set(seeds)) == 2
    assert len({np.random.default_rng([*seed, 0]).random() for seed in seeds}) == 2
