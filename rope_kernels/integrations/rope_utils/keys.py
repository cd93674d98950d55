"""Which rope parameters transformers expects with each type."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KEYS", "Keys"]


@dataclass(frozen=True)
class Keys:
    """A rope type's keys besides ``rope_type``, ``rope_theta`` and ``partial_rotary_factor``, which all types have.

    Attributes:
        required: computation and validation fail without them; in the order of reading.
        optional: validation accepts them.
        needs_theta: whether validation fails without ``rope_theta``; computation always does.
    """

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    needs_theta: bool = False


_ORIGINAL = "original_max_position_embeddings"
KEYS = {
    "default": Keys(),
    "axial": Keys(),
    "linear": Keys(("factor",)),
    "dynamic": Keys(("factor",)),
    "yarn": Keys(
        ("factor", _ORIGINAL), ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
    ),
    "longrope": Keys(("long_factor", "short_factor", _ORIGINAL), ("attention_factor", "factor")),
    "llama3": Keys(("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL), needs_theta=True),
    "proportional": Keys(needs_theta=True),
}
