"""Reads a ``RoPE.Config`` of torchtitan into a RopeConfig."""

from __future__ import annotations

from typing import Any

from ...config import RopeConfig
from ...errors import RopeConfigError

__all__ = ["config_of"]


def config_of(cfg: Any, pairing: str) -> RopeConfig:
    """The RopeConfig with the frequencies of ``cfg``.

    torchtitan multiplies YaRN's attention factor into the model's softmax scale, so it is 1 here.

    Args:
        cfg: a ``RoPE.Config`` of torchtitan 0.3.
        pairing: "interleaved" for ComplexRoPE, "half" for CosSinRoPE.

    Raises:
        RopeConfigError: a value is wrong, or ``scaling`` is none of "none", "llama" and "yarn".
    """
    fields: dict[str, Any] = dict(head_dim=cfg.dim, rope_theta=cfg.theta, pairing=pairing)
    sections = getattr(cfg, "mrope_section", None)
    if sections is not None:
        fields |= dict(rope_type="mrope", mrope_section=list(sections), axis_map="interleaved")
    return RopeConfig(**fields | _scaling_of(cfg))


def _scaling_of(cfg: Any) -> dict[str, Any]:
    if cfg.scaling == "none" or (cfg.scaling == "yarn" and cfg.rope_factor <= 1.0):
        return {}
    if cfg.scaling == "llama":
        return dict(
            rope_type="llama3", factor=cfg.scaling_factor, low_freq_factor=cfg.low_freq_factor,
            high_freq_factor=cfg.high_freq_factor,
            original_max_position_embeddings=cfg.original_max_position_embeddings,
        )  # fmt: skip
    if cfg.scaling == "yarn":
        return dict(
            rope_type="yarn", factor=cfg.rope_factor, beta_fast=cfg.beta_fast, beta_slow=cfg.beta_slow,
            original_max_position_embeddings=cfg.original_seq_len, truncate=cfg.truncate, attention_factor=1.0,
        )  # fmt: skip
    raise RopeConfigError("scaling", f"got {cfg.scaling!r}, must be 'none', 'llama' or 'yarn'")
