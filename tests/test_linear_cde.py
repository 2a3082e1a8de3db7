"""The Linear CDE's parameters are the released runs', and its solvers solve its equation."""

import inspect
from functools import partial

import numpy as np
import pytest
from scipy.linalg import expm

jax = pytest.importorskip("jax", reason="the Linear CDE is written in JAX")
jnp = jax.numpy

import equinox as eqx  # noqa: E402
from jax.extend.core import jaxprs_in_params  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

from experiments.lcde_toy import model_key, sample_times, solver_of  # noqa: E402
from kernels.shared_flows import interval_flows  # noqa: E402
from linear_cde import (  # noqa: E402
    A5LinearCDE,
    LinearCDE,
    adaptive_cde_solve,
    apply_field,
    euler_scan,
    scan_cde_solve,
    solver_times,
    train_linear,
)

H, CONTROLS, POINTS = 5, 3, 30
PAPER = {"rtol": 1e-2, "atol": 1e-2, "dt0": 0.01}

# Compiled once for all tests and tolerances of a shape; traced, these are no floats, as the checked
# annotations have them.
compiled_solve = jax.jit(inspect.unwrap(adaptive_cde_solve), static_argnames="matmul_precision")
tight_solve = partial(compiled_solve, rtol=1e-10, atol=1e-10, dt0=0.01)


