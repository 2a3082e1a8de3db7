"""Every backend of the selective scan computes its recurrence and the derivative of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiment_results import ROOT, UnavailableError

torch = pytest.importorskip("torch", reason="needs the PyTorch environment")
build = pytest.importorskip("csrc.build")
module = pytest.importorskip("selective_scan")
choose_backend, selective_scan = module.choose_backend, module.selective_scan

LOOPS = ["cpp", "reference"]
# What A is, and whether B and C follow the input.
CASES = {
    "Mamba": ("real", True, True),
    "S4": ("complex", False, False),
    "real, constant": ("real", False, False),
    "real, mixed": ("real", True, False),
    "complex, following": ("complex", True, True),
}
OPTIONS = {"all options": True, "no options": False}


@pytest.fixture(scope="module", autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def draw(seed, case, shape, dtype=torch.float64, optional=True, requires_grad=False) -> dict:
    """Arguments as a model has them: A negative, steps of order one."""
    kind, B_follows, C_follows = CASES[case]
    batch, channels, length, states = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes, complex_too=False):
        parts = [torch.randn(sizes, generator=generator, dtype=torch.float64) for _ in range(2)]
        return torch.complex(*parts) if complex_too else parts[0]

    number = {"complex_too": kind == "complex"}
    rows = {False: (channels, states), True: (batch, states, length)}
    A = normal(channels, states, **number)
    A = torch.complex(-A.real.abs(), A.imag) if kind == "complex" else -A.abs()
    arguments = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": A,
        "B": normal(*rows[B_follows], **number),
        "C": normal(*rows[C_follows], **number),
    }
    if optional:
        arguments |= {"D": normal(channels), "delta_bias": normal(channels)}
        arguments |= {"z": normal(batch, channels, length)}
    else:
        arguments["delta"] = arguments["delta"].abs()
    cast = {torch.float64: torch.complex128, torch.float32: torch.complex64}[dtype]
    tensors = {
        name: x.to(cast if x.is_complex() else dtype).requires_grad_(requires_grad)
        for name, x in arguments.items()
    }
    return {**tensors, "delta_softplus": optional}


def tensors_of(arguments) -> dict:
    return {name: x for name, x in arguments.items() if isinstance(x, torch.Tensor)}


def scan_with_gradients(arguments, backend) -> dict:
    """The output, and the gradient of a fixed mixture of it with respect to every tensor."""
    leaves = {name: x.detach() for name, x in tensors_of(arguments).items()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    y = selective_scan(**{**arguments, **leaves}, backend=backend)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (y * weights.to(y.dtype)).sum().backward()
    return {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def largest_relative_difference(found: dict, expected: dict) -> float:
    assert found.keys() == expected.keys()
    wide = {name: x.to(expected[name].dtype) for name, x in found.items()}
    return max(float((wide[k] - x).abs().max() / x.abs().max()) for k, x in expected.items())


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
    wide = {"float": torch.float64, "complex": torch.complex128}
    exact = {
        name: x.to(wide["complex" if x.is_complex() else "float"])
        for name, x in tensors_of(arguments).items()
    }
    found = scan_with_gradients(arguments, backend)
    expected = scan_with_gradients({**arguments, **exact}, "reference")
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
    rows = [module._state_rows(given[name]).detach().requires_grad_() for name in "ABC"]
    return given["u"], given["delta"], *rows, given["D"], given["delta_bias"], True


@pytest.mark.parametrize("case", ["Mamba", "S4"])
def test_the_operators_pass_the_checks_of_pytorch(case):
    choose_backend("cpu", "cpp")
    arguments = operator_arguments(case)
    torch.library.opcheck(torch.ops.selective_scan.scan.default, arguments)
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    backward = (torch.ones_like(detached[0]), *detached)
    torch.library.opcheck(torch.ops.selective_scan.scan_backward.default, backward)


@pytest.mark.parametrize("case", ["Mamba", "S4"])
def test_a_compiled_model_computes_the_same(case):
    # aot_eager traces forward and backward as inductor does, without compiling C++ of its own.
    arguments = draw(11, case, (2, 3, 4, 5))
    expected = scan_with_gradients(arguments, "cpp")
    torch._dynamo.reset()
    compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
    leaves = {k: x.clone().requires_grad_() for k, x in tensors_of(arguments).items()}
    y = compiled(**{**arguments, **leaves})
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    (y * weights).sum().backward()
    found = {"y": y.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}
    assert largest_relative_difference(found, expected) < 1e-13


# Choosing a backend


def test_a_cpu_has_the_cpp_and_the_reference():
    assert choose_backend("cpu") == choose_backend("cpu", "cpp") == "cpp"
    assert choose_backend("cpu", "reference") == "reference"


@pytest.fixture
def no_mamba_ssm(monkeypatch):
    """On a machine that has it too."""
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)


def test_other_devices_without_their_kernel_take_the_reference(no_mamba_ssm):
    assert choose_backend("cuda") == choose_backend("mps") == "reference"


def test_mamba_ssm_by_name_and_missing_says_how_to_install_it(no_mamba_ssm):
    with pytest.raises(UnavailableError, match="MAMBA_KEEP_CUDA_BUILD=TRUE pip install"):
        choose_backend("cuda", "mamba_ssm")


@pytest.mark.parametrize(
    ("device", "backend", "dtype"),
    [
        ("cpu", "mamba_ssm", torch.float32),
        ("cuda", "mamba_ssm", torch.float64),
        ("cuda", "cpp", torch.float32),
        ("cpu", "triton", torch.float32),
    ],
)
def test_a_backend_that_cannot_is_refused(device, backend, dtype):
    with pytest.raises(ValueError, match=backend):
        choose_backend(device, backend, dtype)


@pytest.mark.parametrize(("missing", "fix"), [("c++", "apt install g\\+\\+"), ("ninja", "pip")])
def test_without_its_tools_auto_warns_and_cpp_raises(monkeypatch, tmp_path, missing, fix):
    # The loader without its memory of having loaded, and with an empty cache.
    monkeypatch.setitem(module.PREPARE, "cpp", module._prepare_cpp.__wrapped__)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else which(name))
    with pytest.raises(UnavailableError, match=fix):
        choose_backend("cpu", "cpp")
    with pytest.warns(UserWarning, match="7 times slower") as caught:
        assert choose_backend("cpu") == "reference"
    assert missing in str(caught[0].message)


@pytest.mark.parametrize("case", CASES)
def test_mamba_ssm_is_called_as_it_documents(monkeypatch, case):
    calls = []

    def stand_in(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        """Decode what mamba-ssm documents: following complex B, C are real (B, N, 2 L)."""
        calls.append((u, delta, B, C, D, z, delta_bias))
        if A.is_complex() and B.ndim == 3:
            assert not B.is_complex() and not C.is_complex()
            B, C = (torch.complex(x[..., ::2].clone(), x[..., 1::2].clone()) for x in (B, C))
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, "reference")

    kernel, package = ModuleType("selective_scan_cuda"), ModuleType("mamba_ssm")
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = stand_in
    for name, found in (
        ("selective_scan_cuda", kernel),
        ("mamba_ssm", package),
        ("mamba_ssm.ops", ModuleType("mamba_ssm.ops")),
        ("mamba_ssm.ops.selective_scan_interface", interface),
    ):
        monkeypatch.setitem(sys.modules, name, found)
    assert choose_backend("cuda") == choose_backend("cuda", "mamba_ssm") == "mamba_ssm"
    arguments = draw(12, case, (2, 3, 4, 5), torch.float32)
    expected = scan_with_gradients(arguments, "reference")
    choose = choose_backend
    monkeypatch.setattr(
        module,
        "choose_backend",
        lambda device, backend, dtype: choose("cuda" if backend == "auto" else device, backend),
    )
    assert largest_relative_difference(scan_with_gradients(arguments, "auto"), expected) == 0
    assert all(x.dtype in (torch.float32, torch.complex64) for x in calls[0])
    with pytest.raises(ValueError, match="at most 256 states, found 257"):
        selective_scan(**draw(12, case, (1, 1, 1, 257), torch.float32))


# Arguments


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("u", torch.zeros(2, 3), r"u: expected shape \(B, D, L\).*found \(2, 3\)"),
        ("u", torch.zeros(2, 3, 4, dtype=torch.int32), "u: expected float32 or float64"),
        ("u", torch.zeros(2, 3, 0), "u: expected .* none of them 0"),
        ("delta", torch.zeros(2, 3, 5), r"delta: .*\(2, 3, 4\), found \(2, 3, 5\)"),
        ("delta", torch.zeros(2, 3, 4).double(), "delta: expected torch.float32, found"),
        ("A", torch.zeros(3), r"A: expected shape \(D, N\)"),
        ("A", torch.zeros(4, 5), r"A: .*\(3, 5\), found \(4, 5\)"),
        ("A", torch.zeros(3, 5).cfloat(), "B: expected torch.complex64, found torch.float32"),
        ("B", torch.zeros(2, 4, 5), r"B: .*\(3, 5\) or \(B, N, L\) = \(2, 5, 4\), found"),
        ("C", torch.zeros(5, 3), r"C: .*found \(5, 3\)"),
        ("D", torch.zeros(4), r"D: .*\(3,\), found \(4,\)"),
        ("z", torch.zeros(2, 4, 3), r"z: .*found \(2, 4, 3\)"),
        ("delta_bias", torch.zeros(3).double(), "delta_bias: expected torch.float32"),
        ("C", torch.zeros(2, 5, 4, device="meta"), "C: expected on cpu, as u, found on meta"),
    ],
)
def test_wrong_arguments_are_named(name, wrong, message):
    arguments = draw(13, "Mamba", (2, 3, 4, 5), torch.float32)
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**arguments, name: wrong})


# Building


SCRIPT = """
import json, os, resource, sys
import torch
torch.set_num_threads(2)
from selective_scan import choose_backend, selective_scan
choose_backend("cpu", "cpp")
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
"""


def start(body: str, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT + body],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> tuple[dict, str]:
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return json.loads(output), errors


AGREE = """
sys.path.insert(0, "tests")
from test_selective_scan import CASES, draw, largest_relative_difference, scan_with_gradients
worst = 0
for case in CASES:
    for dtype in (torch.float64, torch.float32):
        arguments = draw(14, case, (3, 5, 7, 21), dtype)
        ours, reference = (scan_with_gradients(arguments, b) for b in ("cpp", "reference"))
        scale = 1 if dtype == torch.float64 else 1e-5
        worst = max(worst, scale * largest_relative_difference(ours, reference))
