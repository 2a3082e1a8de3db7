"""Features by shared flows are the features path by path, wherever sharing is chosen."""

import re
from functools import partial
from threading import Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

pytest.importorskip("jax", reason="the Linear CDE needs JAX")

from kernels import shared_flows
from kernels.shared_flows import (
    Flows,
    compose_by_block,
    compose_by_group,
    find_shared_increments,
    in_panels,
)

H = 16


@pytest.fixture
def composition(rng):
    """Random flows of 9 increments, and 200 paths of 20 intervals through them."""
    flows = Flows(
        rng.normal(size=(9, H, H)).astype(np.float32) / 40,
        rng.normal(size=(9, H)).astype(np.float32),
    )
    ids = rng.integers(0, 9, (200, 20)).astype(np.int32)
    start = rng.normal(size=(200, H)).astype(np.float32)
    return flows, start, ids


def compose_in_float64(flows: Flows, start: np.ndarray, ids: np.ndarray) -> np.ndarray:
    states = start.astype(np.float64)
    for taken in ids.T:
        moved = np.einsum("nh,nhk->nk", states, flows.movements[taken].astype(np.float64))
        states = states + moved + flows.offsets[taken]
    return states


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


def scaled_walks(steps: np.ndarray, scale: int) -> np.ndarray:
    return (np.cumsum(steps, axis=1) / scale).astype(np.float32)


def times(length: int) -> np.ndarray:
    return np.linspace(0, 1, length, dtype=np.float32)


# Features


# Every pair of a solver, a dimension and a size of blocks.
@pytest.mark.parametrize(
    ("solver", "input_dim", "block_size"),
    [
        ("tsit5", 2, None),
        ("tsit5", 2, 1),
        ("tsit5", 3, 4),
        ("scan", 3, None),
        ("scan", 3, 1),
        ("scan", 2, 4),
    ],
)
def test_shared_flows_give_the_features_of_path_by_path(
    jax, toy_config, lattice_walks, solver, input_dim, block_size
):
    from experiments.lcde_toy import choose_sharing, features_of, solver_of
    from linear_cde import LinearCDE

    config = toy_config(solver=solver, hidden_dim=H)
    paths = lattice_walks(200, 20, input_dim)
    model = LinearCDE(H, input_dim, key=jax.random.PRNGKey(1), block_size=block_size)
    shared, _ = choose_sharing(config, paths)
    assert len(shared.values) == 3**input_dim
    solve = solver_of(config)
    one_by_one, together = (
        features_of(model, paths, increments, config, solve) for increments in (None, shared)
    )
    assert together.shape == (200, H) and together.dtype == np.float32
    assert relative_difference(together, one_by_one) < 1e-5


def test_path_by_path_features_do_not_depend_on_the_batch_size(jax, toy_config, lattice_walks):
    from experiments.lcde_toy import features_of, solver_of
    from linear_cde import LinearCDE

    paths = lattice_walks(50, 5, 2)
    model = LinearCDE(H, 2, key=jax.random.PRNGKey(1))
    whole, in_parts = (
        features_of(model, paths, None, config, solver_of(config))
        for config in (toy_config(solver="scan"), toy_config(solver="scan", batch_size=15))
    )
    assert relative_difference(in_parts, whole) < 1e-6


# Composition


def test_composing_by_group_is_composing_one_by_one(composition):
    composed = compose_by_group(*composition, batch_size=64, threads=2)
    assert composed.dtype == np.float32
    assert relative_difference(composed, compose_in_float64(*composition)) < 1e-5


