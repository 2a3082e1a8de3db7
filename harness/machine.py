"""What a result or a benchmark was made on: hardware, operating system, package versions."""

import os
import platform
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path


def describe_machine() -> dict[str, object]:
    """CPU model, usable cores, memory in GiB, operating system and Python version."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "memory_gib": round(memory / 2**30, 1),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def available_cores() -> int:
    """Number of cores this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def others_running() -> int:
    """Threads of other processes that run or wait for a core now, by Linux's count; else 0.

    The least of a few looks, which what only wakes for a moment does not pass.
    """
    stat, looks = Path("/proc/stat"), []
    for _ in range(10):
        time.sleep(0.005)
        text = stat.read_text() if stat.exists() else ""
        running = re.search(r"^procs_running (\d+)$", text, re.MULTILINE)
        looks.append(int(running[1]) - 1 if running else 0)  # this process is one
    return max(min(looks), 0)


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed, read without importing them."""
    found = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
