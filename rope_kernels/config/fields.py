"""The values of a config as plain fields, under HuggingFace's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

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

    Attributes:
        head_dim: channels of a head, the last axis of q.
        rope_type: a name in :data:`rope_kernels.rope_types.ROPE_TYPES`.
        rope_theta: base of the frequency ladder.
        partial_rotary_factor: share of ``head_dim`` that is rotated, over 0 and at most 1.
        rotary_offset: channels before the first rotated one.
        max_position_embeddings: longest trained sequence, in tokens.
        original_max_position_embeddings: the same before the context was extended.
        factor: how many times the context was extended.
        attention_factor: multiplies cos and sin (``None``: what the type prescribes). ``attn_factor`` of a HuggingFace
            config multiplies what yarn prescribes.
        beta_fast: yarn, turns over the original context above which a pair is unchanged.
        beta_slow: yarn, turns below which a pair is divided by ``factor``.
        mscale: yarn, DeepSeek's numerator of the attention factor.
        mscale_all_dim: yarn, its denominator.
        truncate: yarn, whether the ramp's ends are rounded to whole indices (``None``: they are).
        short_factor: longrope, a divisor per pair up to the original context.
        long_factor: longrope, a divisor per pair beyond it.
        short_mscale: longrope, attention factor up to the original context (PhiMoE).
        long_mscale: longrope, attention factor beyond it (PhiMoE).
        low_freq_factor: llama3, turns over the original context below which a pair is divided by ``factor``.
        high_freq_factor: llama3, turns above which a pair is unchanged.
        alpha: ntk_alpha, constant growth of theta (HunYuan).
        inv_freq_table: inv_freq, the caller's frequencies in radians per position.
        mrope_section: pairs per position row; three at most, but any number with ``inv_freq``.
        axis_map: one of :data:`rope_kernels.rotation.AXIS_MAPS`, how the position rows share the pairs.
        pairing: one of :data:`rope_kernels.rotation.PAIRINGS`.
        phase: one of :data:`rope_kernels.rotation.PHASES`.
        table_dtype: one of :data:`rope_kernels.rotation.TABLE_DTYPES`, to round cos and sin as a trainer did.
        extra: keys of registered types that are not fields here, stored as sorted ``(key, value)`` pairs.
        strict: whether a value that transformers only logs about is an error; otherwise it is a warning.
        provenance: where the value of a field came from, for ``explain()``.
    """

    head_dim: int
    rope_type: str = "default"
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 1.0
    rotary_offset: int = 0
    max_position_embeddings: int | None = None
    original_max_position_embeddings: int | None = None
    factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    short_factor: Sequence[float] | None = None
    long_factor: Sequence[float] | None = None
    short_mscale: float | None = None
    long_mscale: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    alpha: float | None = None
    inv_freq_table: Sequence[float] | None = None
    mrope_section: Sequence[int] | None = None
    axis_map: str | None = None
    pairing: str = "half"
    phase: str = "exact"
    table_dtype: str | None = None
    extra: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    strict: bool = field(default=True, compare=False)
    provenance: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def ladder_dim(self) -> int:
        """``int(head_dim * partial_rotary_factor)``, the ``d`` of ``theta ** (-2 j / d)``; may be odd."""
        return int(self.head_dim * self.partial_rotary_factor)

    def given(self) -> dict[str, Any]:
        """The fields that differ from their defaults, ``strict`` and ``provenance`` left out."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.compare and getattr(self, f.name) != f.default}