@pytest.fixture
def float64():
    """Let JAX compute in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def equation(rng):
    """Draw A, B and y0 of a small Linear CDE."""

    def draw(dtype=np.float64):
        shapes = (H, CONTROLS, H), (H, CONTROLS), (H,)
        A, B, y0 = (rng.normal(size=shape) for shape in shapes)
        return [jnp.asarray(x, dtype) for x in (A / np.sqrt(H), B, y0)]

    return draw


def exact_flow(A, B, y0, omega, xi) -> np.ndarray:
    """The solution along a piecewise linear control: a matrix exponential for each piece."""
    A, B, state = np.asarray(A), np.asarray(B), np.append(y0, 1)
    for d_omega, d_xi in zip(np.diff(omega, axis=0), np.diff(xi, axis=0), strict=True):
        generator = np.zeros((len(state), len(state)))
        generator[:-1, :-1] = np.einsum("hij,i->hj", A, d_omega)
        generator[:-1, -1] = B @ d_xi
        state = expm(generator) @ state
    return state[:-1]


def relative_error(found, expected) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# Parameters


def threefry_split(key: np.ndarray, num: int) -> np.ndarray:
    """`jax.random.split` in the layout before JAX 0.5: Threefry-2x32, 20 rounds, in NumPy."""
    key = [*key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)]
    left, right = np.split(np.arange(2 * num, dtype=np.uint32), 2)
    left, right = left + key[0], right + key[1]
    for block, rotations in enumerate([(13, 15, 26, 6), (17, 29, 16, 24)] * 2 + [(13, 15, 26, 6)]):
        for rotation in rotations:
            left = left + right
            right = left ^ (right << np.uint32(rotation) | right >> np.uint32(32 - rotation))
        left = left + key[(block + 1) % 3]
        right = right + key[(block + 2) % 3] + np.uint32(block + 1)
    return np.concatenate([left, right]).reshape(num, 2)


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("partitionable", [False, True])
def test_model_keys_are_the_released_chain_of_splits(partitionable, generator):
    key = np.array([0, 2345], np.uint32)
    for run in range(5):
        expected, _, key = threefry_split(key, 3)
        with jax.default_prng_impl(generator), jax.threefry_partitionable(partitionable):
            assert np.array_equal(model_key(2345, run), expected)


# Every pair of settings is together in one case.
@pytest.mark.parametrize(
    ("input_dim", "generator", "partitionable", "x64"),
    [
        (2, "threefry2x32", False, False),
        (2, "rbg", True, True),
        (3, "threefry2x32", True, True),
        (3, "rbg", False, True),
        (3, "rbg", True, False),
    ],
)
def test_parameters_are_the_released_draws_whatever_jax_defaults_to(
    input_dim, generator, partitionable, x64
):
    key = np.array([3, 4], np.uint32)
    keys = threefry_split(key, 4)
    with (
        jax.default_prng_impl(generator),
        jax.threefry_partitionable(partitionable),
        jax.enable_x64(x64),
    ):
        model = LinearCDE(16, input_dim, key=jnp.asarray(key))
    with jax.threefry_partitionable(False):
        shapes = (16, input_dim), (16,), (16, input_dim + 1, 16), (16, input_dim + 1)
        drawn = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
    drawn[2] = drawn[2] / 4
    found = model.init_matrix, model.init_bias, model.A, model.B
    assert all(np.array_equal(*pair) for pair in zip(found, drawn, strict=True))
    assert all(x.dtype == np.float32 for x in found)


def test_parameters_are_normal_with_the_papers_scales():
    model = LinearCDE(64, 3, key=jax.random.PRNGKey(0))
    for drawn in (model.init_matrix, model.init_bias, model.A * 8.0, model.B):
        count = drawn.size
        assert abs(np.mean(drawn)) < 4 / np.sqrt(count)
        assert abs(np.var(drawn) - 1) < 4 * np.sqrt(2 / count)


@pytest.mark.parametrize("k", [1, 4])
def test_blocks_are_drawn_with_the_scale_of_their_own_size(k):
    key = jax.random.PRNGKey(0)
    model = LinearCDE(64, 3, key=key, block_size=k)
    assert model.A.shape == (64 // k, k, 4, k) and model.A.dtype == np.float32
    drawn = model.A * k**0.5
    assert abs(np.mean(drawn)) < 4 / np.sqrt(drawn.size)
    assert abs(np.var(drawn) - 1) < 4 * np.sqrt(2 / drawn.size)
    dense = LinearCDE(64, 3, key=key)
    for name in ("init_matrix", "init_bias", "B"):
        assert np.array_equal(getattr(model, name), getattr(dense, name))
    with pytest.raises(ValueError, match="block_size 3 does not divide hidden_dim 64"):
        LinearCDE(64, 3, key=key, block_size=3)


def test_times_in_float64_take_a_float32_path_along(float64, rng):
    ts, path = jnp.linspace(0, 1, 5), jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
    model = LinearCDE(4, 2, key=jax.random.PRNGKey(0))
    with jax.numpy_dtype_promotion("standard"):
        found = model(ts, path, scan_cde_solve)
        expected = model(ts, path.astype(jnp.float64), scan_cde_solve)
    np.testing.assert_array_equal(found, expected)


def test_the_model_starts_at_its_first_point_and_is_driven_by_time_and_path(rng):
    model = LinearCDE(8, 2, key=jax.random.PRNGKey(0))
    path = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)
    ts = jnp.asarray(sample_times(np.zeros((1, 6, 2), np.float32)))
    np.testing.assert_allclose(ts, [0, 0.2, 0.4, 0.6, 0.8, 1], rtol=1e-6)
    seen = []

    def solve(*arguments):
        seen.extend(arguments)
        return arguments[2]

    start = model(ts, path, solve)
    expected = np.asarray(model.init_matrix) @ np.asarray(path[0]) + np.asarray(model.init_bias)
    np.testing.assert_allclose(start, expected, rtol=1e-6)
    assert seen[0] is model.A and seen[1] is model.B
    for control in seen[4:]:
        assert np.array_equal(control, np.column_stack([ts, path]))


# Block-diagonal fields


def zero_padded(blocks: np.ndarray) -> np.ndarray:
    """A block-diagonal A (G, k, omega, k) as a dense one (H, omega, H)."""
    count, k, controls, _ = blocks.shape
    A = np.zeros((count * k, controls, count * k), blocks.dtype)
    for g in range(count):
        A[g * k : (g + 1) * k, :, g * k : (g + 1) * k] = blocks[g]
    return A


@pytest.fixture
def block_model():
    """Make a Linear CDE of width 6 with blocks of a size."""
    return lambda size: LinearCDE(6, 2, key=jax.random.PRNGKey(5), block_size=size)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_the_field_of_blocks_is_the_dense_one_that_zeros_fill_up(block_model, rng, size, precision):
    A = block_model(size).A
    y, control = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in (6, CONTROLS))
    dense = apply_field(jnp.asarray(zero_padded(np.asarray(A))), y, control, precision)
    assert relative_error(apply_field(A, y, control, precision), dense) < 1e-6


@pytest.mark.parametrize("solve", [scan_cde_solve, partial(adaptive_cde_solve, **PAPER)])
def test_solvers_move_blocks_as_the_dense_fields_that_zeros_fill_up(block_model, rng, solve):
    blocks = block_model(2)
    dense = eqx.tree_at(lambda m: m.A, blocks, jnp.asarray(zero_padded(np.asarray(blocks.A))))
    ts = jnp.linspace(0, 1, 7)
    path = jnp.asarray(rng.normal(size=(7, 2)), jnp.float32)
    found, expected = (model(ts, path, solve) for model in (blocks, dense))
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("size", [1, 3])
def test_flows_of_blocks_are_the_matrix_exponentials_of_the_dense_fields(block_model, rng, size):
    model = block_model(size)
    increments = rng.normal(size=(3, CONTROLS)).astype(np.float32) / 4
    ts = np.array([0, 0.25], np.float32)
    solve = partial(adaptive_cde_solve, rtol=1e-6, atol=1e-6, dt0=0.01)
    flows = interval_flows(model.A, model.B, ts, increments, solve)
    states = rng.normal(size=(4, 6)).astype(np.float32)
    A, B = zero_padded(np.asarray(model.A)), np.asarray(model.B)
    for i, increment in enumerate(increments):
        moved = np.empty_like(states)
        flows.move(i, states, moved)
        control = np.stack([0 * increment, increment])
        for state, found in zip(states, moved, strict=True):
            exact = exact_flow(A, B, state, control, control)
            assert relative_error(found, exact) < 1e-5


def test_every_product_of_blocks_is_in_float32_on_a_gpu_too(block_model):
    ts, path = jnp.linspace(0, 1, 4), jnp.ones((4, 2), jnp.float32)
    for solve in (adaptive_cde_solve, scan_cde_solve):
        move = partial(block_model(2), solve=solve)
        assert products_without_full_precision(move, ts, path) == []


# The adaptive solver


def test_the_adaptive_solve_is_the_matrix_exponential_on_a_straight_path(float64, equation, rng):
    A, B, y0 = equation()
    ts = jnp.linspace(0, 2, 5)
    omega, xi = (jnp.outer(ts, rng.normal(size=CONTROLS)) for _ in range(2))
    solution = tight_solve(A, B, y0, ts, omega, xi)
    assert relative_error(solution, exact_flow(A, B, y0, omega, xi)) < 1e-8


def test_either_tolerance_bounds_the_error_of_the_adaptive_solve(float64, equation, rng):
    A, B, y0 = equation()
    ts = jnp.array([0.0, 1.0])
    control = jnp.outer(ts, 3 * rng.normal(size=CONTROLS))
    exact = exact_flow(A, B, y0, control, control)

    def error(rtol: float, atol: float) -> float:
        solution = compiled_solve(A, B, y0, ts, control, control, rtol=rtol, atol=atol, dt0=0.1)
        return relative_error(solution, exact)

    fine = error(1e-7, 1e-7)
    assert fine < 1e-5
    assert error(1e-7, 1e-2) > 100 * fine
    assert error(1e-2, 1e-7) > 100 * fine


def test_at_the_papers_tolerances_corners_of_the_path_cost_no_accuracy(equation, rng):
    A, B, y0 = equation(np.float32)
    steps = rng.integers(-3, 4, (POINTS, CONTROLS)) / 51
    control = jnp.asarray(np.cumsum(steps, axis=0), jnp.float32)
    ts = jnp.linspace(0, 1, POINTS)
    solution = compiled_solve(A, B, y0, ts, control, control, **PAPER)
    assert relative_error(solution, exact_flow(A, B, y0, control, control)) < 1e-5


def test_the_flow_over_two_intervals_is_the_composition_of_the_two(float64, equation, rng):
    A, B, y0 = equation()
    ts = jnp.linspace(0, 1, 9)
    omega, xi = (jnp.asarray(rng.normal(size=(9, CONTROLS))) for _ in range(2))
    middle = tight_solve(A, B, y0, ts[:5], omega[:5], xi[:5])
    end = tight_solve(A, B, middle, ts[4:], omega[4:], xi[4:])
    whole = tight_solve(A, B, y0, ts, omega, xi)
    assert relative_error(end, whole) < 1e-7


# The scan


def test_the_scan_is_the_papers_loop(float64, equation, rng):
    A, B, y = equation()
    omega, xi = (jnp.asarray(rng.normal(size=(11, CONTROLS))) for _ in range(2))
    states = euler_scan(A, B, y, omega, xi)
    expected = [np.asarray(y)]
    for i in range(1, 11):
        field = sum(A[:, c] @ expected[-1] * omega[i, c] for c in range(CONTROLS))
        expected.append(expected[-1] + (field + B @ xi[i]) / 11)
    np.testing.assert_allclose(states, np.stack(expected), rtol=1e-12)


def test_the_scan_has_order_one_towards_the_equation_its_values_drive(float64, equation, rng):
    A, B, y0 = equation()
    row = rng.normal(size=(1, CONTROLS))
    exact = exact_flow(A, B, y0, np.vstack([0 * row, row]), np.vstack([0 * row, row]))
    lengths = 2 ** np.arange(7, 11)
    errors = []
    for length in lengths:
        control = jnp.asarray(np.tile(row, (length, 1)))
        errors.append(relative_error(euler_scan(A, B, y0, control, control)[-1], exact))
    slope, _ = np.polyfit(np.log(1 / lengths), np.log(errors), 1)
    assert slope == pytest.approx(1, abs=0.05)


def test_the_euler_solve_is_one_euler_step_for_each_interval(float64, equation, rng):
    A, B, y0 = equation()
    omega, xi = (jnp.asarray(rng.normal(size=(11, CONTROLS))) for _ in range(2))
    expected = np.asarray(y0)
    for d_omega, d_xi in zip(np.diff(omega, axis=0), np.diff(xi, axis=0), strict=True):
        field = sum(A[:, c] @ expected * d_omega[c] for c in range(CONTROLS))
        expected = expected + field + B @ d_xi
    found = scan_cde_solve(A, B, y0, jnp.linspace(0, 1, 11), omega, xi)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_euler_solve_has_order_one_towards_the_linear_cde(float64, equation, rng):
    A, B, y0 = equation()
    directions = rng.normal(size=(2, CONTROLS))
    exact = exact_flow(A, B, y0, *(np.outer([0, 1], direction) for direction in directions))
    lengths = 2 ** np.arange(7, 11) + 1
    errors = []
    for length in lengths:
        ts = jnp.linspace(0, 1, length)
        omega, xi = (jnp.outer(ts, direction) for direction in directions)
        errors.append(relative_error(scan_cde_solve(A, B, y0, ts, omega, xi), exact))
    slope, _ = np.polyfit(np.log(1 / (lengths - 1)), np.log(errors), 1)
    assert slope == pytest.approx(1, abs=0.05)


def test_the_scan_is_linear_in_its_start_without_a_drift(float64, equation, rng):
    A, B, y0 = equation()
    omega = jnp.asarray(rng.normal(size=(12, CONTROLS)))

    def states(start):
        return euler_scan(A, 0 * B, start, omega, omega)

    combined = states(3.0 * y0 - 2.0 * y0[::-1])
    np.testing.assert_allclose(combined, 3.0 * states(y0) - 2.0 * states(y0[::-1]), rtol=1e-10)


def test_the_future_leaves_the_scans_past_alone(equation, rng):
    A, B, y0 = equation(np.float32)
    omega, xi = (rng.normal(size=(12, CONTROLS)).astype(np.float32) for _ in range(2))
    states = euler_scan(A, B, y0, jnp.asarray(omega), jnp.asarray(xi))
    for control in (omega, xi):
        control[7:] += 1
        changed = euler_scan(A, B, y0, jnp.asarray(omega), jnp.asarray(xi))
        assert np.array_equal(states[:7], changed[:7])
        assert not np.isclose(states[7:], changed[7:]).all(axis=1).any()
        states = changed


def test_the_gradients_of_the_scan_are_those_of_finite_differences(float64, equation, rng):
    omega, xi = (jnp.asarray(rng.normal(size=(8, CONTROLS))) for _ in range(2))
    check_grads(jax.jit(euler_scan), (*equation(), omega, xi), order=1, modes=["fwd", "rev"])


# Precision


def to_tf32(x: np.ndarray) -> np.ndarray:
    """Round float32 to 10 mantissa bits, ties to even, by its bits."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    tie_to_even = (bits >> 13) & 1
    return ((bits + 0xFFF + tie_to_even) & ~np.uint32(0x1FFF)).view(np.float32)


