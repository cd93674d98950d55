"""`make test-engines`: the tests of this folder, beside the packages of engines, each file in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ENVIRONMENT = {
    "ROPE_KERNELS_TEST_ENGINES": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_PLUGINS": "",
}


def main() -> int:
    """Run every file; the exit code is 0 if all pass."""
    failed = [
        path.name
        for path in sorted(FOLDER.glob("test_*.py"))
        if subprocess.run(
            [sys.executable, "-m", "pytest", str(path), *sys.argv[1:]], env=os.environ | ENVIRONMENT
        ).returncode
    ]
    if failed:
        print("failed:", *failed, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
