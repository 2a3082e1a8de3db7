"""The Triton kernels without a GPU: interpreted in a process of their own, and compiled."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytest.importorskip("torch", reason="needs the PyTorch environment")

import torch

from harness.errors import UnavailableError
from harness.paths import ROOT
from kernels import selective_scan as module
from kernels.selective_scan import choose_backend, selective_scan
from scan_cases import draw

needs_triton = pytest.mark.skipif(
    not find_spec("triton"),
    reason="Triton is not installed: it comes with PyTorch's CUDA wheels, or pip install .[triton]",
)
PRELUDE = """
import json, random, sys
sys.path.insert(0, "tests")
import torch
torch.set_num_threads(1)
from scan_cases import *
"""


def interpret(body: str):
    """What a script prints last, as JSON, in a process that interprets Triton's kernels."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + body],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


SHARED_CASES = """
errors = {}
for case in CASES:
    for name, optional in OPTIONS.items():
        variant = {"optional": optional, "states": True}
        errors[f"{case}, {name}"] = worst_error("triton", 1, case, (2, 3, 5, 4), **variant)
print(json.dumps(errors))
"""
# More channels than a tile holds, and more states.
TILES = """
sizes = {"Mamba": (1, 17, 4, 140), "complex, following": (1, 9, 4, 70), "S4": (2, 9, 3, 70)}
print(json.dumps({case: worst_error("triton", 2, case, size) for case, size in sizes.items()}))
"""
SIGNATURE = """
errors, draws = {}, random.Random(0)
for i in range(16):
    case, narrow = draws.choice(list(CASES)), (None, torch.float16, torch.bfloat16)[i % 3]
    shape, variant = ODD_SHAPES[i % 4], draws.choice(VARIANTS)
    error = worst_error("triton", i, case, shape, narrow=narrow, **variant)
    errors[f"{case}, {shape}, {narrow}, {variant}"] = error
print(json.dumps(errors))
"""
DOUBLE = """
errors = {}
for case in ("Mamba", "S4"):
    arguments = draw(3, case, (2, 3, 5, 4), states=True)
    both = (scan_with_gradients(arguments, name) for name in ("triton", "reference"))
    errors[case] = largest_relative_difference(*both) / ALLOWED[torch.float64]
print(json.dumps(errors))
"""


@needs_triton
@pytest.mark.parametrize("body", [SHARED_CASES, TILES, SIGNATURE, DOUBLE])
def test_interpreted_it_errs_by_roundings_only(body):
    errors = interpret(body)
    assert errors
    assert max(errors.values()) < 1, errors


COMPILED = """
arguments = draw(11, "Mamba", (2, 3, 4, 5))
expected = scan_with_gradients(arguments, "triton")
compiled = torch.compile(selective_scan, backend="aot_eager", fullgraph=True)
found = scan_with_gradients(arguments, "triton", compiled)
leaf = arguments["u"].clone().requires_grad_()
(slope,) = torch.autograd.grad(
    selective_scan(**{**arguments, "u": leaf}, backend="triton").sum(), leaf, create_graph=True
)
try:
    slope.sum().backward()
except NotImplementedError as error:
    print(json.dumps([largest_relative_difference(found, expected), str(error)]))
"""


@needs_triton
def test_a_compiled_model_computes_the_same_and_a_second_derivative_is_refused():
    error, refusal = interpret(COMPILED)
    assert error < 1e-13
    assert "differentiates once" in refusal


# Errors


def test_without_triton_it_says_where_it_comes_from(monkeypatch):
    monkeypatch.setattr(module, "READY", set())
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "kernels.triton_scan", raising=False)
    monkeypatch.delitem(sys.modules, "kernels.triton_kernels", raising=False)
    with pytest.raises(UnavailableError, match="comes with PyTorch's CUDA wheels"):
        choose_backend("cuda", "triton")


@needs_triton
def test_a_gpu_before_ampere_is_refused(monkeypatch):
    monkeypatch.setattr(module, "READY", set())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(UnavailableError, match=r"8\.0 .*found Tesla T4 with 7\.5"):
        choose_backend("cuda", "triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert choose_backend("cuda") == choose_backend("cuda", "triton") == "triton"


def test_a_cpu_is_refused_unless_interpreted(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="'triton' does not compute on cpu"):
        selective_scan(**draw(1, "Mamba", (1, 2, 3, 4)), backend="triton")


@needs_triton
def test_what_32_bits_cannot_count_is_refused():
    from kernels.triton_scan import check_offsets

    A = torch.empty(4096, 1, 256, device="meta")
    check_offsets(2**18, 512, A)
    with pytest.raises(ValueError, match="32 bits; scan it in pieces"):
        check_offsets(2**20, 2**10, A)


# Compiled for GPUs that are not there


@needs_triton
@pytest.mark.parametrize("architecture", [80, 90, 120])
@pytest.mark.parametrize("size", ["toy", "a5"])
def test_compiled_nothing_spills_and_nothing_is_added_in_any_order(size, architecture):
    from benchmarks.triton_scan import SIZES, compile_pass

    for direction in ("forward", "backward"):
        found = compile_pass(direction, SIZES[size], architecture)
        assert found.spilled_bytes == 0, direction
        assert found.loops, direction
        # What several threads add to in whatever order would change the last bits.
        assert not {"RED", "ATOM", "ATOMG", "ATOMS"} & set(found.instructions), direction


@needs_triton
@pytest.mark.parametrize("case", ["complex", "complex, following", "double", "mixed"])
def test_every_form_compiles(case):
    from benchmarks.triton_scan import Size, compile_pass

    forms = {
        "complex": {"P": 2, "following": (False, False)},
        "complex, following": {"P": 2},
        "double": {"dtype": torch.float64},
        "mixed": {"following": (True, False)},
    }
    for direction in ("forward", "backward"):
        found = compile_pass(direction, Size(2, 16, 5, 16), 90, **forms[case])
        assert found.registers <= 255
