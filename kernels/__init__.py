"""Fast forms of what the models compute, each equal to a slow form that a reader finds first.

A kernel is a function of arrays. What knows a config, a run or a results folder does not belong
here.
"""