@pytest.fixture(params=[1, 2, 8])
def block_composition(request, composition):
    """The same with flows of blocks of a size, and those flows with zeros around the blocks."""
    k, (flows, start, ids) = request.param, composition
    dense = flows.movements * np.kron(np.eye(H // k, dtype=np.float32), np.ones((k, k), np.float32))
    blocks = np.stack([dense[:, g : g + k, g : g + k] for g in range(0, H, k)], axis=1)
    return Flows(blocks, flows.offsets), Flows(dense, flows.offsets), start, ids


def test_composing_blocks_is_composing_the_dense_flows(jax, block_composition):
    flows, dense, start, ids = block_composition
    expected = compose_in_float64(dense, start, ids)
    panels = Flows(in_panels(flows.movements), flows.offsets)
    for joined in (flows, panels):
        composed = compose_by_group(joined, start, ids, batch_size=64, threads=2)
        assert relative_difference(composed, expected) < 1e-5
        composed = compose_by_block(joined, start, ids, batch_size=64)
        assert relative_difference(composed, expected) < 1e-5


@pytest.mark.parametrize(("count", "k", "shape"), [(16, 1, (2, 8)), (5, 2, (5, 2)), (2, 9, (2, 9))])
def test_small_blocks_are_joined_as_far_as_they_divide(rng, count, k, shape):
    panels = in_panels(rng.normal(size=(3, count, k, k)))
    assert panels.shape == (3, *shape, shape[1])


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_composing_by_block_is_composing_one_by_one(jax, composition, batch_size):
    composed = compose_by_block(*composition, batch_size=batch_size)
    assert composed.dtype == np.float32
    assert relative_difference(composed, compose_in_float64(*composition)) < 1e-5


def test_composing_by_block_takes_any_division_into_flows(jax, rng, composition):
    flows, start, ids = composition
    ids = np.zeros_like(ids)  # one flow for all, then two that fill blocks to the last row
    ids[:, 1], ids[: 3 * shared_flows.BLOCK, 2] = 8, 5
    composed = compose_by_block(flows, start, ids, batch_size=200)
    assert relative_difference(composed, compose_in_float64(flows, start, ids)) < 1e-5


def test_composing_by_block_holds_no_flow_for_each_path(jax, composition):
    flows, start, ids = composition
    start, ids = np.tile(start, (10, 1)), np.tile(ids, (10, 1))
    program = jax.make_jaxpr(shared_flows._carry)(flows.movements, flows.offsets, start, ids)
    shapes = re.findall(r"f32\[([0-9,]+)\]", str(program))
    largest = max(np.prod([int(n) for n in shape.split(",")]) for shape in shapes)
    assert largest <= (len(start) // shared_flows.BLOCK + len(flows.offsets)) * max(
        H * H, H * shared_flows.BLOCK
    )
    assert largest < len(start) * H * H / 4


@pytest.mark.parametrize("batch_size", [1, 7, 200, 1000])
def test_the_batch_size_changes_rounding_only(composition, batch_size):
    composed = compose_by_group(*composition, batch_size=batch_size, threads=2)
    reference = compose_by_group(*composition, batch_size=64, threads=2)
    assert relative_difference(composed, reference) < 1e-6


def test_the_number_of_threads_changes_no_bit(composition):
    composed = [compose_by_group(*composition, batch_size=16, threads=n) for n in (1, 3)]
    assert np.array_equal(*composed)


def test_composition_leaves_its_inputs_alone(composition):
    flows, start, ids = composition
    before = [x.copy() for x in (flows.movements, flows.offsets, start, ids)]
    compose_by_group(flows, start, ids, batch_size=64, threads=2)
    after = flows.movements, flows.offsets, start, ids
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("compose", [partial(compose_by_group, threads=2), compose_by_block])
def test_progress_counts_every_interval_once(jax, composition, compose):
    advanced = []
    compose(*composition, batch_size=64, advance=advanced.append)
    assert sum(advanced) == composition[2].size


@pytest.mark.processes
def test_an_interrupt_ends_the_other_threads(composition, monkeypatch):
    stop, advanced = Event(), []
    monkeypatch.setattr(shared_flows, "Event", lambda: stop)

    def advance(intervals: int) -> None:
        if intervals == 120:
            raise KeyboardInterrupt
        advanced.append(intervals)
        stop.wait()

    with pytest.raises(KeyboardInterrupt):
        compose_by_group(*composition, 120, 2, advance)
    assert len(advanced) <= 1  # of 20; none if it had not begun


def test_a_thread_for_each_batch_leaves_blas_one(composition):
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    before, during = threads(), []
    compose_by_group(*composition, 200, 2, lambda _: during.extend(threads()))
    assert set(during) == {1}
    assert threads() == before


# Finding increments


@pytest.mark.parametrize("input_dim", [2, 3])
def test_integer_increments_are_recovered_from_scaled_walks(rng, input_dim):
    steps = np.rint(rng.normal(size=(2000, 30, input_dim))).astype(int)
    walks = scaled_walks(steps, 51)
    shared, reason = find_shared_increments(times(30), walks, H)
    taken = steps[:, 1:].reshape(-1, input_dim)
    distinct = len(np.unique(taken, axis=0))
    assert shared.values.shape == (distinct, input_dim + 1)
    assert reason == f"{distinct} distinct increments in 58,000 intervals"
    assert shared.values.dtype == np.float32 and shared.ids.dtype == np.int32
    np.testing.assert_allclose(shared.values[:, 0], 1 / 29, atol=1e-8)
    found = shared.values[shared.ids][..., 1:].reshape(-1, input_dim)
    np.testing.assert_allclose(found, taken / 51, atol=1e-8)


@given(
    steps=st.lists(st.lists(st.integers(-6, 6), min_size=8, max_size=8), min_size=4, max_size=12),
    columns=st.sampled_from([1, 2, 4]),
    scale=st.integers(48, 2000),
    hidden_dim=st.integers(1, 6),
)
def test_increments_are_shared_exactly_when_the_rule_says_it_pays(
    steps, columns, scale, hidden_dim
):
    steps = np.array(steps).reshape(len(steps), -1, columns)
    num_paths, length, _ = steps.shape
    taken = steps[:, 1:].reshape(-1, columns)
    distinct, ids = np.unique(taken, axis=0, return_inverse=True)
    pays = len(distinct) * (hidden_dim + 1) <= num_paths * (length - 1) / 2
    shared, reason = find_shared_increments(times(length), scaled_walks(steps, scale), hidden_dim)
    assert (shared is not None) == pays
    if shared is None:
        assert "distinct" in reason
        return
    assert np.array_equal(np.rint(shared.values[:, 1:] * scale), distinct)
    assert np.array_equal(shared.ids.ravel(), ids.ravel())


@pytest.mark.parametrize("spread", [1, 1e-5], ids=["too many", "closer than rounding"])
def test_paths_that_do_not_repeat_increments_are_not_shared(rng, spread):
    paths = (1 + spread * rng.uniform(-1, 1, (50, 10, 2))).astype(np.float32)
    shared, reason = find_shared_increments(times(10), paths, hidden_dim=4)
    assert shared is None
    assert reason == "the increments do not repeat, or more than 45 are distinct"


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_paths_with_a_number_that_is_none_are_not_shared(lattice_walks, broken):
    walks = lattice_walks(200, 20, 2)
    walks[3, 4, 1] = broken
    with np.errstate(invalid="ignore"):
        assert find_shared_increments(times(20), walks, H)[0] is None


def test_flows_that_need_too_much_memory_are_not_shared(lattice_walks, monkeypatch):
    walks = lattice_walks(200, 20, 2)
    monkeypatch.setattr(shared_flows, "FLOW_MEMORY_LIMIT", 9 * 4 * H * (H + 1))
    assert find_shared_increments(times(20), walks, H)[0] is not None
    monkeypatch.setattr(shared_flows, "FLOW_MEMORY_LIMIT", 9 * 4 * H * (H + 1) - 1)
    shared, reason = find_shared_increments(times(20), walks, H)
    assert shared is None
    assert reason == "9 increments are distinct, at most 8 pay"


def test_paths_that_stand_still_have_one_increment():
    shared, _ = find_shared_increments(times(5), np.zeros((10, 5, 2), np.float32), 2)
    np.testing.assert_allclose(shared.values, [[0.25, 0, 0]])
    assert not shared.ids.any()


def walks_with_an_outlier(offset: float, share: float) -> np.ndarray:
    """Lattice walks over 32, of which a share is moved far from the others."""
    steps = np.random.default_rng(0).integers(-1, 2, (400, 50, 2))
    walks = np.cumsum(steps, axis=1).astype(np.float32) / 32
    walks[: max(1, int(share * len(walks)))] += np.float32(offset)
    return walks


# Offsets of which float32 still tells multiples of 1/32 apart: all increments stay exact.
@pytest.mark.parametrize("offset", [2e3, 2e5])
@pytest.mark.parametrize("share", [0, 0.6])
def test_paths_off_centre_do_not_spoil_the_others(offset, share):
    shared, reason = find_shared_increments(times(50), walks_with_an_outlier(offset, share), H)
    assert reason.startswith("9 distinct increments in 19,600 intervals")
    paths = walks_with_an_outlier(offset, share).astype(np.float64)
    assert np.allclose(shared.values[shared.ids][..., 1:], np.diff(paths, axis=1), atol=1e-7)


@given(scale=st.floats(1e-4, 1e4), offset=st.floats(0, 1e4))
def test_an_increment_is_put_to_a_value_that_its_path_could_have(scale, offset):
    walks = walks_with_an_outlier(offset, 0.1) * np.float32(scale)
    shared, _ = find_shared_increments(times(50), walks, H)
    if shared is not None:
        increments = np.diff(walks.astype(np.float64), axis=1)
        off = np.abs(shared.values[shared.ids][..., 1:] - increments)
        # float32's rounding at the path's size, or a millionth of its largest step.
        sizes = np.max(np.abs(walks), axis=1, keepdims=True)
        steps = np.max(np.abs(increments), axis=1, keepdims=True)
        assert np.all(off <= np.maximum(6e-7 * sizes, 2e-6 * steps))


def test_features_that_are_not_the_paths_own_are_refused(jax, toy_config, lattice_walks):
    from dataclasses import replace

    from experiments.lcde_toy import choose_sharing, features_of, solver_of
    from linear_cde import LinearCDE

    config, paths = toy_config(solver="scan", hidden_dim=H), lattice_walks(200, 20, 2)
    model = LinearCDE(H, 2, key=jax.random.PRNGKey(1))
    shared, _ = choose_sharing(config, paths)
    wrong = replace(shared, values=shared.values * np.float32(1.1))
    with pytest.raises(FloatingPointError, match="use share_flows: false"):
        features_of(model, paths, wrong, config, solver_of(config))
