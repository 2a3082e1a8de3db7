"""Loaded by Python where this folder is on PYTHONPATH: a light wing in place of the PyTorch wing.

What is around the wings (records, locks, checkpoints, launchers) is then tested in real processes
that start in half a second. CLOCK=backwards makes the time of day go back at every look.
"""

import importlib.util
import itertools
import os
import sys
import time
from pathlib import Path


class LightWing:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "torch_sequence_models":
            return None
        return importlib.util.spec_from_file_location(name, Path(__file__).with_name("walk.py"))


sys.meta_path.insert(0, LightWing)
if os.environ.get("CLOCK") == "backwards":
    past = itertools.count(start=int(time.time()), step=-3600)
    time.time = lambda: float(next(past))
    time.time_ns = lambda: next(past) * 10**9