def test_tf32_rounds_the_matmul_inputs_to_ten_bits_and_nothing_else(equation, rng):
    A, _, y = equation(np.float32)
    y = y.at[0].set(1 + 3 * 2.0**-11).at[1].set(1 + 2.0**-11)  # two ties
    control = jnp.asarray(rng.normal(size=CONTROLS), jnp.float32)
    for apply in (apply_field, jax.jit(apply_field, static_argnames="matmul_precision")):
        rounded = apply(A, y, control, matmul_precision="tf32")
        expected = apply(jnp.asarray(to_tf32(A)), jnp.asarray(to_tf32(y)), control)
        assert np.array_equal(rounded, expected)
        error = relative_error(rounded, np.asarray(apply(A, y, control)))
        assert 1e-5 < error < 1e-3


@pytest.mark.parametrize("solve", [euler_scan, scan_cde_solve, compiled_solve])
def test_solvers_pass_the_precision_on(equation, rng, solve):
    A, B, y0 = equation(np.float32)
    control = jnp.asarray(0.2 * rng.normal(size=(POINTS, CONTROLS)), jnp.float32)
    times = () if solve is euler_scan else (jnp.linspace(0, 1, POINTS),)
    options = PAPER if solve is compiled_solve else {}
    full = solve(A, B, y0, *times, control, control, **options)
    rounded = solve(A, B, y0, *times, control, control, matmul_precision="tf32", **options)
    assert 1e-6 < relative_error(rounded, np.asarray(full)) < 1e-2


