"""What an instruction computes: types of its operands and result, and a function of arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["Semantics", "Table"]


@dataclass(frozen=True)
class Semantics:
    """An instruction that computes one result, thread by thread, from its operands.

    Attributes:
        result: PTX type of the result.
        operands: PTX types of the operands.
        compute: from arrays of those types, each of one value per thread or of one for all, to the result's.
    """

    result: str
    operands: tuple[str, ...]
    compute: Callable[..., np.ndarray]


Table = dict[str, Semantics]
"""Semantics by the full name of the instruction, all modifiers included: what is not in it is not known."""
