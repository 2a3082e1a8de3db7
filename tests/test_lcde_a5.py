"""The Linear CDE on a group's word problem: the fast form equals the plain one, runs resume."""

import hashlib
import itertools
import json

import numpy as np
import pytest

pytest.importorskip("jax", reason="the Linear CDE needs JAX")

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax

from data_dir.finite_groups import group
from experiments import lcde_training
from experiments.lcde_a5 import ORDER, SHORT_ORDER, SPLIT
from experiments.lcde_training import (
    Batch,
    Training,
    TrainState,
    accuracy,
    accuracy_by_position,
    mean_cross_entropy,
    train_step,
)
from experiments.training_loop import DataOrder, Schedule, train
from harness.checkpoints import Checkpoints
from harness.paths import CONFIG_FOLDER
from linear_cde import A5LinearCDE, drop
from run_experiment import main

A5 = group("A5")


@pytest.fixture(autouse=True)
def batches_broadcast():
    """Biases are broadcast over whole batches here, and optax promotes its integer step count."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


# Compiled whole: one program, where each of its operations would be one.
fast_states = eqx.filter_jit(lcde_training.fast_states)
plain_states = eqx.filter_jit(A5LinearCDE.states)
logits_of = eqx.filter_jit(A5LinearCDE.__call__)
loss_of = eqx.filter_jit(mean_cross_entropy)

# Both forms add the same products in another order: a few float32 roundings of the largest value.
FLOAT32_SUMS = 2e-5


def sequences(count, length, seed=0):
    tokens = np.random.default_rng(seed).integers(0, A5.order, (count, length), dtype=np.uint8)
    return Batch(tokens, A5.running_products(tokens))


def on_device(batch):
    return Batch(*map(jnp.asarray, batch))


# That of a tiny run: what is compiled for one is there for the other.
WIDTH = 8


def small_model(**form):
    return A5LinearCDE(A5.order, WIDTH, key=jr.key(0), **form)


FORMS = {
    "dense": {},
    "blocks": {"block_size": 4},
    "fixed step, diagonal": {"block_size": 1, "step_length": 4},
    "fixed step, blocks, no time": {"block_size": 2, "step_length": 4, "time_channel": False},
}


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def model(request):
    """A small model of each form."""
    return small_model(**request.param)


def relative_error(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# 4 places are fewer than the tokens, 180 are more: the two ways of sharing the contraction.
FEW, MANY = (2, 3), (20, 10)


@pytest.mark.parametrize(("count", "length"), [FEW, MANY])
def test_states_by_token_equal_the_scan(model, count, length):
    tokens = jnp.asarray(sequences(count, length).tokens)
    expected = plain_states(model, tokens)
    assert expected.shape == (count, length, WIDTH)
    assert relative_error(fast_states(model, tokens), expected) < FLOAT32_SUMS


def test_states_of_one_step_by_token_equal_the_scan():
    model, tokens = small_model(), jnp.asarray(sequences(4, 2).tokens)
    assert relative_error(fast_states(model, tokens), plain_states(model, tokens)) < FLOAT32_SUMS


@pytest.mark.parametrize(
    ("form", "size"),
    [
        ("dense", FEW),
        ("dense", MANY),
        ("blocks", MANY),
        ("fixed step, diagonal", MANY),
        ("fixed step, blocks, no time", FEW),
    ],
)
def test_gradients_by_token_equal_those_of_the_scan(form, size):
    model, tokens = small_model(**FORMS[form]), jnp.asarray(sequences(*size).tokens)
    weights = jr.normal(jr.key(3), (*size, WIDTH))

    def mixture(model, states_of):
        return jnp.sum(weights * states_of(model, tokens))

    gradient = eqx.filter_jit(eqx.filter_grad(mixture))
    found, expected = (gradient(model, f) for f in (fast_states, A5LinearCDE.states))
    pairs = zip(*(jax.tree.leaves((g.embedding, g.cde)) for g in (found, expected)), strict=True)
    for ours, plain in pairs:
        assert relative_error(ours, plain) < 10 * FLOAT32_SUMS


def test_scan_is_the_papers_recurrence_on_path_values():
    model, tokens = small_model(), jnp.asarray(sequences(1, 6).tokens)
    cde, x = model.cde, np.asarray(model.embedding, dtype=np.float64)[np.asarray(tokens[0])]
    A, B = cde.matrices()
    y = np.asarray(cde.init_matrix) @ x[0] + np.asarray(cde.init_bias)
    for i in range(1, 6):
        control = np.concatenate([[i / 5], x[i]])
        y = y + (np.einsum("hij,j,i->h", A, y, control) + B @ control) / 6
    assert relative_error(plain_states(model, tokens)[0, -1], y) < FLOAT32_SUMS


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("form", [{}, {"time_channel": False}])
def test_blocks_move_as_the_dense_fields_that_zeros_fill_up(k, form):
    model, tokens = small_model(block_size=k, **form), jnp.asarray(sequences(9, 8).tokens)
    cde = model.cde
    around = np.kron(np.eye(WIDTH // k), np.ones((k, k)))  # 1 in the blocks, 0 around them
    channels, (A_time, B_time) = np.asarray(cde.A), cde.time_fields()
    A, A_time = (np.concatenate(x, axis=0) for x in (channels, np.asarray(A_time)))
    dense = np.einsum("hj,hje->hje", around, np.tile(A, (1, WIDTH // k, 1)))
    time = around * np.tile(A_time, (1, WIDTH // k))
    padded = eqx.tree_at(
        lambda c: (c.A, c.A_time, c.B_time),
        cde,
        tuple(jnp.asarray(x, jnp.float32) for x in (dense, time, B_time)),
        is_leaf=lambda x: x is None,
    )
    expected = fast_states(eqx.tree_at(lambda m: m.cde, model, padded), tokens)
    assert relative_error(fast_states(model, tokens), expected) < FLOAT32_SUMS


@pytest.mark.parametrize("block_size", [None, 4])
def test_a_fixed_step_makes_one_equation_of_every_length(block_size):
    tokens = jnp.asarray(sequences(5, 9).tokens)
    fixed, by_length = (
        small_model(block_size=block_size, step_length=length) for length in (4, None)
    )
    whole = fast_states(fixed, tokens)
    assert relative_error(fast_states(fixed, tokens[:, :4]), whole[:, :4]) < FLOAT32_SUMS
    # At the length whose step it is, the model is the paper's.
    assert relative_error(whole[:, :4], fast_states(by_length, tokens[:, :4])) < FLOAT32_SUMS
    assert relative_error(whole[:, :4], fast_states(by_length, tokens)[:, :4]) > 0.01


def test_without_its_channel_time_moves_nothing():
    tokens = jnp.full((1, 6), 7, jnp.uint8)
    without, with_time = (small_model(step_length=6, time_channel=t) for t in (False, True))
    moves = np.diff(plain_states(without, tokens)[0], axis=0)
    # One token again and again: y' = F y + b, so every move is the one before it, moved.
    A, _ = without.cde.matrices()
    field = np.einsum("hij,i->hj", A[:, 1:], without.embedding[7]) / 6
    assert relative_error(moves[1:], moves[:-1] + moves[:-1] @ field.T) < 1e-4
    assert "A_time" not in {n for n, x in vars(without.cde).items() if x is not None}
    assert np.array_equal(without.cde.A, with_time.cde.A)
    assert relative_error(plain_states(with_time, tokens), plain_states(without, tokens)) > 0.01


def test_evaluation_counts_what_the_model_predicts_in_batches_of_any_size(model):
    data = sequences(101, 7)
    logits = logits_of(model, jnp.asarray(data.tokens))
    # Targets made of the model's own predictions, half of them wrong, so that a count is a count.
    predicted = np.asarray(jnp.argmax(logits, axis=-1)).astype(np.uint8)
    wrong = np.arange(predicted.size).reshape(predicted.shape) % 2
    data = Batch(data.tokens, (predicted + wrong.astype(np.uint8)) % A5.order)
    for batch_size in (10, 101, 1000):
        assert accuracy(model, data, batch_size) == pytest.approx(np.mean(wrong == 0), abs=0.003)
        found = accuracy_by_position(model, data, batch_size)
        np.testing.assert_allclose(found, np.mean(wrong == 0, axis=0), atol=0.021)


def test_accuracy_at_a_position_is_that_of_the_position():
    model, data = small_model(), sequences(40, 5)
    predicted = np.asarray(jnp.argmax(logits_of(model, jnp.asarray(data.tokens)), axis=-1)).astype(
        np.uint8
    )
    predicted[:, 3] += 1
    found = accuracy_by_position(model, Batch(data.tokens, predicted % A5.order), 7)
    np.testing.assert_allclose(found, [1, 1, 1, 0, 1], atol=0.06)


def test_states_that_overflow_predict_as_the_model_does_without_a_warning():
    model, data = small_model(step_length=4), sequences(40, 60)
    model = eqx.tree_at(lambda m: m.cde.A, model, 1e3 * model.cde.A)
    logits = logits_of(model, jnp.asarray(data.tokens))
    assert not np.isfinite(logits[:, -1]).any()
    right = jnp.argmax(logits[:, -1], axis=-1) == data.targets[:, -1]
    assert accuracy_by_position(model, data, 7)[-1] == np.mean(right)


def test_no_output_sees_the_future():
    model, tokens = small_model(), jnp.asarray(sequences(3, 8).tokens)
    changed = tokens.at[:, 5:].set((tokens[:, 5:] + 1) % A5.order)
    before, after = fast_states(model, tokens), fast_states(model, changed)
    assert np.array_equal(before[:, :5], after[:, :5])
    assert not np.array_equal(before[:, 5:], after[:, 5:])


def test_no_two_parameters_share_values():
    leaves = jax.tree.leaves(eqx.filter(small_model(), eqx.is_array))
    values = [np.ravel(leaf)[:16] for leaf in leaves if np.ptp(leaf) > 0]
    for one, other in itertools.combinations(values, 2):
        assert not np.intersect1d(one, other).size


def test_dropout_zeroes_its_share_and_rescales_the_rest():
    x = jnp.full((100, 100), 3.0)
    dropped = np.asarray(drop(x, 0.1, jr.key(0)))
    assert np.unique(dropped) == pytest.approx([0, 3 / 0.9])
    assert np.mean(dropped == 0) == pytest.approx(0.1, abs=0.01)
    assert drop(x, 0.0, jr.key(0)) is x


def test_loss_is_finite_for_logits_that_overflow_an_exponential():
    model = eqx.tree_at(lambda m: m.out.weight, small_model(), replace_fn=lambda w: 1e4 * w)
    assert np.isfinite(loss_of(model, *on_device(sequences(4, 5)), 0.0, jr.key(0)))


def test_the_loss_depends_on_dropout_and_on_its_key():
    model, batch = small_model(), on_device(sequences(4, 5))

    def loss(dropout, seed):
        return float(loss_of(model, *batch, dropout, jr.key(seed)))

    assert loss(0.5, 0) == loss(0.5, 0)
    assert loss(0.0, 0) == loss(0.0, 1)
    assert len({loss(0.0, 0), loss(0.5, 0), loss(0.5, 1)}) == 3


def test_a_step_is_one_adamw_update_for_each_batch_in_order():
    batches, key = [sequences(4, 3), sequences(4, 3, seed=1)], jr.key(5)
    optimizer = optax.adamw(1e-3, weight_decay=0.01)

    @eqx.filter_jit
    def update(model, moments, batch, batch_key):
        gradients = eqx.filter_grad(mean_cross_entropy)(model, *batch, 0.1, batch_key)
        updates, moments = optimizer.update(gradients, moments, model)
        return eqx.apply_updates(model, updates), moments

    expected, moments = small_model(), optimizer.init(eqx.filter(small_model(), eqx.is_array))
    start = TrainState(small_model(), optimizer.init(eqx.filter(small_model(), eqx.is_array)))
    for batch, batch_key in zip(batches, jr.split(key, 2), strict=True):
        expected, moments = update(expected, moments, on_device(batch), batch_key)
    state, _ = train_step(start, batches, jr.clone(key), optimizer, 0.1)
    for ours, plain in zip(
        jax.tree.leaves(state.model),
        jax.tree.leaves(eqx.filter(expected, eqx.is_array)),
        strict=True,
    ):
        # Adam divides by the gradient's own size, so tiny gradients turn rounding into 1e-4.
        assert relative_error(ours, plain) < 1e-4


def test_split_and_orders_draw_from_streams_of_their_own():
    # NumPy pads short seeds with zeros, so a tag of 0 would repeat the stream without a tag.
    seeds = [[], [SPLIT], [ORDER, 0], [SHORT_ORDER, 0]]
    draws = {np.random.default_rng([2345, 5, *seed]).random() for seed in seeds}
    assert len(draws) == len(seeds)


def test_a_run_that_diverges_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "experiments.lcde_training.train_step", lambda state, *_: (state, jnp.float32(np.nan))
    )
    order = (sequences(20, 4), DataOrder(20, 4, (0,)))
    training = Training(
        small_model(), [order], optax.adamw(1e-3), 0.1, lambda model: 0.0, (), jr.key(0)
    )
    schedule = Schedule(max_steps=5, eval_interval=5, checkpoint_interval=5)
    history, outcome = train(training, schedule, Checkpoints(tmp_path, {}), "accuracy")
    assert outcome.startswith("diverged: the loss was nan")
    assert history.steps == [0]


def test_checkpoints_name_parameters_and_moments_by_their_place():
    training = Training(small_model(), [], optax.adamw(1e-3), 0.1, lambda model: 0.0, (), jr.key(0))
    names = training.arrays().keys()
    assert {"model.embedding", "model.out.weight"} <= names
    assert {"moments.0.mu.embedding", "moments.0.nu.out.weight"} <= names
    assert len(names) == len(jax.tree.leaves(eqx.filter(training.state, eqx.is_array)))


TINY = {
    "hidden_dim": WIDTH,
    "samples": 2000,
    "stop_accuracy": 1.0,
    "max_steps": 400,
    "eval_interval": 100,
    "checkpoint_interval": 20,
}


def tiny_run(data_dir, results_dir, **changes):
    words = ["-m", "LCDE", "-e", "A5", "-l", "4"]
    words += ["-c", str(CONFIG_FOLDER / "quick_lcde_a5.yaml")]
    words += ["--data-dir", str(data_dir), "--results-dir", str(results_dir)]
    for key, value in {**TINY, **changes}.items():
        words += ["--set", f"{key}={value}"]
    return words


def file_digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def results_of(folder):
    steps = np.load(folder / "outputs_A5" / "linear_cde_length_4_steps.npy")
    accuracies = np.load(folder / "outputs_A5" / "linear_cde_length_4_val_accs.npy")
    record = json.loads((folder / "outputs_A5" / "linear_cde_length_4_steps.json").read_text())
    return steps, accuracies, record


def same_state(one, other):
    """Whether two checkpoints hold the same bits: all but how long it took."""
    with np.load(one) as a, np.load(other) as b:
        names = set(a.files) - {"state.json"}
        return names == set(b.files) - {"state.json"} and all(
            a[name].tobytes() == b[name].tobytes() for name in names
        )


@pytest.mark.processes
def test_killed_runs_resume_to_the_bits_of_an_undisturbed_run(tmp_path, killed_at_step):
    assert main(tiny_run(tmp_path, tmp_path / "whole")) == 0
    killed = tmp_path / "killed"
    killed_at_step(251, tiny_run(tmp_path, killed))  # some steps after a checkpoint
    assert results_of(killed)[2]["outcome"] == "unfinished"
    assert main(tiny_run(tmp_path, killed)) == 0
    steps, accuracies, record = results_of(tmp_path / "whole")
    again = results_of(killed)
    assert np.array_equal(steps, [0, 100, 200, 300, 400])
    assert np.array_equal(again[0], steps) and np.array_equal(again[1], accuracies)
    assert again[2]["history"]["train_loss"] == record["history"]["train_loss"]
    assert record["outcome"] == "not solved"
    data = {name: file_digest(tmp_path / "illusion" / name) for name in ("A5=4.csv", "A5=2.csv")}
    assert record["provenance"]["data"] == data
    kept = [next((folder / "checkpoints").glob("*/*")) for folder in (tmp_path / "whole", killed)]
    assert same_state(*kept)
