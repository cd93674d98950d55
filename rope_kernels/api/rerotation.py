"""Re-rotate cached keys: to the frequencies of another sequence length, or by a shift of positions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import RopeConfig
from ..core.layouts import LAYOUTS
from ..core.names import LayoutName
from ..errors import RopeShapeError
from . import checks
from .prepare import prepare, refuse_derivative, rotate_in_place
from .sharding import Shards, is_distributed, mark_written

__all__ = ["rerotate_", "shift_"]


def rerotate_(
    k: Tensor,
    positions: Tensor | None,
    cfg: RopeConfig,
    *,
    from_seq_len: int | Tensor,
    to_seq_len: int | Tensor,
    interleaved: bool | None = None,
    layout: LayoutName = "bshd",
    offset: int | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Re-rotate keys in the KV cache from the frequencies of one length to those of another, in place.

    When a sequence outgrows ``original_max_position_embeddings``, longrope and dynamic change all frequencies, and keys
    that were cached before no longer match. This rotates them by the difference of the phases, exact to one rounding in
    k's dtype. The result is not that of a new prefill: the keys of deeper layers also depend on what earlier layers'
    attention computed with the old frequencies, and that does not change. Every call rounds; for 16-bit keys that
    change often see :func:`shift_`.

    The keys keep their attention scaling. If it differs between the two lengths (PhiMoE's ``short_mscale`` and
    ``long_mscale``), scale them as well. If no frequency depends on a length, k stays unchanged.

    Args:
        k: rotated keys, in a layout and dtype of :func:`apply_rope`.
        positions: in tokens, the positions the keys were rotated to; shapes as in :func:`apply_rope`, ``None`` counts.
        cfg: the config the keys were rotated by.
        from_seq_len: in tokens, the length they were rotated with: an int, a scalar tensor, (batch,), or (sequences,)
            with ``cu_seqlens``. Never read back to the host.
        to_seq_len: in tokens, the length whose frequencies they get; shapes as ``from_seq_len``.
        interleaved: as given to :func:`apply_rope`. Keys of "interleaved_to_half" are read as written: halves.
        layout: "bshd", "bhsd", "sbhd" or "thd".
        offset: as in :func:`apply_rope`.
        cu_seqlens: as in :func:`apply_rope`.

    Returns:
        The same k.

    Raises:
        RopeShapeError: a tensor does not fit; nothing has been written.
        RuntimeError: k needs a gradient.
    """
    _check_keys(k, cfg, layout)
    if is_distributed(k):
        refuse_derivative(k, None)
        shards = Shards.of(k, layout, "k")
        rerotate_(
            shards.local(k), shards.positions(positions, cu_seqlens), cfg, interleaved=interleaved, layout=layout,
            from_seq_len=shards.per_sequence("from_seq_len", from_seq_len), cu_seqlens=cu_seqlens,
            to_seq_len=shards.per_sequence("to_seq_len", to_seq_len), offset=shards.per_sequence("offset", offset),
        )  # fmt: skip
        mark_written(k)
        return k
    args = prepare(
        k, None, positions, cfg, _written(cfg, interleaved), layout, to_seq_len, offset, cu_seqlens,
        from_seq_len=from_seq_len, unscaled=True,
    )  # fmt: skip
    if cfg.depends_on_length:
        rotate_in_place(k, None, args)
    return k


def shift_(
    k: Tensor,
    delta: int | Tensor,
    cfg: RopeConfig,
    *,
    seq_len: int | Tensor | None = None,
    interleaved: bool | None = None,
    layout: LayoutName = "bshd",
) -> Tensor:
    """Move keys in the KV cache by ``delta`` positions, in place, for a context shift or a reused prefix.

    Rotations of one frequency add up, so keys rotated to p become those rotated to p + delta, exact to one rounding in
    k's dtype. They keep their attention scaling. As with :func:`rerotate_`, the result is not that of a new prefill.

    Do not shift 16-bit keys again and again: each call rounds, and a step too small for the dtype is lost. After 500
    shifts by -1 the slow pairs of bf16 keys have hardly moved, and the keys are off by a quarter of their norm; after
    one shift by -500 they are off by two roundings. Keep the unrotated keys and rotate them to their present positions,
    or keep the keys as first rotated and shift a copy by the sum ("A sliding window" in docs/long-context.md).

    Args:
        k: rotated keys, in a layout and dtype of :func:`apply_rope`.
        delta: in tokens, negative towards the start: an int, a scalar tensor, (batch, 1), or any shape that
            :func:`apply_rope` takes for positions.
        cfg: the config the keys were rotated by.
        seq_len: the length they were rotated with; needed if the frequencies depend on it (longrope, dynamic).
        interleaved: as given to :func:`apply_rope`. Keys of "interleaved_to_half" are read as written: halves.
        layout: "bshd", "bhsd", "sbhd" or "thd".

    Returns:
        The same k.

    Raises:
        RopeShapeError: a tensor does not fit, or ``seq_len`` is missing; nothing has been written.
        RuntimeError: k needs a gradient.
    """
    token_axis = _check_keys(k, cfg, layout)
    if cfg.depends_on_length and seq_len is None:
        raise RopeShapeError(f"seq_len: missing; {cfg.rope_type} keys are moved with the length they were rotated with")
    if not isinstance(delta, Tensor):
        checks.index_vector("delta", delta, k, ())
        delta = torch.full((), delta, dtype=torch.int64, device=k.device)
    if delta.dim() == 0 or (delta.dim() == 2 and delta.shape[1] == 1 and layout != "thd"):
        delta = delta.expand(*delta.shape[:1], k.shape[token_axis])
    if is_distributed(k):
        refuse_derivative(k, None)
        shards = Shards.of(k, layout, "k")
        rows, length = shards.positions(delta, name="delta"), shards.per_sequence("seq_len", seq_len)
        assert rows is not None
        shift_(shards.local(k), rows, cfg, seq_len=length, interleaved=interleaved, layout=layout)
        mark_written(k)
        return k
    args = prepare(k, None, delta, cfg, _written(cfg, interleaved), layout, seq_len, unscaled=True)
    rotate_in_place(k, None, args)
    return k


def _check_keys(k: Tensor, cfg: RopeConfig, layout: str) -> int:
    """Check the arguments of both calls and return k's axis of tokens."""
    checks.check_config(cfg, layout)
    checks.check_heads("k", k, cfg.head_dim, layout)
    return LAYOUTS[layout].tokens


def _written(cfg: RopeConfig, interleaved: bool | None) -> bool | None:
    """``interleaved`` for keys that are already rotated: those of "interleaved_to_half" are halves."""
    if interleaved is None and cfg.pairing == "interleaved_to_half":
        return False
    return interleaved
