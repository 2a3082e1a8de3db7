"""One file an experiment, read from top to bottom: its config, its runs, and how a run is done.

`theory` is a package, for it measures several things. What experiments share, the training loop and
the reading of configs, belongs here too. Models do not: they are files of the paper's to read, at
the top level, imported when a run begins.
"""
