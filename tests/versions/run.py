"""`make test-oldest`, `make test-newest`: builds a copy of the checkout in this environment, and runs its tests.

A copy, since the library in the checkout is the one that was built beside the pinned torch. Arguments: "oldest" or
"newest", then pytest's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from versions.left_out import left_out
from versions.requirements import NOT_TESTED, ROOT

COPIED = (
    "benchmarks", "cmake", "csrc", "docs", "examples", "native_build", "rope_kernels", "tests",
    ".github", "CHANGELOG.md", "CMakeLists.txt", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md",
    "mkdocs.yml", "pyproject.toml", "requirements-demo.txt", "requirements.txt", "setup.py",
)  # fmt: skip
LEAVE = shutil.ignore_patterns("*.so", "__pycache__", "_why_not_native.txt")


def copied(to: Path) -> Path:
    """A copy of the checkout in ``to``, which keeps what was built there before."""
    for name in COPIED:
        source, target = ROOT / name, to / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=LEAVE)
        elif source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return to


def main() -> int:
    """Build and test; the exit code is pytest's."""
    which, *options = sys.argv[1:]
    checkout = copied(ROOT / "build" / which / "checkout")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(checkout),  # for the processes that tests start in other folders
    }
    for arguments in (["setup.py", "-q", "build_ext", "--inplace"], ["-m", "rope_kernels", "info"]):
        subprocess.run([sys.executable, *arguments], cwd=checkout, env=environment, check=True)
    ignored = left_out(which, checkout / "tests")
    for path, reason in ignored.items():
        print(f"left out: {path.relative_to(checkout)}: {reason}")
    if which == "oldest":
        print(f"not tested: the minima of {', '.join(NOT_TESTED)}")
    command = [sys.executable, "-m", "pytest", *(f"--ignore={path}" for path in ignored), *options]
    return subprocess.run(command, cwd=checkout, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
