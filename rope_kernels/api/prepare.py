"""The checked door: checks a call's arguments, raises all errors, and calls the operator in place or into outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import RopeConfig
from ..core.layouts import LAYOUTS
from ..core.spec import text_of
from ..errors import RopeShapeError
from ..ops import autograd, operators
from ..ops.operators import Arguments
from . import checks
from .lengths import longest
from .sharding import refuse_mixed

__all__ = ["prepare", "refuse_derivative", "refuse_derivative_of_outputs", "rotate_in_place", "write_outputs"]

# Autograd does not see the operators that write, so the version counters of what they wrote are raised here.
_increment_version = torch._C._increment_version
_rotate_in_place = operators.rotate_._op  # the overload's own call is one more Python frame
_rotate_out = operators.rotate_out._op


def prepare(
    q: Tensor, k: Tensor | None, positions: Tensor | None, cfg: RopeConfig, interleaved: bool | None = None,
    layout: str = "bshd", seq_len: int | Tensor | None = None, offset: int | Tensor | None = None,
    cu_seqlens: Tensor | None = None, inverse: bool = False, from_seq_len: int | Tensor | None = None,
    unscaled: bool = False,
) -> Arguments:  # fmt: skip
    """Check all arguments and return those after q and k in the schema of ``rope_kernels::rotate``."""
    checks.check_config(cfg, layout)
    checks.check_flag("inverse", inverse)
    refuse_mixed(k=k, positions=positions)
    checks.check_qk(q, k, cfg.head_dim, layout)
    axes = LAYOUTS[layout]
    counts = () if axes.batch is None else (q.shape[axes.batch],)
    if cu_seqlens is not None:
        checks.check_cu_seqlens(cu_seqlens, q, layout)
        counts = (cu_seqlens.shape[0] - 1,)
    if positions is not None:
        _check_given(positions, q, cfg, layout, seq_len, offset, cu_seqlens)
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
        seq_len = longest(positions, offset, cu_seqlens, q, q.shape[axes.tokens])
    text = text_of(cfg.spec(interleaved), layout, inverse, unscaled)
    return Arguments(positions, offset, seq_len, from_seq_len, cu_seqlens, text)


def _check_given(
    positions: Tensor, q: Tensor, cfg: RopeConfig, layout: str,
    seq_len: int | Tensor | None, offset: int | Tensor | None, cu_seqlens: Tensor | None,
) -> None:  # fmt: skip
    """Check given positions, and that no argument contradicts them."""
    if offset is not None:
        raise RopeShapeError("offset: given together with positions; it moves counted positions (positions=None) only")
    per_sequence = isinstance(seq_len, Tensor) and seq_len.dim() == 1
    if cu_seqlens is not None and not per_sequence:
        raise RopeShapeError(
            "cu_seqlens: given together with positions; it counts positions itself (positions=None), "
            "or assigns a per-sequence seq_len"
        )
    checks.check_positions(positions, q, layout, cfg.num_axes)


def rotate_in_place(q: Tensor, k: Tensor | None, args: Arguments) -> None:
    """Call ``rope_kernels::rotate_`` with the arguments from :func:`prepare`."""
    if torch.compiler.is_compiling():
        refuse_derivative(q, k, args.positions)
        if torch.onnx.is_in_onnx_export():
            _copy_rotated(q, k, (q, k), args)
        else:
            operators.rotate_(q, k, *args)
        return
    checks.check_in_place(q, k)
    refuse_derivative(q, k, args.positions)
    _rotate_in_place(q, k, *args)
    _increment_version([q] if k is None else [q, k])


def write_outputs(q: Tensor, k: Tensor | None, out: tuple[Tensor, Tensor | None], args: Arguments) -> None:
    """Call ``rope_kernels::rotate_out`` with the arguments from :func:`prepare`."""
    checks.check_outputs(q, k, out)
    checks.check_outputs_apart(q, k, out)
    refuse_derivative_of_outputs(q, k, out, args.positions)
    if torch.compiler.is_compiling():
        if torch.onnx.is_in_onnx_export():
            _copy_rotated(q, k, out, args)
        else:
            operators.rotate_out(q, k, *args, *out)
    else:
        _rotate_out(q, k, *args, *out)
        _increment_version([t for t in out if t is not None])


def _copy_rotated(q: Tensor, k: Tensor | None, out: tuple[Tensor, Tensor | None], args: Arguments) -> None:
    """For ONNX, which has no operators that write: torch's exporter stops at ours before a translation is asked."""
    for x, y in zip(out, operators.rotate(q, k, *args), strict=True):
        if x is not None:
            x.copy_(y)


def refuse_derivative(q: Tensor, k: Tensor | None, positions: Tensor | None = None) -> None:
    """Raise RuntimeError if a rotation in place would lose a gradient or a tangent."""
    if autograd.is_differentiated(q, k) or autograd.differentiates_positions(positions):
        raise RuntimeError("in place: a derivative is needed, which this rotation would lose; use apply_rope")


def refuse_derivative_of_outputs(
    q: Tensor, k: Tensor | None, out: tuple[Tensor, Tensor | None], positions: Tensor | None = None
) -> None:
    """Raise RuntimeError if a rotation into ``out`` would lose a gradient or a tangent."""
    needed = autograd.is_differentiated(q, k) or autograd.needs_gradient(*out)
    if needed or autograd.differentiates_positions(positions):
        raise RuntimeError("apply_rope: out= was given and a derivative is needed; leave out= away")
