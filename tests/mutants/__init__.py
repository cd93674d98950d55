"""Kernels that are wrong on purpose, and whether the tests notice: ``python tests/mutants/run.py``."""
