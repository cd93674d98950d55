"""The public calls: check, then one operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import autograd, checks, ops
from .backends import direct, native
from .backends.reference import pairs, unit_pairs
from .config import RopeConfig
from .errors import RopeShapeError
from .lengths import longest
from .sharding import is_distributed, mark_written, refuse_mixed, rotate_shards
from .spec import with_call

__all__ = ["apply_rope", "apply_rope_", "cos_sin", "prepare", "refuse_derivative", "rotate_in_place"]

# Autograd knows nothing of the operators that write, so new versions of what they wrote are counted here.
_increment_version = torch._C._increment_version
_rotate_in_place = ops.rotate_._op  # the overload's own call is one more Python frame
_rotate_out = ops.rotate_out._op


def apply_rope(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor | None,
    cfg: RopeConfig,
    *,
    interleaved: bool | None = None,
    layout: str = "bshd",
    seq_len: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    inverse: bool = False,
    out: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Rotate q and k to their positions: angles from ``cfg``, one launch, no table.

    Args:
        q: (batch, seq, q_heads, head_dim) for "bshd", (batch, q_heads, seq, head_dim) for "bhsd", (tokens, q_heads,
            head_dim) for "thd"; float32, float16 or bfloat16; any strides with a unit last one.
        k: as q with its own number of heads, or ``None``.
        positions: in tokens; int32 or int64 (floating: fractional coordinates): (seq,), (1 or batch, seq) or, "thd",
            (tokens,). With several axes (axes, 1 or batch, seq) or (axes, tokens); fewer dimensions hold for all
            axes. ``None`` counts from 0 in each sequence.
        cfg: what to rotate by.
        interleaved: ``True`` pairs neighbours, ``False`` halves, in and out; ``None`` takes the config's pairing.
        layout: "bshd", "bhsd" or "thd".
        seq_len: in tokens, what longrope and dynamic choose by: an int, a scalar tensor, (batch,), or (sequences,)
            with ``cu_seqlens``. ``None`` is max(position) + 1 over the whole call. Never read back to the host.
        offset: added to counted positions: an int, a scalar tensor, (batch,), or (sequences,) with ``cu_seqlens``.
        cu_seqlens: int32 or int64 (sequences + 1,) bounds of packed sequences ("thd"), from 0; tokens past the last
            bound are copied.
        inverse: apply the adjoint: the rotation back, attention scaling applied again.
        out: (q_out, k_out) to write to, which may be (q, k); returned as given.

    Returns:
        (q, k) rotated, each in its input's dtype, rounded once; ``(q, None)`` without k.

    Raises:
        RopeShapeError: a tensor does not fit; nothing has been written.
        RuntimeError: ``out`` was given and a gradient is needed.
    """
    text = _text_of_usual_call(cfg, interleaved, layout, inverse)
    if text is not None:
        if out is not None:
            if type(out) is tuple and direct.rotate_out(q, k, positions, offset, seq_len, cu_seqlens, text, *out):
                return out
        elif made := direct.rotate(q, k, positions, offset, seq_len, cu_seqlens, text):
            return made
        elif seq_len is offset is cu_seqlens is None and _reaches_native(q, k, positions, cfg):
            try:
                q_out, k_out = autograd.rotate_eagerly(q, k, positions, None, None, None, None, text)
            except Exception:
                prepare(q, k, positions, cfg, interleaved, layout)
                raise
            return q_out, None if k is None else k_out
    if is_distributed(q):
        _refuse_derivative_of_given(q, k, out)
        options = dict(interleaved=interleaved, inverse=inverse)
        return rotate_shards(apply_rope, q, k, positions, cfg, layout, seq_len, offset, cu_seqlens, options, out)
    args = prepare(q, k, positions, cfg, interleaved, layout, seq_len, offset, cu_seqlens, inverse)
    if out is None:
        q_out, k_out = autograd.rotate(q, k, *args)
        return q_out, None if k is None else k_out
    checks.check_outputs(q, k, out)
    _write_out(q, k, out, *args)
    return out


