"""The C++ of the selective scan in new processes: how it is built, its threads, its memory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the PyTorch environment")

from harness.errors import UnavailableError
from harness.paths import ROOT
from kernels import selective_scan as module
from kernels.csrc import build
from kernels.selective_scan import choose_backend

SCRIPT = """
import json, os, sys
import torch
torch.set_num_threads(2)
from kernels.selective_scan import choose_backend, selective_scan
choose_backend("cpu", "cpp")
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
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return json.loads(output), errors


AGREE = """
sys.path.insert(0, "tests")
from scan_cases import CASES, draw, largest_relative_difference, scan_with_gradients
worst = 0
for case in CASES:
    for dtype in (torch.float64, torch.float32):
        arguments = draw(14, case, (3, 5, 7, 21), dtype)
        ours, reference = (scan_with_gradients(arguments, b) for b in ("cpp", "reference"))
        scale = 1 if dtype == torch.float64 else 1e-5
        worst = max(worst, scale * largest_relative_difference(ours, reference))
print(json.dumps({"worst": worst, "capability": torch.backends.cpu.get_cpu_capability()}))
"""


def environment(cache: Path, capability: str, **more: str) -> dict[str, str]:
    return {"TORCH_EXTENSIONS_DIR": str(cache), "ATEN_CPU_CAPABILITY": capability, **more}


def has_clang() -> bool:
    """Its C++ compiler and its OpenMP, `apt install clang libomp-dev`."""
    if shutil.which("clang++") is None:
        return False
    command = ["clang++", "-fopenmp", "-fsyntax-only", "-xc++", "-"]
    return subprocess.run(command, input=b"#include <omp.h>", capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def simultaneous_builds(tmp_path_factory):
    """Two processes that build in one empty cache, after a killed one, for a CPU without vectors.

    Their results and messages, and the cache. The compiler is two words, as `ccache g++` is: a
    script that notes its arguments in the cache, and clang where that is installed.
    """
    cache = tmp_path_factory.mktemp("cache")
    wrapper = cache / "wrapper"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {cache}/compiled\nexec "$@"\n')
    wrapper.chmod(0o700)
    compiler = "clang++" if has_clang() else "c++"
    settings = environment(cache, "default", CXX=f"{wrapper} {compiler}")
    killed = start(AGREE, **settings)
    while not list(cache.glob("*/lock")):  # PyTorch's, which only the end of a build removes
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    (cache / "compiled").unlink(missing_ok=True)
    return [finish(process) for process in [start(AGREE, **settings) for _ in range(2)]], cache


@pytest.mark.processes
def test_without_vectors_it_agrees_with_the_reference(simultaneous_builds):
    results, _ = simultaneous_builds
    assert all(found["capability"] == "DEFAULT" for found, _ in results)
    assert all(found["worst"] < 1e-11 for found, _ in results)


def test_with_vectors_of_avx2_it_agrees_with_the_reference(tmp_path):
    found, _ = finish(start(AGREE, **environment(tmp_path, "avx2")))
    if found["capability"] != "AVX2":
        pytest.skip("this CPU has no AVX2")
    assert found["worst"] < 1e-11


@pytest.mark.processes
def test_two_processes_that_start_at_once_build_once(simultaneous_builds):
    results, cache = simultaneous_builds
    assert sum("compiling the selective scan" in errors for _, errors in results) == 1
    assert len(list(cache.glob("selective_scan_torch*.so"))) == 1


@pytest.mark.processes
def test_a_compiler_may_be_several_words(simultaneous_builds):
    _, cache = simultaneous_builds
    compiled = (cache / "compiled").read_text()
    assert "selective_scan.cpp" in compiled and "-shared" in compiled  # compiled and linked by it


@pytest.mark.processes
def test_clang_compiles_it_too(simultaneous_builds):
    if not has_clang():
        pytest.skip("clang++ or its OpenMP is not installed")
    _, cache = simultaneous_builds
    lines = (cache / "compiled").read_text().splitlines()
    assert any(line.startswith("clang++ ") and "selective_scan.cpp" in line for line in lines)


@pytest.mark.parametrize(
    ("compiler", "words"),
    [("no-such-wrapper g++", "compiler no-such-wrapper is not installed"), ("'g++", "not a comm")],
)
def test_a_compiler_that_is_not_there_is_named(monkeypatch, tmp_path, compiler, words):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(UnavailableError, match=words):
        build.load_operators()


def no_home(monkeypatch, tmp_path):
    """As of a user whom the system does not know."""
    for name in ("HOME", "XDG_CACHE_HOME", "TORCH_EXTENSIONS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4242_4242)


def file_for_a_cache(monkeypatch, tmp_path):
    (tmp_path / "cache").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))


def forbidden_cache(monkeypatch, tmp_path):
    """Root may write anywhere but in /proc."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/proc/cache")


def damaged_library(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    build._library_path(build._compiler_flags()).write_bytes(b"not a library")


@pytest.mark.parametrize("spoil", [no_home, file_for_a_cache, forbidden_cache, damaged_library])
def test_a_cache_that_cannot_be_used_is_an_error_that_says_what_to_set(
    monkeypatch, tmp_path, spoil
):
    spoil(monkeypatch, tmp_path)
    with pytest.raises(UnavailableError, match="set TORCH_EXTENSIONS_DIR"):
        build.load_operators()


def test_a_full_disk_is_no_fault_of_the_source(monkeypatch, tmp_path, mount_disk):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount_disk(disk, 200)
    source = tmp_path / "large.cpp"
    source.write_text("char more_than_the_disk_holds[1 << 20] = {1};\n")
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(disk))
    with pytest.raises(UnavailableError, match=r"No space left on device.*TORCH_EXTENSIONS_DIR"):
        build.load_operators()


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("broken on purpose", "broken on purpose"),
        ("'omp.h' file not found", "apt install libomp-dev\n(.|\n)*file not found"),
    ],
)
def test_a_failed_compilation_shows_the_compilers_words(monkeypatch, tmp_path, error, shown):
    source = tmp_path / "broken.cpp"
    source.write_text(f"#error {error}\n")
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setattr(module, "READY", set())
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    for backend in ("auto", "cpp"):
        with pytest.raises(build.CompilationError, match=shown):
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
from benchmarks.memory import peak_memory_gib
B, D, L, N = 4, 512, 256, 512
u, A = torch.ones(B, D, L), -torch.ones(D, N)
rows = torch.ones(B, N, L)
tensors = [x.requires_grad_() for x in (u, u.clone(), A, rows, rows.clone())]
before = peak_memory_gib()
selective_scan(*tensors, backend="cpp").sum().backward()
print(json.dumps(peak_memory_gib() - before))
"""
    grown, _ = finish(start(body))
    assert grown < 0.1
