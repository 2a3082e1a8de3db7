"""Where an experiment computes, and in which numbers, whatever a user exported or configured."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import ConfigError, UnavailableError
from harness.machine import available_cores, others_running
from harness.records import provenance
from kernels.allocator import keep_freed_memory

if TYPE_CHECKING:
    import torch


# Times that an OpenMP thread that waits looks for work before it sleeps.
SPINS_ALONE, SPINS_BESIDE_OTHERS = "16000", "1000"
# Of the exported variables these change numbers: TF32 on a GPU, bfloat16 in a CPU's products.
ROUNDING = (
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
)
# All of JAX's may, but for those that start so.
HARMLESS_JAX = (
    "JAX_PLATFORM",
    "JAX_CUDA_VISIBLE_DEVICES",
    "JAX_COMPILATION_CACHE",
    "JAX_ENABLE_COMPILATION_CACHE",
    "JAX_PERSISTENT_CACHE",
    "JAX_LOG",
    "JAX_TRACEBACK",
)
HARMLESS_XLA = ("--xla_dump", "--xla_gpu_cuda_data_dir", "--xla_force_host_platform_device_count")


def forget_exported() -> None:
    """Take out of the environment what would change numbers, with a warning for each variable."""
    harmful = {
        name: value
        for name, value in sorted(os.environ.items())
        if name in ROUNDING or (name.startswith("JAX_") and not name.startswith(HARMLESS_JAX))
    }
    flags = os.environ.get("XLA_FLAGS", "").split()
    kept = [flag for flag in flags if flag.startswith(HARMLESS_XLA)]
    if kept != flags:
        harmful["XLA_FLAGS"] = " ".join(flag for flag in flags if flag not in kept)
    for name, value in harmful.items():
        print(f"warning: {name}={value} is ignored: it may change the results", file=sys.stderr)
        del os.environ[name]
    if kept:
        os.environ["XLA_FLAGS"] = " ".join(kept)


def jax_device(name: str) -> str:
    """Choose where JAX computes: "auto", "cpu" or "cuda"; returns the device in words.

    Raises: UnavailableError, when JAX has no such device, or none that JAX_PLATFORMS names.
    """
    import jax

    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")
    try:
        device = jax.devices("cuda" if name == "cuda" else None)[0]
    except (RuntimeError, AssertionError):
        platforms = jax.config.jax_platforms
        asked = f"JAX_PLATFORMS={platforms}" if name == "auto" else f"--device {name}"
        raise UnavailableError(
            f"{asked}: this JAX finds no such device; install JAX for CUDA with "
            "pip install 'jax[cuda12]' (see docs/environment-jax.yml), or use --device cpu"
        ) from None
    return device.device_kind if device.platform == "gpu" else device.platform


def origin_of_jax_runs(packages: Sequence[str], device: str) -> dict[str, Any]:
    """How runs are being made, for their records: the number of BLAS's threads decides last bits.

    Raises: UnavailableError.
    """
    from threadpoolctl import threadpool_info

    origin = provenance(packages, jax_device(device))
    threads = [x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"]
    return {**origin, "threads": max(threads, default=1)}


@contextmanager
def jax_numbers() -> Iterator[None]:
    """JAX as the experiments mean it, whatever a user exported or configured.

    float32 arrays, the Threefry generator in its layout of JAX 0.5 and later, NumPy's promotion,
    and programs compiled as they stand.
    """
    forget_exported()
    import jax

    with (
        jax.enable_x64(False),
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(True),
        jax.default_matmul_precision(None),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.disable_jit(False),
        jax.debug_nans(False),
        jax.debug_infs(False),
    ):
        yield


def torch_numbers(matmul_precision: Literal["float32", "tf32"]) -> None:
    """PyTorch as the experiments mean it: on a GPU too float32 is float32, unless it is to be TF32.

    There the libraries' kernels give the same bits each time. Freed memory stays in the process.
    """
    forget_exported()
    keep_freed_memory()
    # By default a thread of OpenMP that waits for work spins for milliseconds, which holds up those
    # with work where others share the cores; to sleep at once costs small models a tenth where none
    # do (docs/performance.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        spare = (os.cpu_count() or 1) - available_cores()
        spins = SPINS_BESIDE_OTHERS if others_running() > spare else SPINS_ALONE
        os.environ.setdefault("GOMP_SPINCOUNT", spins)
    import torch

    tf32 = matmul_precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def torch_device(name: str, matmul_precision: Literal["float32", "tf32"]) -> torch.device:
    """Choose where PyTorch computes: "auto", "cpu" or "cuda".

    Raises: UnavailableError, when CUDA is asked for and PyTorch has none; ConfigError, when TF32 is
    and the device is a CPU.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UnavailableError(
            "--device cuda: this PyTorch finds no CUDA device; install PyTorch for CUDA "
            "(see docs/environment-torch.yml), or use --device cpu"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu" and matmul_precision == "tf32":
        raise ConfigError(
            "matmul_precision: a CPU has no 'tf32', an NVIDIA GPU has; on a CPU use float32"
        )
    return torch.device(name)