def test_another_precision_is_refused_without_checked_types_too(equation):
    A, _, y = equation(np.float32)
    with pytest.raises(ValueError, match=r"must be one of .'float32', 'tf32'., not 'TF32'"):
        inspect.unwrap(apply_field)(A, y, jnp.zeros(CONTROLS), "TF32")


def test_float32_is_asked_of_a_gpu_explicitly(equation):
    A, _, y = equation(np.float32)
    program = str(jax.make_jaxpr(apply_field)(A, y, jnp.zeros(CONTROLS)))
    assert program.count("dot_general") == 2 == program.count("precision=(Precision.HIGHEST")


def test_the_config_names_the_solver_and_its_settings(toy_config):
    adaptive = solver_of(toy_config(rtol=1e-3, atol=1e-4, dt0=0.5))
    assert adaptive.func is adaptive_cde_solve
    assert adaptive.keywords == {
        "rtol": 1e-3,
        "atol": 1e-4,
        "dt0": 0.5,
        "matmul_precision": "float32",
        "check_times": False,
    }
    config = toy_config(solver="scan", matmul_precision="tf32", share_flows=False)
    scan = solver_of(config)
    assert scan.func is scan_cde_solve
    assert scan.keywords == {"matmul_precision": "tf32", "check_times": False}


