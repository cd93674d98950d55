"""PTX's types as numpy's. bf16 and packed types travel as the bits they are."""

from __future__ import annotations

import numpy as np

__all__ = ["FLOATS", "SIGNED", "TYPES", "UNSIGNED", "unsigned", "width"]

UNSIGNED = {"u8": "u1", "u16": "u2", "u32": "u4", "u64": "u8"}
SIGNED = {"s8": "i1", "s16": "i2", "s32": "i4", "s64": "i8"}
FLOATS = {"f16": "f2", "f32": "f4", "f64": "f8"}
_BITS = {"b8": "u1", "b16": "u2", "b32": "u4", "b64": "u8", "bf16": "u2", "bf16x2": "u4", "f16x2": "u4", "f32x2": "u8"}

TYPES = {name: np.dtype(code) for name, code in {**UNSIGNED, **SIGNED, **FLOATS, **_BITS}.items()}
TYPES["pred"] = np.dtype(bool)


def width(name: str) -> int:
    """Bytes of a type; 0 for predicates, which have no width that another type could share."""
    return 0 if name == "pred" else TYPES[name].itemsize


def unsigned(nbytes: int) -> np.dtype:
    """The unsigned integer of so many bytes."""
    return np.dtype(f"u{nbytes}")
