"""Our numbers beside the paper's: what was published, the rules, the figures, the page.

All of it reads result files and their records alone. What makes results does not belong here.
"""

import os

# No window is ever opened, and a name that Matplotlib does not know would end its import.
os.environ["MPLBACKEND"] = "agg"