# Readout


def test_the_readout_is_least_squares_with_an_intercept_scored_on_the_rest(rng):
    features = (5 + rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4))).astype(np.float32)
    labels = (features @ rng.normal(size=4) + rng.normal(size=60) + 7).astype(np.float32)
    design = np.column_stack([np.ones(60), features.astype(np.float64)])
    weights = np.linalg.lstsq(design[:40], labels[:40].astype(np.float64), rcond=None)[0]
    expected = np.mean((design[40:] @ weights - labels[40:]) ** 2)
    assert train_linear(features, labels, 40) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 59])
def test_the_readout_refuses_features_that_are_not_finite(rng, row, broken):
    features = rng.normal(size=(60, 4)).astype(np.float32)
    features[row, 2] = broken
    with pytest.raises(FloatingPointError, match="not finite: its solve diverged"):
        train_linear(features, np.zeros(60, np.float32), 40)


@pytest.mark.parametrize("solve", [adaptive_cde_solve, scan_cde_solve])
@pytest.mark.parametrize("times", [[0, 0.2, 0.4, 0.4, 1], [0, 0.5, 0.2, 0.7, 1]])
def test_times_that_do_not_increase_are_never_solved(equation, solve, times):
    A, B, y0 = equation(np.float32)
    ts, control = jnp.asarray(times, jnp.float32), jnp.ones((5, CONTROLS), jnp.float32)
    with pytest.raises(ValueError, match="the times of a path must increase"):
        solve(A, B, y0, ts, control, control)
    with pytest.raises(Exception, match="the times of a path must increase"):
        jax.jit(solve)(A, B, y0, ts, control, control).block_until_ready()


