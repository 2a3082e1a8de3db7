"""The selective scan's backends: which is chosen, and how mamba-ssm's is called."""

import shutil
import subprocess
import sys
from types import ModuleType

import pytest

pytest.importorskip("torch", reason="needs the PyTorch environment")

import torch

from harness.errors import UnavailableError
from harness.paths import ROOT
from kernels import selective_scan as module
from kernels.selective_scan import choose_backend, selective_scan
from scan_cases import CASES, draw, largest_relative_difference, scan_with_gradients


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
    # As in a process that has loaded nothing, and with an empty cache.
    monkeypatch.setattr(module, "READY", set())
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, **where: None if name == missing else which(name, **where)
    )
    with pytest.raises(UnavailableError, match=fix):
        choose_backend("cpu", "cpp")
    with pytest.warns(UserWarning, match="15 times slower") as caught:
        assert choose_backend("cpu") == "reference"
    assert missing in str(caught[0].message)


@pytest.mark.parametrize("case", CASES)
def test_mamba_ssm_is_called_as_it_documents(monkeypatch, case):
    calls = []

    def stand_in(
        u,
        delta,
        A,
        B,
        C,
        D=None,
        z=None,
        delta_bias=None,
        delta_softplus=False,
        return_last_state=False,
    ):
        """Decode what mamba-ssm documents: following complex B, C are real (b, n, 2 l)."""
        assert z is None
        calls.append((u, delta, B, C, D, delta_bias))
        if A.is_complex() and B.ndim == 3:
            assert not B.is_complex() and not C.is_complex()
            B, C = (torch.complex(x[..., ::2].clone(), x[..., 1::2].clone()) for x in (B, C))
        options = delta_softplus, return_last_state, "reference"
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, *options)

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
    continued = draw(12, case, (2, 3, 4, 5), torch.float32, requires_grad=True, states=True)
    with pytest.raises(ValueError, match="initial_state: mamba-ssm's kernel takes none"):
        selective_scan(**continued)
    del continued["initial_state"]
    y, last = selective_scan(**continued)
    y.sum().backward()
    with pytest.raises(NotImplementedError, match="does not differentiate the last state"):
        last.abs().sum().backward()


IMPORTED_AND_COMPILED = """
import sys, warnings
import torch
import kernels.selective_scan
print("torch._dynamo" in sys.modules)
from torch_layers import MambaRecurrence
kernels.selective_scan.choose_backend("cpu", "cpp")
layer = MambaRecurrence(6, 5, "cpp", torch.Generator().manual_seed(0))
x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
found = []
for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
    layer.zero_grad()
    y = run(x)
    y.square().sum().backward()
    found.append([y, *(p.grad for p in layer.parameters())])
print(all(torch.allclose(a, b) for a, b in zip(*found, strict=True)))
"""


def test_the_compiler_of_pytorch_is_imported_only_to_compile_and_then_works():
    command = [sys.executable, "-c", IMPORTED_AND_COMPILED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
