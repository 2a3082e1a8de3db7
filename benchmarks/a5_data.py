"""Time and peak memory of making and loading one file of the A5 word problem.

Each part runs in a process of its own, so its peak memory is its own and its time includes the
start of Python. The last line of standard output is one JSON object.

    python benchmarks/a5_data.py [--length 20] [--samples 1000000]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.machine import describe_machine
from harness.paths import ROOT

GENERATION_BARS = {"seconds": 30.0, "peak_mib": 2048.0}
_LOAD = """
import sys
from pathlib import Path
from data_dir.a5_dataset import read_csv
from data_dir.finite_groups import group
read_csv(Path(sys.argv[1]), group("A5"), int(sys.argv[2]))
"""


def measure(command: list[str]) -> dict[str, float]:
    """Run Python with these arguments, the repository importable; its wall time and peak memory.

    Raises:
        RuntimeError: the command failed.
    """
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, *command], stdout=sys.stderr, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode}: {command}")
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "peak_mib": usage.ru_maxrss * bytes_per_unit / 2**20}


def main() -> None:
    """Generate one file in a temporary folder, load it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--samples", type=int, default=1_000_000)
    arguments = parser.parse_args()
    length, samples = str(arguments.length), str(arguments.samples)
    script = str(ROOT / "data_dir" / "generate_a5_dataset.py")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"A5={length}.csv"
        generate = measure([script, "--lengths", length, "--samples", samples, "--output", folder])
        load = measure(["-c", _LOAD, str(path), length])
        file_mb = path.stat().st_size / 1e6

    figures = {
        "length": arguments.length,
        "samples": arguments.samples,
        "file_mb": file_mb,
        "generate": generate,
        "load": load,
        "generation_within_bars": all(
            generate[name] < bar for name, bar in GENERATION_BARS.items()
        ),
        "machine": describe_machine(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
