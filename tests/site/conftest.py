"""Runs these tests in `make docs-check` alone, which has a browser; elsewhere there is none to look with."""

import os

collect_ignore_glob = [] if os.environ.get("ROPE_KERNELS_TEST_SITE") == "1" else ["test_*.py"]
