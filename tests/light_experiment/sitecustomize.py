"""Loaded by Python where this folder is on PYTHONPATH: a light run in place of PyTorch's on A5.

What is around a run (records, locks, checkpoints, launchers) is then tested in real processes
that start in half a second. CLOCK=backwards makes the time of day go back at every look.
"""

import itertools
import os
import sys
import time
from importlib.machinery import PathFinder


class LightExperiment:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "experiments.ssm_a5":
            return None
        spec = PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def load_and_replace(module):
            load(module)
            module.run = __import__("walk").run

        spec.loader.exec_module = load_and_replace
        return spec


sys.meta_path.insert(0, LightExperiment)
if os.environ.get("CLOCK") == "backwards":
    past = itertools.count(start=int(time.time()), step=-3600)
    time.time = lambda: float(next(past))
    time.time_ns = lambda: next(past) * 10**9
