"""Time from result files to a drawn PDF, for a set of files as large as the paper's released one.

Each script runs as a user starts it, in a process of its own, and writes its PDF and its PNG. Its
time is that of the whole process, and `import_s` the part of it that importing Matplotlib alone
takes. Medians. The last line of standard output is one JSON object.

    python benchmarks/figures.py [--repeats 5]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.released_files import write_released_files
from harness.machine import describe_machine, package_versions
from harness.paths import ROOT

SCRIPTS = {
    "figure_1": ["plot_toy.py"],
    "figure_2": ["plot_A5.py"],
    "figure_2_with_curves": ["plot_A5.py", "--curves"],
}
BAR_S = 3.0


def seconds(command: list[str]) -> float:
    """Wall time of a command that must succeed. Raises: CalledProcessError."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(repeats: int) -> dict:
    """Write the files, draw from them `repeats` times."""
    with tempfile.TemporaryDirectory() as folder:
        files = write_released_files(Path(folder))
        common = ["--strict", "--results-dir", folder]
        times = {name: [] for name in SCRIPTS}
        imports = []
        for _ in range(repeats):
            imports.append(seconds([sys.executable, "-c", "import matplotlib.figure"]))
            for name, (script, *options) in SCRIPTS.items():
                command = [sys.executable, str(ROOT / script), *options, *common]
                times[name].append(seconds(command))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "benchmark": "result files to PDF and PNG",
        "files": len(files),
        "seconds": {name: round(value, 2) for name, value in medians.items()},
        "all_s": {name: [round(s, 2) for s in values] for name, values in times.items()},
        "import_s": round(statistics.median(imports), 2),
        "bar_s": BAR_S,
        "within_bar": all(value < BAR_S for value in medians.values()),
        "machine": {**describe_machine(), "packages": package_versions(["matplotlib", "numpy"])},
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    print(json.dumps(measure(arguments.repeats)))


if __name__ == "__main__":
    main()
