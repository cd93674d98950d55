"""Exports our operators to ONNX: ``torch.onnx.export(..., dynamo=True, custom_translation_table=translations())``.

``rotate`` becomes opset 23's RotaryEmbedding, by cosines and sines that the graph computes in double precision: so they
are exact at every position. ``rotate_table`` becomes products by the table. What ONNX has no form for is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..core.layouts import LAYOUTS
from ..core.rotation import Rotation
from ..core.spec import Operation, Spec, parse_text
from ..errors import RopeConfigError

__all__ = ["translations"]


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The table for ``custom_translation_table`` of ``torch.onnx.export``; the opset must be 23 or newer.

    Halves and neighbours, partial rotary, several axes, given or counted positions, offsets, and frequencies that
    depend on the length are exported, with dynamic batch and length.

    Returns:
        Functions by operator, for ``apply_rope``, patched models, and ``apply_rotary_pos_emb``.

    Calls in place and with ``out=`` are exported as rotations whose results are copied. Calls into a KV cache are not:
    torch's exporter stops at the operator that writes to it.

    Raises:
        ImportError: onnx or onnxscript is not installed; the message has the command that installs them.
        RopeConfigError: while exporting: packed sequences, ``rerotate_``, DeepSeek's ``interleaved_to_half``, an
            offset of the rotary channels, heads in blocks, or norms; ONNX has no form for them.
    """
    try:
        import onnx  # noqa: F401  (the error is raised here, not in the middle of an export)
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}; exporting to ONNX needs: pip install onnx onnxscript") from error
    return {
        torch.ops.rope_kernels.rotate.default: _rotate,
        torch.ops.rope_kernels.rotate_norm.default: _refuse_norm,
        torch.ops.rope_kernels.rotate_table.default: _rotate_table,
        torch.ops.aten.amax.default: _amax,  # of the longest position; torch's own translation cannot do without dim
    }


def _refuse(field: str, what: str) -> None:
    raise RopeConfigError(field, f"{what} cannot be exported: opset 23's RotaryEmbedding has no form for it")


def _refuse_norm(*given: Any, **options: Any) -> None:
    raise RopeConfigError("q_norm", "norms cannot be exported in one call with the rotation: norm q and k before it")


def _check(operation: Operation, from_seq_len: Any, cu_seqlens: Any) -> None:
    rotation = operation.spec.rotation
    if cu_seqlens is not None:
        _refuse("cu_seqlens", "packed sequences")
    if from_seq_len is not None:
        _refuse("from_seq_len", "keys that are rotated anew")
    if rotation.pairing == "interleaved_to_half":
        _refuse("pairing", "'interleaved_to_half'")
    if rotation.rotary_offset:
        _refuse("rotary_offset", f"{rotation.rotary_offset}")
    if rotation.blocks > 1:
        _refuse("axis_map", f"a head of {rotation.blocks} blocks")


def _amax(x: Any, dim: Sequence[int] = (), keepdim: bool = False) -> Any:
    axes = () if not dim else (_constant(list(dim), "int64"),)
    return _op().ReduceMax(x, *axes, keepdims=int(keepdim))


def _rotate(
    q: Any, k: Any, positions: Any, offset: Any, seq_len: Any, from_seq_len: Any, cu_seqlens: Any, text: str
) -> tuple[Any, Any]:
    operation = parse_text(text)
    _check(operation, from_seq_len, cu_seqlens)
    cos, sin = _cos_sin(q, positions, offset, seq_len, operation)
    return _turned(q, cos, sin, operation), _empty(q) if k is None else _turned(k, cos, sin, operation)


def _op() -> Any:
    from onnxscript import opset23

    return opset23


def _constant(values: Any, dtype: str) -> Any:
    import numpy
    import onnx

    return _op().Constant(value=onnx.numpy_helper.from_array(numpy.array(values, dtype=dtype)))


def _cast(x: Any, kind: str) -> Any:
    import onnx

    return _op().Cast(x, to=getattr(onnx.TensorProto, kind))


def _empty(q: Any) -> Any:
    """The second result without k."""
    return _op().CastLike(_constant([], "float32"), q)


