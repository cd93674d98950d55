"""apply_rope and apply_rope_: rotate q and k by a config.

Each call has two doors. The fast door does the call, or returns ``None`` without writing anything; it raises no error.
The checked door (:mod:`.prepare`) then does the call, or raises the error.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor
from torch.compiler import is_compiling

from ..config import RopeConfig
from ..core.names import LayoutName
from ..core.spec import text_of
from ..ops import autograd, direct, plain
from ..ops.in_place_autograd import rotate_recorded_
from . import checks
from .forms import rotate_other_form
from .head_norm import HeadNorm
from .normed import NormedCall, rotate_normed
from .prepare import prepare, refuse_derivative, refuse_derivative_of_outputs, rotate_in_place, write_outputs
from .sharding import is_distributed, mark_written, rotate_shards

__all__ = ["apply_rope", "apply_rope_", "usual_text"]

# A second cache, for the fast door only: Dynamo warns of every lru_cache that it traces, and never traces this door.
_cached_text_of = lru_cache(maxsize=1024)(text_of)


def apply_rope(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor | None,
    cfg: RopeConfig,
    *,
    interleaved: bool | None = None,
    layout: LayoutName = "bshd",
    seq_len: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    inverse: bool = False,
    out: tuple[Tensor, Tensor | None] | None = None,
    q_norm: HeadNorm | None = None,
    k_norm: HeadNorm | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Rotate q and k to their positions, in one fused call without a cos/sin table.

    Args:
        q: (batch, seq, q_heads, head_dim) for "bshd", (batch, q_heads, seq, head_dim) for "bhsd", (seq, batch,
            q_heads, head_dim) for "sbhd", (tokens, q_heads, head_dim) for "thd"; float32, float16 or bfloat16; the
            last stride must be 1, the others are free. Also flat, (..., q_heads * head_dim), with grouped heads,
            (..., groups, heads of a group, head_dim), and (1, tokens, q_heads, head_dim) with ``cu_seqlens``.
        k: as q with its own number of heads, or ``None``.
        positions: in tokens; int32 or int64 (floating: fractional coordinates): (seq,), (1 or batch, seq) or, "thd",
            (tokens,). With several axes (axes, 1 or batch, seq) or (axes, tokens); positions with fewer dimensions
            serve all axes. ``None`` counts from 0 in each sequence.
        cfg: the RoPE config.
        interleaved: ``True``: GPT-J style, 2 i with 2 i + 1; ``False``: GPT-NeoX style, halves; both as read and as
            written. ``None``: the config's pairing.
        layout: "bshd", "bhsd", "sbhd" or "thd".
        seq_len: in tokens, the length that chooses the frequencies of longrope and dynamic: an int, a scalar tensor,
            (batch,), or (sequences,) with ``cu_seqlens``. ``None`` is max(position) + 1 over the whole call. Never
            read back to the host.
        offset: added to counted positions: an int, a scalar tensor, (batch,), or (sequences,) with ``cu_seqlens``.
        cu_seqlens: int32 or int64 (sequences + 1,) bounds of packed sequences ("thd"), from 0; tokens past the last
            bound are copied.
        inverse: apply the adjoint: rotate back, and apply attention scaling again.
        out: (q_out, k_out) to write to, which may be (q, k); returned as given.
        q_norm: norm the heads of q in the same call; see :class:`HeadNorm`.
        k_norm: the same for k.

    Returns:
        (q, k) rotated, each in its input's dtype, rounded once; ``(q, None)`` without k.

    Raises:
        RopeShapeError: a tensor does not fit, or a norm is given with ``inverse``; nothing has been written.
        RuntimeError: ``out`` was given and a gradient is needed.
    """
    text = usual_text(cfg, interleaved, layout, inverse)
    if q_norm is not None or k_norm is not None:
        options = NormedCall(interleaved, layout, seq_len, offset, cu_seqlens, inverse, q_norm, k_norm)
        return rotate_normed(apply_rope, q, k, positions, cfg, options, text, out)
    if text is not None and out is None:
        made = direct.rotate(q, k, positions, offset, seq_len, cu_seqlens, text)
        if made is None and seq_len is offset is cu_seqlens is None and not cfg.depends_on_length:
            made = autograd.rotate_unchecked(q, k, positions, text)
        if made is not None:
            return made
    elif (
        text is not None and type(out) is tuple and len(out) == 2
        and direct.rotate_out(q, k, positions, offset, seq_len, cu_seqlens, text, *out)
    ):  # fmt: skip
        return out
    if seq_len is cu_seqlens is None:
        made = plain.rotate(q, k, positions, offset, text, out)
        if made is not None:
            return made
    return _rotate_checked(q, k, positions, cfg, interleaved, layout, seq_len, offset, cu_seqlens, inverse, out)


