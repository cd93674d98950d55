"""The names that public calls and configs take, for type checkers. Every call checks them as well."""

from __future__ import annotations

from typing import Literal

__all__ = [
    "AxisMapName",
    "BackendName",
    "LayoutName",
    "MropeMapName",
    "PairingName",
    "PhaseName",
    "RopeTypeName",
    "TableDtypeName",
]

LayoutName = Literal["bshd", "bhsd", "sbhd", "thd"]
PairingName = Literal["half", "interleaved", "interleaved_to_half"]
PhaseName = Literal["exact", "float32"]
TableDtypeName = Literal["bfloat16", "float16"]
MropeMapName = Literal["contiguous", "interleaved", "ernie"]
AxisMapName = Literal["contiguous", "interleaved", "ernie", "qwen_vision", "pixtral", "kimi", "gemma4_vision"]
BackendName = Literal["triton", "native", "reference"]
RopeTypeName = Literal[
    "default",
    "linear",
    "dynamic",
    "yarn",
    "llama3",
    "longrope",
    "proportional",
    "ntk_alpha",
    "mrope",
    "axial",
    "inv_freq",
]
"""Of the types that come with the package; a registered one has a name of its own."""
