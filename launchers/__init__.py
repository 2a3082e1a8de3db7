"""Which processes do the runs: workers on this machine, or the job array of a SLURM cluster.

How a run is done does not belong here: every process runs `run_experiment.py` for one run.
"""