def apply_rope_(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor | None,
    cfg: RopeConfig,
    *,
    interleaved: bool | None = None,
    layout: str = "bshd",
    seq_len: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    inverse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As :func:`apply_rope`, in place.

    Returns:
        The same q and k.

    Raises:
        RopeShapeError: a tensor does not fit, or a view would be written twice; nothing has been written.
        RuntimeError: q or k needs a gradient.
    """
    text = _text_of_usual_call(cfg, interleaved, layout, inverse)
    if text is not None and direct.rotate_(q, k, positions, offset, seq_len, cu_seqlens, text):
        return q, k
    if is_distributed(q):
        refuse_derivative(q, k)
        options = dict(interleaved=interleaved, inverse=inverse)
        rotate_shards(apply_rope_, q, k, positions, cfg, layout, seq_len, offset, cu_seqlens, options)
        mark_written(q, k)
        return q, k
    args = prepare(q, k, positions, cfg, interleaved, layout, seq_len, offset, cu_seqlens, inverse)
    rotate_in_place(q, k, *args)
    return q, k


def cos_sin(
    positions: Tensor, cfg: RopeConfig, dtype: torch.dtype = torch.float32, *, seq_len: int | Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The table, exactly, for who needs one: attention scaling included, rounded once to ``dtype``.

    Args:
        positions: (seq,) or (batch, seq), or (axes, batch, seq); as in :func:`apply_rope`.
        cfg: what to rotate by.
        dtype: of the table.
        seq_len: as in :func:`apply_rope`: an int, a scalar tensor or (batch,).

    Returns:
        (cos, sin), each (seq, rotary_dim) or (batch, seq, rotary_dim), a pair's entry at both of its members, as
        transformers lays them out: halves for "half" and "interleaved_to_half", neighbours for "interleaved".

    Raises:
        RopeShapeError: positions do not fit the config, or ``dtype`` is no floating one.
        TypeError: ``cfg`` is no :class:`RopeConfig`.
    """
    checks.check_config(cfg, "bshd")
    checks.check_tensor("positions", positions)
    if positions.dim() == 0:
        raise RopeShapeError("positions: a scalar, must be (seq,), (batch, seq) or (axes, batch, seq)")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise RopeShapeError(f"dtype: got {dtype!r}, allowed are torch's floating ones")
    shape = tuple(positions.shape[-2:]) if positions.dim() > 1 else (1, *positions.shape)
    rotation = cfg.rotation()
    unit = unit_pairs(shape[0], shape[1], rotation, positions.device)
    turned, _ = apply_rope(unit, None, positions, cfg, seq_len=seq_len)
    first, second = (part.flatten(3).squeeze(2) for part in pairs(turned, rotation, written=True))
    tables = []
    for value, still in ((first, cfg.attention_scaling), (second, 0.0)):
        table = torch.full((*shape, 1, cfg.head_dim), still, device=positions.device)
        for member in pairs(table, rotation, written=True):
            member.copy_(value.reshape(member.shape))
        start = rotation.rotary_offset
        table = table[:, :, 0, start : start + cfg.rotary_dim].to(dtype)
        tables.append(table if positions.dim() > 1 else table[0])
    return tables[0], tables[1]


def _text_of_usual_call(cfg: RopeConfig, interleaved: bool | None, layout: str, inverse: bool) -> str | None:
    """The operator's text for :mod:`.backends.direct`; ``None`` where there is none, or the call is traced."""
    if is_compiling() or not (interleaved is None or isinstance(interleaved, bool)):
        return None
    if not isinstance(layout, str) or not isinstance(inverse, bool):
        return None
    specs: dict[bool | None, str] | None = getattr(cfg, "specs", None)
    return with_call(specs[interleaved], layout, inverse) if specs and interleaved in specs else None


def _reaches_native(q: Tensor, k: Tensor | None, positions: Tensor | None, cfg: RopeConfig) -> bool:
    """Whether the native kernel surely gets a call, which it checks itself: explained is only what it refused."""
    on_cpu = type(q) is Tensor and q.is_cpu and isinstance(positions, Tensor) and positions.is_cpu
    on_cpu = on_cpu and (k is None or (isinstance(k, Tensor) and k.is_cpu))
    return on_cpu and native.thread.is_default and not cfg.depends_on_length


def rotate_in_place(q: Tensor, k: Tensor | None, *args: Any) -> None:
    """``rope_kernels::rotate_`` of what :func:`prepare` made."""
    if torch.compiler.is_compiling():
        refuse_derivative(q, k)
        ops.rotate_(q, k, *args)
    else:
        _in_place_eagerly(q, k, *args)


def _write_out(q: Tensor, k: Tensor | None, out: tuple[Tensor, Tensor | None], *args: Any) -> None:
    """``rope_kernels::rotate_out`` of what :func:`prepare` made."""
    checks.check_outputs_apart(q, k, out)
    _refuse_derivative_of_given(q, k, out)
    if torch.compiler.is_compiling():
        ops.rotate_out(q, k, *args, *out)
    else:
        _rotate_out(q, k, *args, *out)
        _increment_version([t for t in out if t is not None])


def _in_place_eagerly(q: Tensor, k: Tensor | None, *args: Any) -> None:
    checks.check_in_place(q, k)
    refuse_derivative(q, k)
    _rotate_in_place(q, k, *args)
    _increment_version([q] if k is None else [q, k])


def refuse_derivative(q: Tensor, k: Tensor | None) -> None:
    """Raise RuntimeError where a rotation in place would lose a gradient or a tangent."""
    if autograd.is_differentiated(q, k):
        raise RuntimeError("in place: a derivative is needed, which this rotation would lose; use apply_rope")


def _refuse_derivative_of_given(q: Tensor, k: Tensor | None, out: tuple[Tensor, Tensor | None] | None) -> None:
    if out is None:
        return
    if autograd.is_differentiated(q, k) or autograd.needs_gradient(*out):
        raise RuntimeError("apply_rope: out= was given and a derivative is needed; leave out= away")


def prepare(
    q: Tensor, k: Tensor | None, positions: Tensor | None, cfg: RopeConfig, interleaved: bool | None = None,
    layout: str = "bshd", seq_len: int | Tensor | None = None, offset: int | Tensor | None = None,
    cu_seqlens: Tensor | None = None, inverse: bool = False, from_seq_len: int | Tensor | None = None,
    unscaled: bool = False,
) -> tuple[Any, ...]:  # fmt: skip
    """Check everything; what follows q and k in the schema of ``rope_kernels::rotate``."""
    batch_axis, token_axis, _ = checks.check_config(cfg, layout)
    checks.check_flag("inverse", inverse)
    refuse_mixed(k=k, positions=positions)
    checks.check_qk(q, k, cfg.head_dim, layout)
    counts = () if batch_axis is None else (q.shape[batch_axis],)
    if cu_seqlens is not None:
        checks.check_cu_seqlens(cu_seqlens, q, layout)
        counts = (cu_seqlens.shape[0] - 1,)
    if positions is not None:
        _check_explicit(positions, q, cfg, layout, seq_len, offset, cu_seqlens)
    if offset is not None:
        offset = checks.index_vector("offset", offset, q, counts)
    if seq_len is not None:
        name = "seq_len" if from_seq_len is None else "to_seq_len"
        seq_len = checks.index_vector(name, seq_len, q, counts)
    if from_seq_len is not None:
        from_seq_len = checks.index_vector("from_seq_len", from_seq_len, q, counts)
    if not cfg.depends_on_length:
        seq_len = from_seq_len = None
    elif seq_len is None:
        seq_len = longest(positions, offset, cu_seqlens, q, q.shape[token_axis])
    text = with_call(cfg.spec(interleaved), layout, inverse, unscaled)
    return positions, offset, seq_len, from_seq_len, cu_seqlens, text


def _check_explicit(
    positions: Tensor, q: Tensor, cfg: RopeConfig, layout: str,
    seq_len: int | Tensor | None, offset: int | Tensor | None, cu_seqlens: Tensor | None,
) -> None:  # fmt: skip
    if offset is not None:
        raise RopeShapeError("offset: given together with positions; it moves counted positions (positions=None) only")
    per_sequence = isinstance(seq_len, Tensor) and seq_len.dim() == 1
    if cu_seqlens is not None and not per_sequence:
        raise RopeShapeError(
            "cu_seqlens: given together with positions; it counts positions itself (positions=None), "
            "or assigns a per-sequence seq_len"
        )
    checks.check_positions(positions, q, layout, cfg.num_axes)
