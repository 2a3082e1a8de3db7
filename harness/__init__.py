"""The ground that runs stand on: nothing is lost, nothing is done twice.

Records, checkpoints, locks, the queue of runs, signals, progress, paths and errors belong here.
What knows an experiment, a figure or a framework does not.
"""
