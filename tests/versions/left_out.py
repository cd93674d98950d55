"""Which tests an environment with other versions cannot have, and why: ``left_out.py`` prints pytest's options.

What is compared with transformers is compared with the release that requirements.txt pins: another one has other
models, and other mistakes.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["compared_with_transformers", "left_out"]

TESTS = Path(__file__).parents[1]
_COMPARES = re.compile(
    r"^ *(from|import) transformers|^ *from support.*\bcomparisons\b|importorskip\(\"transformers\"\)", re.MULTILINE
)
_WITH_ANY_RELEASE = "integrations"
"""Its tests patch whatever models there are; but the drop-in for modeling_rope_utils is compared."""
_OF_THE_PINNED_RELEASE = "integrations/test_rope_utils*.py"


def compared_with_transformers(tests: Path = TESTS) -> list[Path]:
    """Test files that need the pinned release of transformers."""
    found = [
        path
        for path in sorted(tests.rglob("test_*.py"))
        if path.relative_to(tests).parts[0] != _WITH_ANY_RELEASE and _COMPARES.search(path.read_text(encoding="utf-8"))
    ]
    return [*found, *sorted(tests.glob(_OF_THE_PINNED_RELEASE))]


def left_out(which: str, tests: Path = TESTS) -> dict[Path, str]:
    """Folders and files that the "oldest" or "newest" environment leaves out, with the reason."""
    found = {
        tests / "cpp": "C++ without torch, the same in every environment",
        tests / "emulation" / "test_static_budgets.py": "the budgets are of the pinned Triton's code",
    }
    if which == "oldest":
        found |= dict.fromkeys(compared_with_transformers(tests), "compared with the pinned transformers")
    return found


if __name__ == "__main__":
    print(" ".join(f"--ignore={path.relative_to(TESTS.parent)}" for path in compared_with_transformers()))
