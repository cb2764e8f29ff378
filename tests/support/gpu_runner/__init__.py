"""Runs the parts of `make gpu` in order of their worth, within a budget; tests/gpu/run.sh starts it.

Only the standard library is needed: the runner starts before the package is built.
"""
