"""apply_rotary_pos_emb: transformers' rotation by the caller's cos/sin table, as one fused kernel."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ..core.layouts import LAYOUTS
from ..core.rotation import PAIRINGS
from ..errors import RopeShapeError, RopeTableWarning
from ..ops import direct, plain
from ..ops.table_autograd import TableArguments, rotate_table
from . import checks
from .sharding import is_distributed, refuse_mixed
from .sizes import is_known, same

__all__ = ["apply_rotary_pos_emb"]

_LAYOUTS = {(axes.rank, axes.heads): name for name, axes in LAYOUTS.items() if name != "sbhd"}
"""Layout by the rank of q and the axis of its heads, which cos and sin lack. Their batch comes first."""


def apply_rotary_pos_emb(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1, *, interleaved: bool = False,
    table_width: Literal["full", "half"] | None = None,
    pairing: Literal["half", "interleaved", "interleaved_to_half"] | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Drop-in for transformers' function of this name: ``q * cos + rotate_half(q) * sin``, rounded once.

    Args:
        q: (batch, heads, seq, head_dim) with ``unsqueeze_dim=1``, (batch, seq, heads, head_dim) with 2, or (tokens,
            heads, head_dim) with a (tokens, rotary_dim) table and 1; float32, float16 or bfloat16.
        k: as q with its own number of heads, or ``None``.
        cos: (batch or 1, seq, rotary_dim) or, for all of the batch, (seq, rotary_dim); any floating dtype. The first
            ``rotary_dim`` channels of a head are rotated. The two entries of a pair may differ.
        sin: like cos.
        unsqueeze_dim: where cos and sin lack the heads of q; may be negative.
        interleaved: pairs are neighbours, (2 i, 2 i + 1) (GPT-J style), instead of halves (GPT-NeoX style).
        table_width: "full", an entry per rotated channel, as transformers has it; "half", an entry per pair, as
            flash-attn, vLLM, SGLang, FlashInfer and ONNX have it: cos and sin are then (..., rotary_dim / 2). ``None``
            is "full", with a warning where the table is half as wide as a head and could be either.
        pairing: instead of ``interleaved``; "interleaved_to_half" reads neighbours and writes halves, as DeepSeek's
            models do; its table is in the order of the output.

    Returns:
        (q, k) rotated. Gradients reach q, k, cos and sin; q and k are kept for backward only if cos or sin needs one.

    Raises:
        RopeShapeError: a tensor does not fit.
    """
    if pairing is not None:
        pairing = _checked_pairing(pairing, interleaved)
    elif isinstance(interleaved, bool):
        pairing = "interleaved" if interleaved else "half"
    if (table_width is None or table_width == "full") and pairing is not None and not is_compiling():
        made = direct.rotate_table(q, k, cos, sin, unsqueeze_dim, pairing, table_width == "full")
        if made is None:
            made = plain.rotate_table(q, k, cos, sin, unsqueeze_dim, pairing, table_width == "full")
        if made is not None:
            return made
    checks.check_flag("interleaved", interleaved)
    return _rotate_checked(q, k, cos, sin, unsqueeze_dim, pairing or "half", table_width)


def _checked_pairing(pairing: str, interleaved: bool) -> Any:
    if pairing not in PAIRINGS:
        raise RopeShapeError(f"pairing: got {pairing!r}, allowed are {', '.join(PAIRINGS)}")
    if interleaved is not False and pairing != "interleaved":
        raise RopeShapeError(f"interleaved: got {interleaved!r} with pairing={pairing!r}")
    return pairing


