"""apply_rope_cached_: rotates q and k by rows of a cos/sin table, as serving engines keep one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..core import rotation
from ..core.names import LayoutName, MropeMapName
from ..errors import RopeShapeError
from ..ops import autograd, direct
from ..ops.cached_operators import CachedArguments, check_rows, rotate_cached_, rotate_cached_out
from . import checks
from .overlap import has_memory
from .sharding import is_distributed

__all__ = ["apply_rope_cached_"]

Pair = tuple[Tensor, "Tensor | None"]


def apply_rope_cached_(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor,
    cos_sin_cache: Tensor | tuple[Tensor, Tensor],
    *,
    rotary_dim: int | None = None,
    interleaved: bool = False,
    layout: LayoutName = "thd",
    out: Pair | None = None,
    mrope_section: Sequence[int] | None = None,
    axis_map: MropeMapName = "contiguous",
) -> Pair:
    """Rotate q and k in place by the rows of a table that their positions name: the call of serving engines.

    vLLM, SGLang and FlashInfer keep the table as one tensor, flash-attn and FLA as two. A kernel gathers the rows; no
    table of the call's tokens is made, but for mrope. The table's rounding and range are the caller's:
    :func:`rope_kernels.apply_rope` needs no table and is exact at every position.

    On a CPU a position without a row is an error, and nothing is written; on a GPU such a token is not rotated.

    Args:
        q: (tokens, heads, head_dim), or as ``layout`` says: float32, float16 or bfloat16, with last stride 1.
        k: as q with its own number of heads, or ``None``.
        positions: int32 or int64, (tokens,); with a batch (seq,) or (batch or 1, seq); with ``mrope_section`` one more
            axis in front, (axes, tokens).
        cos_sin_cache: (max_positions, rotary_dim), cosines of all pairs, then their sines; or a pair (cos, sin), each
            (max_positions, rotary_dim / 2). Any floating dtype.
        rotary_dim: the first ``rotary_dim`` channels of a head are rotated. ``None``: as wide as the table says; a
            number must agree with it.
        interleaved: pairs are neighbours, (2 i, 2 i + 1) (GPT-J style), instead of halves (GPT-NeoX style).
        layout: "thd", "bshd", "bhsd" or "sbhd", as in :func:`rope_kernels.apply_rope`.
        out: (q_out, k_out) to write to instead; returned as given.
        mrope_section: pairs of each axis of positions, as in the model's config; ``None``: one axis.
        axis_map: which axis each pair takes: "contiguous" (Qwen2-VL), "interleaved" (Qwen3-VL) or "ernie".

    Returns:
        The same q and k, or ``out``.

    Raises:
        RopeShapeError: a tensor does not fit; nothing has been written.
        RuntimeError: q, k or the table needs a gradient.
    """
    if mrope_section is None and isinstance(interleaved, bool) and not is_compiling():
        made = _past_dispatcher(q, k, positions, cos_sin_cache, rotary_dim, interleaved, layout, out)
        if made is not None:
            return made
    checks.check_layout(layout)
    checks.check_flag("interleaved", interleaved)
    cos, sin = _checked_table(q, cos_sin_cache, rotary_dim)
    checks.check_qk(q, k, q.shape[-1], layout)
    checks.check_position_rows(positions, q, layout, 1 if mrope_section is None else len(mrope_section))
    if mrope_section is not None:
        positions, cos, sin = _rows_of_axes(positions, cos, sin, mrope_section, axis_map)
    return _rotate(q, k, CachedArguments(positions, cos, sin, _pairing(interleaved), layout), out)


def _pairing(interleaved: bool) -> str:
    return "interleaved" if interleaved else "half"


def _past_dispatcher(
    q: Tensor, k: Tensor | None, positions: Tensor, table: Tensor | tuple[Tensor, Tensor], rotary_dim: int | None,
    interleaved: bool, layout: str, out: Pair | None,
) -> Pair | None:  # fmt: skip
    """The call by the fast path; ``None``, with nothing written, if that does not take it."""
    if type(table) is tuple and len(table) == 2:
        cos, sin = table
    elif type(table) is Tensor:
        cos, sin = table, None
    else:
        return None
    written = (q, k) if out is None else out
    if type(written) is not tuple or len(written) != 2:
        return None
    done = direct.rotate_cached(q, k, positions, cos, sin, rotary_dim, _pairing(interleaved), layout, *written)
    return written if done else None


def _checked_table(q: Tensor, table: Tensor | tuple[Tensor, Tensor], rotary_dim: int | None) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (max_positions, rotary_dim / 2) each."""
    checks.check_tensor("q", q)
    if is_distributed(q):
        raise RopeShapeError("q: is a DTensor; rotate its local part, q.to_local(), or call apply_rope")
    cos, sin = _halves(table)
    for name, side in (("cos", cos), ("sin", sin)):
        if side.dtype not in checks.TABLE_DTYPES:
            raise RopeShapeError(
                f"cos_sin_cache: {name} is {side.dtype}, allowed are float32, float64, float16, bfloat16"
            )
        if side.device != q.device:
            raise RopeShapeError(f"cos_sin_cache: {name} is on {side.device}, must be on q's {q.device}")
    if cos.shape != sin.shape or cos.dtype != sin.dtype:
        raise RopeShapeError(
            f"cos_sin_cache: sin is {tuple(sin.shape)} {sin.dtype}, must be cos's {tuple(cos.shape)} {cos.dtype}"
        )
    width, head_dim = 2 * cos.shape[1], q.shape[-1] if q.dim() else 0
    if cos.shape[0] == 0 or not 0 < width <= head_dim:
        raise RopeShapeError(
            f"cos_sin_cache: has {cos.shape[0]} rows for {width} channels, must have one or more rows for an even "
            f"number of channels from 2 to q's head_dim {head_dim}"
        )
    if rotary_dim is not None and (isinstance(rotary_dim, bool) or rotary_dim != width):
        hint = "; give cos[:, :rotary_dim // 2] and sin[:, :rotary_dim // 2]" if 2 * rotary_dim == width else ""
        raise RopeShapeError(f"rotary_dim: got {rotary_dim!r}, the table is for {width} channels{hint}")
    return cos, sin


