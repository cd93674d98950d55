"""A compiler that is a shell script, for tests of the build."""

from pathlib import Path

__all__ = ["write_compiler"]

COMPILER = """#!/bin/sh
# Makes what it is asked for; keeps its arguments in arguments.txt, each ended by a NUL byte.
printf '%s\\0' "$@" >> "$(dirname "$0")/arguments.txt"
source= out= before=
for word in "$@"; do
  case $before in -o) out=$word ;; -MF) echo "out:" > "$word" ;; -c) source=$word ;; esac
  before=$word
done
{before}
echo made > "$out"
"""


def write_compiler(path: Path, before: str = "") -> Path:
    """Write the script. The shell code ``before`` runs before it makes its output; ``$source`` is what it compiles."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(COMPILER.replace("{before}", before), encoding="utf-8")
    path.chmod(0o755)
    return path
