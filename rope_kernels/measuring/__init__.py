"""Measuring errors and times: exact references, the shipped models, peers, and calls that alternate."""