def apply_rope_(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor | None,
    cfg: RopeConfig,
    *,
    interleaved: bool | None = None,
    layout: LayoutName = "bshd",
    seq_len: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    inverse: bool = False,
    q_norm: HeadNorm | None = None,
    k_norm: HeadNorm | None = None,
) -> tuple[Tensor, Tensor | None]:
    """:func:`apply_rope`, in place.

    Where a gradient is needed, it is recorded, as torch's own operators in place are; a view costs a copy then. Not
    with norms.

    Returns:
        The same q and k.

    Raises:
        RopeShapeError: a tensor does not fit, or a view would be written twice; nothing has been written.
        RuntimeError: q or k is a leaf that requires a gradient, or with norms q, k or a weight needs one.
    """
    text = usual_text(cfg, interleaved, layout, inverse)
    if q_norm is not None or k_norm is not None:
        options = NormedCall(interleaved, layout, seq_len, offset, cu_seqlens, inverse, q_norm, k_norm)
        return rotate_normed(apply_rope_, q, k, positions, cfg, options, text, (q, k))
    if text is None or not direct.rotate_(q, k, positions, offset, seq_len, cu_seqlens, text):
        usual = seq_len is cu_seqlens is None
        if not usual or plain.rotate(q, k, positions, offset, text, (q, k)) is None:
            _rotate_in_place_checked(q, k, positions, cfg, interleaved, layout, seq_len, offset, cu_seqlens, inverse)
    return q, k


def usual_text(cfg: RopeConfig, interleaved: bool | None, layout: str, inverse: bool) -> str | None:
    """The operator's text for the fast door; ``None`` if that door cannot take the call, or the call is traced."""
    if is_compiling() or not (interleaved is None or isinstance(interleaved, bool)):
        return None
    if not isinstance(layout, str) or not isinstance(inverse, bool):
        return None
    specs: dict[bool | None, str] | None = getattr(cfg, "specs", None)
    return _cached_text_of(specs[interleaved], layout, inverse) if specs and interleaved in specs else None


def _rotate_checked(
    q: Tensor, k: Tensor | None, positions: Tensor | None, cfg: RopeConfig, interleaved: bool | None, layout: str,
    seq_len: int | Tensor | None, offset: int | Tensor | None, cu_seqlens: Tensor | None, inverse: bool,
    out: tuple[Tensor, Tensor | None] | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    options: dict[str, Any] = dict(interleaved=interleaved, inverse=inverse)
    given = dict(layout=layout, seq_len=seq_len, offset=offset, cu_seqlens=cu_seqlens)
    made = rotate_other_form(apply_rope, q, k, positions, cfg, options | given, out, False)
    if made is not None:
        return made
    if is_distributed(q):
        if out is not None:
            refuse_derivative_of_outputs(q, k, out)
        return rotate_shards(apply_rope, q, k, positions, cfg, layout, seq_len, offset, cu_seqlens, options, out)
    args = prepare(q, k, positions, cfg, interleaved, layout, seq_len, offset, cu_seqlens, inverse)
    if out is None:
        q_out, k_out = autograd.rotate(q, k, args)
        return q_out, None if k is None else k_out
    write_outputs(q, k, out, args)
    return out


def _rotate_in_place_checked(
    q: Tensor, k: Tensor | None, positions: Tensor | None, cfg: RopeConfig, interleaved: bool | None, layout: str,
    seq_len: int | Tensor | None, offset: int | Tensor | None, cu_seqlens: Tensor | None, inverse: bool,
) -> None:  # fmt: skip
    options: dict[str, Any] = dict(interleaved=interleaved, inverse=inverse)
    given = dict(layout=layout, seq_len=seq_len, offset=offset, cu_seqlens=cu_seqlens)
    if rotate_other_form(apply_rope_, q, k, positions, cfg, options | given, None, True) is not None:
        return
    if is_distributed(q):
        refuse_derivative(q, k)
        rotate_shards(apply_rope_, q, k, positions, cfg, layout, seq_len, offset, cu_seqlens, options)
        mark_written(q, k)
        return
    args = prepare(q, k, positions, cfg, interleaved, layout, seq_len, offset, cu_seqlens, inverse)
    if autograd.is_differentiated(q, k) or autograd.differentiates_positions(args.positions):
        if not is_compiling():
            checks.check_in_place(q, k)
        rotate_recorded_(q, k, args)
    else:
        rotate_in_place(q, k, args)