CLOCKS = {"years": 2024 + np.arange(POINTS) / 365, "two at once": np.arange(POINTS) / (POINTS - 1)}
CLOCKS["two at once"][13] = CLOCKS["two at once"][12] + 1e-7
CLOCKS["uneven"] = np.sort(np.random.default_rng(1).uniform(size=POINTS))


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_path_is_solved_whatever_its_clock(equation, rng, clock):
    A, B, y0 = equation(np.float32)
    ts = jnp.asarray(CLOCKS[clock], jnp.float32)
    control = jnp.asarray(np.cumsum(0.2 * rng.normal(size=(POINTS, CONTROLS)), axis=0), jnp.float32)
    found = compiled_solve(A, B, y0, ts, control, control, rtol=1e-6, atol=1e-6, dt0=0.01)
    # Of even intervals of 1/29 at times near 1, 2 units in the last place are 7e-6.
    assert relative_error(found, exact_flow(A, B, y0, control, control)) < 2e-5


def test_whole_numbers_are_times_too():
    counted, times = solver_times(jnp.arange(3, 8)), solver_times(jnp.arange(3.0, 8.0))
    assert counted.dtype == times.dtype and np.array_equal(counted, times)


def test_the_number_of_points_does_not_limit_the_adaptive_solver(equation):
    A, B, y0 = equation(np.float32)
    points = 4200  # one step each is more than diffrax's own limit
    ts = jnp.linspace(0, 1, points)
    control = jnp.column_stack([ts, ts**2, jnp.sin(ts)])
    fine = jax.jit(adaptive_cde_solve)(A, B, y0, ts, control, control)
    coarse = jax.jit(adaptive_cde_solve)(A, B, y0, ts[::323], control[::323], control[::323])
    # The coarse control is within 1e-4 of the fine one; the tolerance of both solves is 1e-2.
    assert relative_error(coarse, fine) < 1e-2


def products_without_full_precision(function, *arguments) -> list:
    """The matrix products of a program that a GPU may compute in TF32."""

    def products(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield equation
            for inner in jaxprs_in_params(equation.params):
                yield from products(inner)

    highest = jax.lax.Precision.HIGHEST
    found = list(products(jax.make_jaxpr(function)(*arguments).jaxpr))
    assert found
    return [e for e in found if e.params["precision"] not in (highest, (highest, highest))]


def test_every_product_of_the_solvers_is_in_float32_on_a_gpu_too(equation):
    A, B, y0 = equation(np.float32)
    ts, control = jnp.linspace(0, 1, 4), jnp.ones((4, CONTROLS), jnp.float32)
    for solve in (adaptive_cde_solve, scan_cde_solve):
        assert products_without_full_precision(solve, A, B, y0, ts, control, control) == []


def test_every_product_of_training_on_words_is_in_float32_on_a_gpu_too():
    from experiments.lcde_training import mean_cross_entropy

    model = A5LinearCDE(7, 8, key=jax.random.key(0))
    tokens = jnp.zeros((3, 5), jnp.uint8)

    def loss(embedding):
        moved = eqx.tree_at(lambda m: m.embedding, model, embedding)
        return mean_cross_entropy(moved, tokens, tokens, 0.1, jax.random.key(1))

    def plain(tokens):
        return model(tokens)

    with jax.numpy_rank_promotion("allow"):
        assert products_without_full_precision(jax.grad(loss), model.embedding) == []
        assert products_without_full_precision(plain, tokens) == []
