"""Tests of the host code of CUDA calls, over a GPU that does nothing; `make host-check` runs them."""

from __future__ import annotations

import os

# Only in a process that run.py has started.
collect_ignore_glob = [] if "NULL_GPUS" in os.environ else ["test_*.py"]
