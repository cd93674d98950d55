"""Tests beside engines and exporters, whose packages `make test-engines` installs; run.py runs them."""

from __future__ import annotations

import os

# Only in a process that run.py has started.
collect_ignore_glob = [] if "ROPE_KERNELS_TEST_ENGINES" in os.environ else ["test_*.py"]