def _counted(q: Any, offset: Any, layout: str) -> Any:
    """int64 (batch or 1, tokens): positions from 0, or from an offset."""
    op, axis = _op(), LAYOUTS[layout].tokens
    tokens = op.Squeeze(op.Shape(q, start=axis, end=axis + 1), _constant([0], "int64"))
    counted = op.Unsqueeze(op.Range(_constant(0, "int64"), tokens, _constant(1, "int64")), _constant([0], "int64"))
    return counted if offset is None else op.Add(counted, op.Unsqueeze(offset, _constant([1], "int64")))


def _of_pairs(positions: Any, rotation: Rotation, layout: str) -> Any:
    """double (batch or 1, tokens, pairs or 1): the position that each pair is rotated to."""
    op, rank = _op(), len(positions.shape)
    has_axes = rank == 3 or (rank == 2 and LAYOUTS[layout].batch is None)
    wide = _cast(positions, "DOUBLE")
    if not has_axes:
        last = _constant([-1] if rank == 2 else [0, -1], "int64")
        return op.Unsqueeze(wide, last)
    if rank == 2:
        wide = op.Unsqueeze(wide, _constant([1], "int64"))  # (axes, 1, tokens)
    index = _constant(rotation.axis or [0] * rotation.num_pairs, "int64")
    return op.Transpose(op.Gather(wide, index, axis=0), perm=[1, 2, 0])


def _inv_freq(spec: Spec, seq_len: Any) -> Any:
    """double (1, 1, pairs), or (1 or batch, 1, pairs) where they depend on the length."""
    op, params, rotation = _op(), spec.frequency, spec.rotation
    index, edges = rotation.index, _constant([1, 2], "int64")
    first = _constant([[list(params.inv_freqs(index, None))]], "float64")
    if seq_len is None or not params.depends_on_length:
        return first
    length = op.Unsqueeze(_cast(seq_len, "DOUBLE"), edges)
    if params.switch_length:
        longer = _constant([[list(params.inv_freqs(index, params.switch_length + 1))]], "float64")
        return op.Where(op.Greater(length, _constant(params.switch_length, "float64")), longer, first)
    start, factor = float(params.dynamic_length), params.dynamic_factor
    grown = op.Div(op.Max(length, _constant(start, "float64")), _constant(start, "float64"))
    alpha = op.Sub(op.Mul(grown, _constant(factor, "float64")), _constant(factor - 1.0, "float64"))
    exponent = _constant([[[-2.0 * i / (params.freq_dim - 2) for i in index]]], "float64")
    return op.Mul(first, op.Pow(alpha, exponent))


def _scaling(spec: Spec, seq_len: Any) -> Any:
    op, params = _op(), spec.frequency
    short = _constant(params.scaling(), "float64")
    if seq_len is None or params.long_attention_scaling is None:
        return short
    length = op.Unsqueeze(_cast(seq_len, "DOUBLE"), _constant([1, 2], "int64"))
    is_long = op.Greater(length, _constant(params.switch_length, "float64"))
    return op.Where(is_long, _constant(params.long_attention_scaling, "float64"), short)


def _cos_sin(q: Any, positions: Any, offset: Any, seq_len: Any, operation: Operation) -> tuple[Any, Any]:
    """float32 (batch or 1, tokens, pairs) cosines and sines, of 1 and 0 for pairs that are not rotated."""
    op, spec, rotation = _op(), operation.spec, operation.spec.rotation
    if positions is None:
        of_pair = op.Unsqueeze(_cast(_counted(q, offset, operation.layout), "DOUBLE"), _constant([-1], "int64"))
    else:
        of_pair = _of_pairs(positions, rotation, operation.layout)
    inv_freq = _inv_freq(spec, seq_len)
    if rotation.phase == "float32":
        angle = _cast(op.Mul(_cast(of_pair, "FLOAT"), _cast(inv_freq, "FLOAT")), "DOUBLE")
    else:
        angle = op.Mul(of_pair, inv_freq)
    # Runtimes have sines in float32: whole turns are taken away before.
    angle = _cast(op.Mod(angle, _constant(2.0 * math.pi, "float64"), fmod=1), "FLOAT")
    cos, sin = op.Cos(angle), op.Sin(angle)
    if not operation.unscaled:
        scaling = _cast(_scaling(spec, seq_len), "FLOAT")
        cos, sin = op.Mul(cos, scaling), op.Mul(sin, scaling)
    if rotation.table_dtype:
        kind = rotation.table_dtype.upper()
        cos, sin = _cast(_cast(cos, kind), "FLOAT"), _cast(_cast(sin, kind), "FLOAT")
    if operation.inverse:
        sin = op.Neg(sin)
    unrotated = rotation.distance - rotation.num_pairs if rotation.pairing == "half" else 0
    if unrotated:
        pads = _constant([0, 0, 0, 0, 0, unrotated], "int64")
        cos, sin = op.Pad(cos, pads, _constant(1.0, "float32")), op.Pad(sin, pads, _constant(0.0, "float32"))
    return cos, sin


