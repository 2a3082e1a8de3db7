"""The selective scan in C++ for a CPU: its source, and how it is compiled on first use.

Only what is compiled, and what compiles it, belongs here.
"""
