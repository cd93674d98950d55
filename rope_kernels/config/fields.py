"""The values of a config as plain fields, under HuggingFace's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..core.names import AxisMapName, PairingName, PhaseName, RopeTypeName, TableDtypeName

__all__ = ["OTHER_NAMES", "RopeFields"]

OTHER_NAMES = {
    "attn_factor": "attention_factor, their product with yarn's own (from_hf multiplies)",
    "base": "rope_theta",
    "dim": "head_dim",
    "interleaved": "pairing='interleaved'",
    "is_neox_style": "pairing='half' for True, 'interleaved' for False",
    "max_position": "max_position_embeddings",
    "max_seq_len": "max_position_embeddings",
    "rotary_dim": "partial_rotary_factor, as a share of head_dim",
    "rotary_pct": "partial_rotary_factor",
    "scaling_factor": "factor",
    "theta": "rope_theta",
}
"""Names of other libraries, each with the field that it is here."""


@dataclass(frozen=True)
class RopeFields:
    """The values that a rope type reads. :class:`rope_kernels.config.RopeConfig` adds the checks and the methods.

    ``None`` means not given. Lists are stored as tuples, integers given for floats as floats.
    """

    head_dim: int
    """Channels of a head, the last axis of q."""
    rope_type: RopeTypeName | str = "default"
    """A name in :data:`rope_kernels.rope_types.ROPE_TYPES`."""
    rope_theta: float = 10000.0
    """Base of the frequency ladder."""
    partial_rotary_factor: float = 1.0
    """Share of ``head_dim`` that is rotated, over 0 and at most 1."""
    rotary_offset: int = 0
    """Channels before the first rotated one."""
    max_position_embeddings: int | None = None
    """Longest trained sequence, in tokens."""
    original_max_position_embeddings: int | None = None
    """The same before the context was extended."""
    factor: float | None = None
    """How many times the context was extended."""
    attention_factor: float | None = None
    """Multiplies cos and sin (``None``: what the type prescribes). ``attn_factor`` of a HuggingFace config multiplies
    what yarn prescribes."""
    beta_fast: float | None = None
    """yarn: turns over the original context above which a pair is unchanged."""
    beta_slow: float | None = None
    """yarn: turns below which a pair is divided by ``factor``."""
    mscale: float | None = None
    """yarn: DeepSeek's numerator of the attention factor."""
    mscale_all_dim: float | None = None
    """yarn: its denominator."""
    truncate: bool | None = None
    """yarn: whether the ramp's ends are rounded to whole indices (``None``: they are)."""
    short_factor: Sequence[float] | None = None
    """longrope: a divisor per pair up to the original context."""
    long_factor: Sequence[float] | None = None
    """longrope: a divisor per pair beyond it."""
    short_mscale: float | None = None
    """longrope: attention factor up to the original context (PhiMoE)."""
    long_mscale: float | None = None
    """longrope: attention factor beyond it (PhiMoE)."""
    low_freq_factor: float | None = None
    """llama3: turns over the original context below which a pair is divided by ``factor``."""
    high_freq_factor: float | None = None
    """llama3: turns above which a pair is unchanged."""
    alpha: float | None = None
    """ntk_alpha: constant growth of theta (HunYuan)."""
    inv_freq_table: Sequence[float] | None = None
    """inv_freq: the caller's frequencies in radians per position."""
    mrope_section: Sequence[int] | None = None
    """Pairs per position row; three at most, but any number with ``inv_freq``."""
    axis_map: AxisMapName | None = None
    """One of :data:`rope_kernels.rotation.AXIS_MAPS`, how the position rows share the pairs."""
    pairing: PairingName = "half"
    """One of :data:`rope_kernels.rotation.PAIRINGS`."""
    phase: PhaseName = "exact"
    """One of :data:`rope_kernels.rotation.PHASES`."""
    table_dtype: TableDtypeName | None = None
    """One of :data:`rope_kernels.rotation.TABLE_DTYPES`, to round cos and sin as a trainer did."""
    extra: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    """Keys of registered types that are not fields here, stored as sorted ``(key, value)`` pairs."""
    strict: bool = field(default=True, compare=False)
    """Whether a value that transformers only logs about is an error; otherwise it is a warning."""
    provenance: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where the value of a field came from, for ``explain()``."""

    @property
    def ladder_dim(self) -> int:
        """``int(head_dim * partial_rotary_factor)``, the ``d`` of ``theta ** (-2 j / d)``; may be odd."""
        return int(self.head_dim * self.partial_rotary_factor)

    def given(self) -> dict[str, Any]:
        """The fields that differ from their defaults, ``strict`` and ``provenance`` left out."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.compare and getattr(self, f.name) != f.default}