def _heads_first(x: Any, layout: str, back: bool = False) -> Any:
    """``x`` as (batch, heads, tokens, head_dim), or such a tensor in ``layout``."""
    op = _op()
    if layout == "thd":
        first = _constant([0], "int64")
        if back:
            return op.Transpose(op.Squeeze(x, first), perm=[1, 0, 2])
        return op.Unsqueeze(op.Transpose(x, perm=[1, 0, 2]), first)
    axes = LAYOUTS[layout]
    order = [axes.batch, axes.heads, axes.tokens, 3]
    perm = [order.index(i) for i in range(4)] if back else order
    return x if perm == [0, 1, 2, 3] else op.Transpose(x, perm=perm)


def _turned(x: Any, cos: Any, sin: Any, operation: Operation) -> Any:
    """``x`` rotated in float32, in its own dtype."""
    op, rotation = _op(), operation.spec.rotation
    wide = _cast(_heads_first(x, operation.layout), "FLOAT")
    # RotaryEmbedding wants a table for each row of the batch.
    target = op.Concat(op.Shape(wide, start=0, end=1), op.Shape(cos, start=1), axis=0)
    width = 2 * (rotation.distance if rotation.pairing == "half" else rotation.num_pairs)
    y = op.RotaryEmbedding(
        wide, op.Expand(cos, target), op.Expand(sin, target), interleaved=int(rotation.pairing == "interleaved"),
        rotary_embedding_dim=0 if width == rotation.head_dim else width,
    )  # fmt: skip
    return op.CastLike(_heads_first(y, operation.layout, back=True), x)


def _rotate_table(
    q: Any, k: Any, cos: Any, sin: Any, rotary_dim: int, pairing: str, layout: str, inverse: bool
) -> tuple[Any, Any]:
    """By products: the two entries of a pair may differ, which RotaryEmbedding's may not."""
    if pairing == "interleaved_to_half":
        _refuse("pairing", "'interleaved_to_half'")
    if inverse:
        _refuse("inverse", "a rotation back by a table")

    def turned(x: Any) -> Any:
        rotation = Rotation(x.shape[-1], rotary_dim // 2, rotary_dim // 2, pairing=pairing)
        return _by_products(x, cos, sin, rotation, layout)

    return turned(q), _empty(q) if k is None else turned(k)


def _by_products(x: Any, cos: Any, sin: Any, rotation: Rotation, layout: str) -> Any:
    op, width, last = _op(), 2 * rotation.num_pairs, _constant([-1], "int64")
    wide = _cast(_heads_first(x, layout), "FLOAT")

    def channels(begin: int, end: int, step: int = 1) -> Any:
        return op.Slice(wide, _constant([begin], "int64"), _constant([end], "int64"), last, _constant([step], "int64"))

    turned = channels(0, width)
    if rotation.pairing == "half":
        other = op.Concat(op.Neg(channels(rotation.num_pairs, width)), channels(0, rotation.num_pairs), axis=-1)
    else:
        parts = [op.Unsqueeze(op.Neg(channels(1, width, 2)), last), op.Unsqueeze(channels(0, width, 2), last)]
        other = op.Reshape(op.Concat(*parts, axis=-1), op.Shape(turned))
    c, s = (op.Unsqueeze(_cast(table, "FLOAT"), _constant([1], "int64")) for table in (cos, sin))
    y = op.Add(op.Mul(turned, c), op.Mul(other, s))
    if width < rotation.head_dim:
        y = op.Concat(y, channels(width, rotation.head_dim), axis=-1)
    return op.CastLike(_heads_first(y, layout, back=True), x)
