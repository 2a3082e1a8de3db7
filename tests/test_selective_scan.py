"""The selective scan computes its recurrence and the derivative of it, whatever computes it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="needs the PyTorch environment")

import torch

from kernels.selective_scan import _state_rows, _states_last, choose_backend, selective_scan
from scan_cases import (
    CASES,
    LOOPS,
    OPTIONS,
    draw,
    exact,
    largest_relative_difference,
    scan_with_gradients,
    tensors_of,
)


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def recurrence(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """The definition, one number after another, in NumPy."""
    names = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "bias": delta_bias}
    v = {name: x if x is None else x.detach().numpy() for name, x in names.items()}
    y = np.empty(u.shape)
    for b, d in np.ndindex(*u.shape[:2]):
        x = np.zeros(A.shape[1])
        for t in range(u.shape[2]):
            step = v["delta"][b, d, t] + (0 if D is None else v["bias"][d])
            step = np.log1p(np.exp(step)) if delta_softplus else step
            B_t, C_t = (v[k][d] if v[k].ndim == 2 else v[k][b, :, t] for k in "BC")
            x = np.exp(step * v["A"][d]) * x + step * B_t * v["u"][b, d, t]
            y[b, d, t] = (2 if A.is_complex() else 1) * np.sum(C_t * x).real
            y[b, d, t] += 0 if D is None else v["D"][d] * v["u"][b, d, t]
            y[b, d, t] *= 1 if z is None else v["z"][b, d, t] / (1 + np.exp(-v["z"][b, d, t]))
    return y


# What is computed


@pytest.mark.parametrize("optional", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", LOOPS)
def test_the_scan_is_the_recurrence(backend, case, optional):
    arguments = draw(1, case, (2, 3, 5, 4), optional=optional)
    y = selective_scan(**arguments, backend=backend)
    np.testing.assert_allclose(y.numpy(), recurrence(**arguments), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", LOOPS)
def test_one_state_with_constant_input_is_a_geometric_series(backend):
    ones = torch.ones(1, 1, 50, dtype=torch.float64)
    one = ones[0, :, :1]
    y = selective_scan(ones, 0.1 * ones, -one, one, one, backend=backend)
    ratio = np.exp(-0.1)
    expected = 0.1 * (1 - ratio ** np.arange(1, 51)) / (1 - ratio)
    np.testing.assert_allclose(y[0, 0].numpy(), expected, rtol=1e-13)


@pytest.mark.parametrize("case", ["S4", "real, constant"])
@pytest.mark.parametrize("backend", LOOPS)
def test_a_time_invariant_scan_is_a_causal_convolution(backend, case):
    arguments = draw(2, case, (2, 3, 20, 4), optional=False)
    arguments["delta"] = arguments["delta"][:1, :, :1].expand(2, 3, 20)
    A, B, C = (arguments[name].numpy() for name in "ABC")
    step = arguments["delta"][0, :, :1].numpy()
    factor = 2 if case == "S4" else 1
    powers = np.exp((step * A)[..., None] * np.arange(20))
    kernel = factor * np.einsum("dn,dnl->dl", C * B * step, powers).real
    y = selective_scan(**arguments, backend=backend)
    for b, d in np.ndindex(2, 3):
        expected = np.convolve(arguments["u"][b, d].numpy(), kernel[d])[:20]
        np.testing.assert_allclose(y[b, d].numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", LOOPS)
def test_the_future_changes_nothing_before_it(backend):
    arguments = draw(3, "Mamba", (2, 3, 9, 4), torch.float32)
    later = {name: arguments[name].clone() for name in ("u", "delta", "B", "C", "z")}
    for x in later.values():
        x[..., 5:] += 1
    before, after = (selective_scan(**{**arguments, **x}, backend=backend) for x in ({}, later))
    assert torch.equal(before[..., :5], after[..., :5])
    assert (before[..., 5:] != after[..., 5:]).all()


@pytest.mark.parametrize("optional", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", LOOPS)
def test_gradients_are_those_of_finite_differences(backend, case, optional):
    arguments = draw(4, case, (2, 2, 3, 2), optional=optional, requires_grad=True)
    names = list(tensors_of(arguments))

    def scan(*tensors):
        given = dict(zip(names, tensors, strict=True))
        return selective_scan(**{**arguments, **given}, backend=backend)

    assert torch.autograd.gradcheck(scan, [arguments[name] for name in names])


# The C++ against the reference


@settings(max_examples=25)
@given(
    shape=st.tuples(*(st.integers(1, most) for most in (3, 5, 9, 40))),
    case=st.sampled_from(list(CASES)),
    optional=st.booleans(),
    seed=st.integers(0, 99),
)
def test_backends_agree_at_any_size(shape, case, optional, seed):
    arguments = draw(seed, case, shape, optional=optional)
    ours, reference = (scan_with_gradients(arguments, backend) for backend in LOOPS)
    assert largest_relative_difference(ours, reference) < 1e-11


@pytest.mark.parametrize("states", [1, 15, 16, 17, 32, 33, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_need_not_fill_vectors(dtype, states):
    arguments = draw(16, "Mamba", (2, 2, 3, states), dtype)
    ours, reference = (scan_with_gradients(arguments, backend) for backend in LOOPS)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]
    assert largest_relative_difference(ours, reference) < tolerance


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", LOOPS)
def test_float32_errs_by_a_few_roundings(backend, case):
    # One rounding is at most 6e-8 of a term. Gradients sum up to 7200 terms that partly cancel.
    arguments = draw(5, case, (2, 3, 60, 20), torch.float32)
    found = scan_with_gradients(arguments, backend)
    expected = scan_with_gradients(exact(arguments), "reference")
    assert found["y"].dtype == torch.float32
    assert largest_relative_difference({"y": found["y"]}, {"y": expected["y"]}) < 1e-6
    assert largest_relative_difference(found, expected) < 4e-6


def test_decay_is_the_exponential_over_its_whole_range():
    exponents = torch.cat([torch.linspace(-87, 88, 3001), -torch.logspace(-8, 0, 50)])
    A = exponents[:, None]
    u = torch.tensor([1.0, 0.0]).expand(1, len(A), 2)
    ones = torch.ones_like(A)
    y = selective_scan(u, torch.ones_like(u), A, ones, ones, backend="cpp")[0, :, 1]
    expected = exponents.double().exp()
    # Half a unit in the last place of the exponent, and 2e-7 of the polynomial and its rounding.
    assert ((y / expected - 1).abs() < 2e-7 + 1.2e-7 * exponents.abs()).all()


@pytest.mark.parametrize("backend", LOOPS)
def test_decay_overflows_underflows_and_passes_nan_on(backend):
    A = torch.tensor([[200.0], [-200.0], [float("nan")], [-float("inf")]])
    u, delta = (torch.tensor(x).expand(1, 4, 2) for x in ([1.0, 0.0], [0.1, 1.0]))
    ones = torch.ones_like(A)
    y = selective_scan(u, delta, A, ones, ones, backend=backend)[0, :, 1]
    expected = torch.tensor([float("inf"), 0, float("nan"), 0])
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("case", ["Mamba", "S4"])
def test_strides_change_nothing(case):
    arguments = draw(6, case, (2, 3, 7, 5), torch.float32)
    del arguments["z"]  # PyTorch's own silu rounds differently where numbers are apart
    strided = dict(arguments)
    for name, x in tensors_of(arguments).items():
        spread = torch.stack([x, x + 1], dim=-1)[..., 0]
        strided[name] = spread.mT.contiguous().mT if x.ndim > 1 else spread
        assert not strided[name].is_contiguous()
    found, expected = (scan_with_gradients(x, "cpp") for x in (strided, arguments))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_conjugate_views_are_read_as_what_they_stand_for():
    arguments = draw(7, "S4", (2, 3, 4, 5))
    lazy = {name: arguments[name].conj().resolve_conj().conj() for name in ("B", "C")}
    assert lazy["B"].is_conj()
    both = (selective_scan(**x, backend="cpp") for x in (arguments, {**arguments, **lazy}))
    assert torch.equal(*both)


def test_a_second_derivative_of_the_cpp_is_refused():
    arguments = draw(15, "Mamba", (1, 2, 3, 4), requires_grad=True)
    y = selective_scan(**arguments, backend="cpp")
    (slope,) = torch.autograd.grad(y.sum(), arguments["u"], create_graph=True)
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        slope.square().sum().backward()


@pytest.mark.parametrize("name", ["u", "A", "D"])
def test_a_forward_derivative_is_right_or_refused(name):
    arguments = draw(15, "Mamba", (1, 2, 3, 4))
    x = arguments[name]
    direction = torch.ones_like(x)

    def scan(x, backend="cpp"):
        return selective_scan(**{**arguments, name: x}, backend=backend)

    _, found = torch.func.jvp(lambda x: scan(x, "reference"), (x,), (direction,))
    jacobian = torch.autograd.functional.jacobian(scan, x)
    torch.testing.assert_close(found, jacobian.flatten(3).sum(3))
    with pytest.raises(NotImplementedError, match="backend='reference'"):
        torch.func.jvp(scan, (x,), (direction,))


# Threads


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("case", ["Mamba", "S4"])
def test_the_same_threads_give_the_same_bits(case, batch):
    arguments = draw(8, case, (batch, 37, 12, 20), torch.float32)
    first, *others = (scan_with_gradients(arguments, "cpp") for _ in range(5))
    assert all(torch.equal(other[name], first[name]) for other in others for name in first)


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("case", ["Mamba", "S4"])
def test_the_number_of_threads_changes_rounding_only(case, batch):
    arguments = draw(9, case, (batch, 5, 6, 20))
    results = {}
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        results[threads] = scan_with_gradients(arguments, "cpp")
    torch.set_num_threads(2)
    assert torch.equal(results[1]["y"], results[2]["y"])
    assert largest_relative_difference(results[2], results[1]) < 1e-12
    assert largest_relative_difference(results[7], results[1]) < 1e-12


# PyTorch's own checks


def operator_arguments(case) -> tuple:
    given = draw(10, case, (2, 3, 4, 5), requires_grad=True)
    initial = torch.ones(2, 3, 5, dtype=given["A"].dtype)
    states = given["A"], _states_last(given["B"]), _states_last(given["C"]), initial
    *rows, initial = (_state_rows(x, 16).detach().requires_grad_() for x in states)
    return given["u"], given["delta"], *rows, given["D"], given["delta_bias"], initial, True


@pytest.mark.parametrize("case", ["Mamba", "S4"])
def test_the_operators_pass_the_checks_of_pytorch(case):
    choose_backend("cpu", "cpp")
    arguments = operator_arguments(case)
    torch.library.opcheck(torch.ops.selective_scan.scan.default, arguments)
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    backward = (torch.ones_like(detached[0]), torch.ones_like(detached[-2]), *detached)
    torch.library.opcheck(torch.ops.selective_scan.scan_backward.default, backward)


@pytest.mark.parametrize("case", ["Mamba", "S4"])
def test_a_compiled_model_computes_the_same(case):
    # aot_eager traces forward and backward as inductor does, without compiling C++ of its own.
    arguments = draw(11, case, (2, 3, 4, 5))
    expected = scan_with_gradients(arguments, "cpp")
    torch._dynamo.reset()
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    found = scan_with_gradients(arguments, "cpp", compiled)
    assert largest_relative_difference(found, expected) < 1e-13


# Arguments


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("u", torch.zeros(2, 3), r"u: expected shape \(b, d, l\).*found \(2, 3\)"),
        ("u", torch.zeros(2, 3, 4, dtype=torch.int32), "u: expected torch.float32 or"),
        ("u", torch.zeros(2, 3, 4).double(), "u: expected torch.float32 or .*found torch.float64"),
        ("u", torch.zeros(2, 3, 0), "u: expected .* none of them 0"),
        ("delta", torch.zeros(2, 3, 5), r"delta: .*\(2, 3, 4\), found \(2, 3, 5\)"),
        ("delta", torch.zeros(2, 3, 4).double(), "delta: .*torch.bfloat16, found torch.float64"),
        ("A", torch.zeros(3), r"A: expected shape \(d, n\)"),
        ("A", torch.zeros(4, 5), r"A: .*\(3, 5\), found \(4, 5\)"),
        ("A", torch.zeros(3, 5).half(), "A: expected float32 or float64, real or complex, found"),
        ("A", torch.zeros(3, 5).cfloat(), "B: expected torch.complex64, found torch.float32"),
        ("B", torch.zeros(2, 4, 5), r"B: .*\(3, 5\) or \(b, n, l\) = \(2, 5, 4\) or .*found"),
        ("B", torch.zeros(2, 2, 5, 4), r"B: .*, where g divides d, found \(2, 2, 5, 4\)"),
        ("B", torch.zeros(2, 5, 4).double(), "B: .*torch.bfloat16, found torch.float64"),
        ("C", torch.zeros(5, 3), r"C: .*found \(5, 3\)"),
        ("D", torch.zeros(4), r"D: .*\(3,\), found \(4,\)"),
        ("z", torch.zeros(2, 4, 3), r"z: .*found \(2, 4, 3\)"),
        ("delta_bias", torch.zeros(3).double(), "delta_bias: expected torch.float32"),
        ("initial_state", torch.zeros(2, 3, 4), r"initial_state: .*\(2, 3, 5\), found"),
        ("initial_state", torch.zeros(2, 3, 5).half(), "initial_state: expected torch.float32,"),
        ("C", torch.zeros(2, 5, 4, device="meta"), "C: expected on cpu, as u, found on meta"),
    ],
)
def test_wrong_arguments_are_named(name, wrong, message):
    arguments = draw(13, "Mamba", (2, 3, 4, 5), torch.float32)
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**arguments, name: wrong})
