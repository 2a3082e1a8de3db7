"""The paper's theory in numbers: the experiment `-e theory`, an extension; docs/theory.md.

`parts` has its config, its runs and how they are done; what a part of it measures stands in the
file of that part.
"""

from experiments.theory.parts import EXTRA, Config, plan, run

__all__ = ["EXTRA", "Config", "plan", "run"]
