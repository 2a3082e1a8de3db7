"""Compile and load the operators of `selective_scan.cpp`: once for each PyTorch, CPU and source."""

import errno
import hashlib
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from filelock import FileLock

from harness.errors import CompilationError, UnavailableError

SOURCE = Path(__file__).with_name("selective_scan.cpp")
HEADER = Path(__file__).with_name("states.h")
NAME = "selective_scan"
ERROR_LINES = 20

# PyTorch's vector types take their width from these, as PyTorch's own kernels do.
CPU_FLAGS = {
    "AVX512": "-DCPU_CAPABILITY_AVX512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c",
    "AVX2": "-DCPU_CAPABILITY_AVX2 -mavx2 -mfma -mf16c",
}
# Apple's compiler has no OpenMP; without it the operators use one thread.
OPENMP_FLAGS = ["-fopenmp"] if sys.platform == "linux" else []


def load_operators() -> None:
    """Load `torch.ops.selective_scan`, compiling it where no build of it is in the user's cache.

    The cache is TORCH_EXTENSIONS_DIR, or torch_extensions in the user's cache folder. Processes
    that start at once compile once. To be called once in a process.
    Raises: UnavailableError, without a compiler or ninja, or where the cache cannot be used;
    CompilationError.
    """
    flags = _compiler_flags()
    library = _library_path(flags)
    try:
        if not library.exists():
            _check_tools()
            library.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(library.with_suffix(".lock")):
                if not library.exists():
                    _compile_and_load(library, flags)
                    return
        torch.ops.load_library(library)
    except OSError as error:  # of a damaged library, or one that may not be executed, too
        raise _unusable_cache(str(library.parent), error) from None


def _compiler_flags() -> list[str]:
    capability = torch.backends.cpu.get_cpu_capability()
    known = capability if capability in CPU_FLAGS else "DEFAULT"
    flags = [f"-DCPU_CAPABILITY={known}", *CPU_FLAGS.get(known, "").split()]
    return ["-O3", "-fno-math-errno", "-fno-trapping-math", *OPENMP_FLAGS, *flags]


def _library_path(flags: list[str]) -> Path:
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    capability = torch.backends.cpu.get_cpu_capability()
    read = " ".join(flags).encode() + SOURCE.read_bytes() + HEADER.read_bytes()
    digest = hashlib.sha256(read).hexdigest()[:12]
    name = f"{NAME}_torch{torch.__version__}_{python}_{capability}_{digest}.so"
    return _cache() / name


def _cache() -> Path:
    if folder := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_extensions"
    except RuntimeError as error:
        raise _unusable_cache("the home folder", error) from None


def _unusable_cache(folder: str, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"no compiled selective scan can be kept in {folder}: {error}; set TORCH_EXTENSIONS_DIR "
        "to a folder of this machine that you can write"
    )


def _check_tools() -> None:
    compiler = _compiler()[0]
    if shutil.which(compiler) is None:
        raise UnavailableError(
            f"the C++ compiler {compiler} is not installed: install g++ (apt install g++)"
        )
    if shutil.which("ninja", path=_path_with_python()) is None:
        raise UnavailableError("ninja is not installed: pip install ninja")


def _compile_and_load(library: Path, flags: list[str]) -> None:
    from torch.utils import cpp_extension

    print("compiling the selective scan, once, about half a minute", file=sys.stderr, flush=True)
    # A folder of its own: a build that was killed leaves nothing that a later one would wait for.
    with tempfile.TemporaryDirectory(dir=library.parent) as folder, ExitStack() as stack:
        stack.enter_context(_environment(PATH=_path_with_python()))
        if len(_compiler()) > 1:
            stack.enter_context(_environment(CXX=str(_script_of_compiler(Path(folder)))))
        try:
            cpp_extension.load(
                NAME,
                [str(SOURCE)],
                extra_cflags=flags,
                extra_ldflags=OPENMP_FLAGS,
                build_directory=folder,
                is_python_module=False,
            )
        except RuntimeError as error:
            if "No space left on device" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder) from None
            last_lines = "\n".join(str(error).splitlines()[-ERROR_LINES:])
            openmp = "clang's OpenMP is missing: apt install libomp-dev\n"
            raise CompilationError(
                f"{SOURCE.name} does not compile here (backend='reference' does without it):\n"
                + (openmp if "'omp.h' file not found" in last_lines else "")
                + last_lines
            ) from None
        # Not always NAME.so: PyTorch counts the attempts of a process in the name.
        (built,) = Path(folder).glob(f"{NAME}*.so")
        built.replace(library)


def _compiler() -> list[str]:
    """The words of CXX: the compiler, or a wrapper such as ccache and the compiler."""
    try:
        return shlex.split(os.environ.get("CXX", "")) or ["c++"]
    except ValueError as error:
        raise UnavailableError(f"CXX={os.environ['CXX']} is not a command: {error}") from None


def _script_of_compiler(folder: Path) -> Path:
    """PyTorch takes CXX as one word, so several words become a script."""
    script = folder / "c++"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(_compiler())} "$@"\n')
    script.chmod(0o700)
    return script


def _path_with_python() -> str:
    """PATH, where ninja is found where pip put it, in an environment that is not activated too."""
    return os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])


@contextmanager
def _environment(**changes: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in changes:
            del os.environ[name]
        os.environ.update(before)
