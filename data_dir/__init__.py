"""The data of both benchmarks: how they are made, and how they are read."""
