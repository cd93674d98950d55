"""Benchmarks: our kernels beside other libraries and beside plain memory passes. README.md lists the commands."""
