"""Comparisons of sizes for code that ``torch.compile`` traces, where some sizes are known only at run time."""

from __future__ import annotations

from typing import Any

import torch
from torch.compiler import is_compiling

__all__ = ["is_known", "is_possible", "same"]


def is_known(condition: Any) -> bool:
    """Whether a condition holds; ``False`` if that is known only at run time."""
    if not is_compiling():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return bool(guard_or_false(condition))


def is_possible(condition: Any) -> bool:
    """Whether a condition holds; ``True`` if that is known only at run time."""
    if not is_compiling():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import guard_or_true

    return bool(guard_or_true(condition))


def same(size: Any, other: Any) -> bool:
    """Whether two sizes are equal. If that is known only at run time, the compiled graph checks it then."""
    if is_known(size == other):
        return True
    if not is_possible(size == other):
        return False
    torch._check(size == other)
    return True