print(json.dumps({"worst": worst, "capability": torch.backends.cpu.get_cpu_capability()}))
"""
CAPABILITIES = {"DEFAULT": "default", "AVX2": "avx2"}


@pytest.fixture(scope="module", params=CAPABILITIES)
def simultaneous_builds(request, tmp_path_factory):
    """Results and messages of two processes that build in one empty cache, after a killed one."""
    cache = tmp_path_factory.mktemp("cache")
    environment = {
        "TORCH_EXTENSIONS_DIR": str(cache),
        "ATEN_CPU_CAPABILITY": CAPABILITIES[request.param],
    }
    killed = start(AGREE, **environment)
    while not list(cache.glob("*/lock")):  # PyTorch's, which only the end of a build removes
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    results = [finish(process) for process in [start(AGREE, **environment) for _ in range(2)]]
    if results[0][0]["capability"] != request.param:
        pytest.skip(f"this CPU has no {request.param}")
    return results, cache


def test_builds_for_other_cpus_agree_with_the_reference(simultaneous_builds):
    results, _ = simultaneous_builds
    assert all(result["worst"] < 1e-11 for result, _ in results)


def test_two_processes_that_start_at_once_build_once(simultaneous_builds):
    results, cache = simultaneous_builds
    assert sum("compiling the selective scan" in errors for _, errors in results) == 1
    assert len(list(cache.glob("selective_scan_torch*.so"))) == 1


@pytest.mark.skipif(shutil.which("clang++") is None, reason="clang++ is not installed")
def test_clang_compiles_it_too(tmp_path):
    result, errors = finish(start(AGREE, TORCH_EXTENSIONS_DIR=str(tmp_path), CXX="clang++"))
    assert "compiling" in errors
    assert result["worst"] < 1e-11


def test_a_failed_compilation_shows_the_compilers_words(monkeypatch, tmp_path):
    source = tmp_path / "broken.cpp"
    source.write_text("#error broken on purpose\n")
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setitem(module.PREPARE, "cpp", module._prepare_cpp.__wrapped__)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    for backend in ("auto", "cpp"):
        with pytest.raises(build.CompilationError, match="broken on purpose"):
            choose_backend("cpu", backend)
    assert not list(Path(tmp_path).glob("cache/*.so"))


@pytest.mark.parametrize("threads", [(2, 1), (1, 2)], ids=["forward", "backward"])
def test_the_number_of_threads_is_honoured(threads):
    body = f"""
x, rows = torch.ones(2, 4, 3, requires_grad=True), torch.ones(4, 1)
count = lambda: len(os.listdir("/proc/self/task"))
grown = []
for forward, backward in ((1, 1), {threads}):
    before = count()
    torch.set_num_threads(forward)
    y = selective_scan(x, x, -rows, rows, rows, backend="cpp")
    torch.set_num_threads(backward)
    y.sum().backward()
    grown.append(count() - before)
print(json.dumps(grown))
"""
    if not Path("/proc/self/task").exists():
        pytest.skip("threads are counted in /proc, which only Linux has")
    grown, _ = finish(start(body))
    assert grown == [0, 1]


def test_memory_does_not_grow_with_the_states_of_all_positions():
    # B D L N float32 numbers are 1 GiB here; inputs and their gradients together are 20 MiB.
    body = """
B, D, L, N = 4, 512, 256, 512
u, A = torch.ones(B, D, L), -torch.ones(D, N)
rows = torch.ones(B, N, L)
tensors = [x.requires_grad_() for x in (u, u.clone(), A, rows, rows.clone())]
before = peak()
selective_scan(*tensors, backend="cpp").sum().backward()
print(json.dumps(peak() - before))
"""
    grown, _ = finish(start(body))
    assert grown < 100