def _rotate_checked(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, unsqueeze_dim: int, pairing: str,
    table_width: str | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The checked door: does the calls that the fast path refuses, and raises all errors."""
    if table_width not in (None, "full", "half"):
        raise RopeShapeError(f"table_width: got {table_width!r}, allowed are 'full', 'half' and None")
    for name, x in (("q", q), ("cos", cos), ("sin", sin)):
        checks.check_tensor(name, x)
    if is_distributed(q):
        raise RopeShapeError("q: is a DTensor; rotate its local part, q.to_local(), or call apply_rope")
    refuse_mixed(k=k, cos=cos, sin=sin)
    layout = _layout(q, cos, unsqueeze_dim)
    checks.check_qk(q, k, q.shape[-1], layout)
    if table_width == "half":
        cos, sin = _per_channel(cos, pairing == "interleaved"), _per_channel(sin, pairing == "interleaved")
    _check_table(q, cos, sin, layout)
    if table_width is None and 2 * cos.shape[-1] == q.shape[-1]:
        _warn_of_half_a_head(cos.shape[-1])
    wide_cos, wide_sin = (t if t.dim() == 3 else t.unsqueeze(0) for t in (cos, sin))
    q_out, k_out = rotate_table(q, k, TableArguments(wide_cos, wide_sin, cos.shape[-1], pairing, layout, False))
    return q_out, None if k is None else k_out


def _per_channel(table: Tensor, interleaved: bool) -> Tensor:
    """A table with an entry per pair, widened to an entry per channel. A scalar stays one, for the check to refuse."""
    if table.dim() == 0:
        return table
    return table.repeat_interleave(2, -1) if interleaved else torch.cat((table, table), -1)


def _warn_of_half_a_head(width: int) -> None:
    # Always from this line, so that Python's own filter shows it once.
    warnings.warn(
        f"cos, sin: {width} entries for heads of {2 * width} channels are taken as one per channel, so half of each "
        "head is rotated; if they are one per pair, pass table_width='half', and if not, table_width='full'",
        RopeTableWarning,
        stacklevel=1,
    )


def _layout(q: Tensor, cos: Tensor, unsqueeze_dim: int) -> str:
    if not isinstance(unsqueeze_dim, int):
        raise RopeShapeError(f"unsqueeze_dim: got {unsqueeze_dim!r}, an int is needed")
    dim = unsqueeze_dim if unsqueeze_dim >= 0 else unsqueeze_dim + cos.dim() + 1
    if cos.dim() == 2:
        dim += q.dim() - 3
    if cos.dim() not in (2, 3) or (q.dim(), dim) not in _LAYOUTS or (q.dim() == 3 and cos.dim() == 3):
        raise RopeShapeError(
            f"unsqueeze_dim: got {unsqueeze_dim} with cos {tuple(cos.shape)} and q {tuple(q.shape)}; allowed with a "
            "4-dimensional q are 1 and 2, or 0 and 1 if cos is (seq, rotary_dim); with a 3-dimensional q 1 and a "
            "(tokens, rotary_dim) table"
        )
    return _LAYOUTS[q.dim(), dim]


def _meant(name: str, table: Tensor) -> str:
    """What to do with a (seq, 1, rotary_dim) table, which Megatron and TransformerEngine have."""
    if table.dim() != 3 or not is_known(table.shape[1] == 1):
        return ""
    return (
        f"; if it is (seq, 1, rotary_dim), pass {name}.transpose(0, 1); q of (seq, batch, heads, head_dim) is "
        "not taken by a table: pass q.transpose(0, 1) and k.transpose(0, 1) with unsqueeze_dim=2"
    )


def _check_table(q: Tensor, cos: Tensor, sin: Tensor, layout: str) -> None:
    axes = LAYOUTS[layout]
    batch, tokens = 1 if axes.batch is None else q.shape[axes.batch], q.shape[axes.tokens]
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dtype not in checks.TABLE_DTYPES:
            raise RopeShapeError(f"{name}: dtype {table.dtype}, allowed are float32, float64, float16, bfloat16")
        if table.device != q.device:
            raise RopeShapeError(f"{name}: on {table.device}, must be on q's {q.device}")
        if table.dim() < 2:
            raise RopeShapeError(f"{name}: shape {tuple(table.shape)}, must be cos's {tuple(cos.shape)}")
        fits = same(table.shape[-2], tokens)
        fits = fits and (table.dim() == 2 or is_known(table.shape[0] == 1) or same(table.shape[0], batch))
        width = table.shape[-1]
        if not fits or not 0 < width <= q.shape[-1] or width % 2:
            raise RopeShapeError(
                f"{name}: shape {tuple(table.shape)}, must be ({batch} or 1, {tokens}, rotary_dim) or "
                f"({tokens}, rotary_dim) with an even rotary_dim of 2 to {q.shape[-1]}{_meant(name, table)}"
            )
    if cos.dim() != sin.dim() or not all(map(same, cos.shape, sin.shape)) or cos.dtype != sin.dtype:
        raise RopeShapeError(f"sin: shape {tuple(sin.shape)} {sin.dtype}, must be cos's {tuple(cos.shape)} {cos.dtype}")