def _halves(table: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if isinstance(table, (tuple, list)) and len(table) == 2:
        sides = tuple(table)
    else:
        checks.check_tensor("cos_sin_cache", table)
        sides = (table,)
    for side in sides:
        checks.check_tensor("cos_sin_cache", side)
        if side.dim() != 2 or (len(sides) == 1 and side.shape[1] % 2):
            raise RopeShapeError(
                f"cos_sin_cache: shape {tuple(side.shape)}, must be (max_positions, rotary_dim), cosines then sines, "
                "or a pair of (max_positions, rotary_dim / 2)"
            )
    if len(sides) == 2:
        return sides[0], sides[1]
    cos, sin = sides[0].chunk(2, -1)
    return cos, sin


def _rows_of_axes(
    positions: Tensor, cos: Tensor, sin: Tensor, section: Sequence[int], name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(positions, cos, sin) of one axis, whose table has a row for each token: its pairs' entries on their axes."""
    if name not in rotation.MROPE_MAPS:
        raise RopeShapeError(f"axis_map: got {name!r}, allowed are {', '.join(rotation.MROPE_MAPS)}")
    if positions.is_cpu and positions.numel() and has_memory(positions) and not is_compiling():
        check_rows(positions, cos.shape[0])
    axes = torch.tensor(rotation.axis_map(name, cos.shape[1], section).axis, device=positions.device)
    has_row = ((positions >= 0) & (positions < cos.shape[0])).all(0)
    rows = positions.long().clamp(0, cos.shape[0] - 1).flatten(1)
    pair = torch.arange(cos.shape[1], device=positions.device)
    of_token = rows[axes].T  # (tokens, pairs)
    counted = torch.arange(rows.shape[1], device=positions.device).view(positions.shape[1:])
    return torch.where(has_row, counted, -1), cos[of_token, pair], sin[of_token, pair]


def _rotate(q: Tensor, k: Tensor | None, args: CachedArguments, out: Pair | None) -> Pair:
    written = (q, k) if out is None else out
    if out is not None:
        checks.check_outputs(q, k, out)
        checks.check_outputs_apart(q, k, out)
    elif not is_compiling():
        checks.check_in_place(q, k)
    needed = autograd.is_differentiated(q, k) or autograd.needs_gradient(args.cos, args.sin)
    if needed or autograd.needs_gradient(*written):
        raise RuntimeError(
            "apply_rope_cached_: a derivative is needed, which writing in place would lose; use apply_rotary_pos_emb"
        )
    if out is None:
        rotate_cached_(q, k, *args)
    else:
        rotate_cached_out(q, k, *args, *out)
    if not is_compiling():
        torch._C._increment_version([x for x in written if x is not None])
    return written
