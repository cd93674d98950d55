"""Fast path for plain CPU tensors where plain torch rotates: past the dispatcher, which takes as long as the rotation.

Like :mod:`.direct`, its counterpart for the native kernels, it does the usual calls, and answers ``None`` without
writing anything where torch must see the call, where a tensor is unusual, or where an error must be worded.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from ..backends import is_plain_torch, reference
from ..backends.inputs import Inputs
from ..core.layouts import LAYOUTS, position_axes, tokens_first
from ..core.rotation import Rotation
from ..core.spec import Operation, parse_text
from .memory import are_clearly_apart
from .operators import table_rotation

__all__ = ["rotate", "rotate_table"]

_DTYPES = (torch.bfloat16, torch.float32, torch.float16)
_INDEX_DTYPES = (torch.int64, torch.int32)
_below_autograd = torch._C._AutoDispatchBelowAutograd
_increment_version = torch._C._increment_version
_TABLE_LAYOUTS = {1: "bhsd", 2: "bshd"}


def rotate(
    q: Tensor, k: Tensor | None, positions: Tensor | None, offset: int | Tensor | None, text: str | None,
    out: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None] | None:  # fmt: skip
    """(q, k) rotated, or written to ``out``; ``None`` if the call is not done here.

    The arguments are those of ``apply_rope``, with the operator's text, which is ``None`` for a call that is not done
    here; nor are lengths and packed sequences.
    """
    if text is None or q is None or not _are_plain(q, k) or not is_plain_torch() or _is_seen(q, k):
        return None
    if out is not None and not _are_plain_outputs(q, k, out):
        return None
    start = None
    if positions is None:
        if offset is not None:
            if type(offset) is not int or not -(1 << 63) <= offset < 1 << 63:
                return None
            start = torch.tensor([offset], device="cpu")
    elif offset is not None or not _are_plain(positions):
        return None
    q_out, k_out = (None, None) if out is None else out
    try:
        operation = _usual_operation(q, k, positions, text, q_out, k_out)
    except (RuntimeError, NotImplementedError):  # a nested or sparse tensor has no strides
        return None
    if operation is None:
        return None
    written = (q, k) if q_out is q and k_out is k else (q, k, q_out, k_out)
    if q_out is not None and not are_clearly_apart(*written):
        return None
    layout = operation.layout
    with _below_autograd():
        if q_out is None:
            q_out, k_out = torch.empty_like(q), None if k is None else torch.empty_like(k)
        wide_q, wide_k = tokens_first(q, layout), None if k is None else tokens_first(k, layout)
        wide_q_out = wide_q if q_out is q else tokens_first(q_out, layout)
        wide_k_out = wide_k if k_out is k or k_out is None else tokens_first(k_out, layout)
        inputs = Inputs(position_axes(positions, layout), start, inverse=operation.inverse, unscaled=operation.unscaled)
        reference.rotate(wide_q, wide_k, wide_q_out, wide_k_out, inputs, operation.spec)
    if out is not None:
        _increment_version([q_out] if k_out is None else [q_out, k_out])
        return out
    return q_out, k_out


def rotate_table(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, unsqueeze_dim: int, pairing: str, is_full: bool
) -> tuple[Tensor, Tensor | None] | None:
    """(q, k) rotated by a table, as in ``apply_rotary_pos_emb``; ``None`` if the call is not done here."""
    if q is None or cos is None or sin is None or not _are_plain(q, k, cos, sin):
        return None
    if not is_plain_torch() or _is_seen(q, k, cos, sin):
        return None
    try:
        found = _usual_table(q, k, cos, sin, unsqueeze_dim, pairing, is_full)
    except (RuntimeError, NotImplementedError, TypeError):
        return None
    if found is None:
        return None
    layout, rotation = found
    with _below_autograd():
        q_out, k_out = torch.empty_like(q), None if k is None else torch.empty_like(k)
        wide_k, wide_k_out = (None if x is None else tokens_first(x, layout) for x in (k, k_out))
        reference.rotate_table(
            tokens_first(q, layout), wide_k, tokens_first(q_out, layout), wide_k_out, cos, sin, rotation, False
        )
    return q_out, k_out


def _are_plain(*tensors: Tensor | None) -> bool:
    for x in tensors:  # noqa: SIM110  (a generator takes longer)
        if x is not None and (type(x) is not Tensor or not x.is_cpu):
            return False
    return True


def _is_seen(*tensors: Tensor | None) -> bool:
    """Whether autograd, a transform, a mode, a tracer or the profiler must see a call on these tensors."""
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                return True
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
        or torch._C._autograd._profiler_enabled()
    )


_Form = tuple[Any, ...]
_operations: dict[_Form, Operation] = {}
_tables: dict[_Form, tuple[str, Rotation]] = {}
_MOST_FORMS = 256


def _form(*tensors: Tensor | None) -> list[Any]:
    """What the checks of these tensors depend on."""
    return [None if x is None else (x.dtype, x.shape, x.stride()) for x in tensors]


def _usual_operation(
    q: Tensor, k: Tensor | None, positions: Tensor | None, text: str, q_out: Tensor | None, k_out: Tensor | None
) -> Operation | None:
    """The operation if the tensors fit it in the usual way. Tensors of the same form are checked once."""
    is_in_place = q_out is q and k_out is k
    form = (text, is_in_place, *_form(q, k, positions), *(() if q_out is None or is_in_place else _form(q_out, k_out)))
    found = _operations.get(form)
    if found is None:
        operation = parse_text(text)
        spec = operation.spec
        if (
            spec.frequency.depends_on_length
            or not _are_usual_heads(q, k, spec.rotation.head_dim, operation.layout)
            or not _are_usual_positions(positions, q, operation.layout)
            or not (q_out is None or _are_usual_outputs(q, k, q_out, k_out))
        ):
            return None
        found = _remember(_operations, form, operation)
    return found


def _usual_table(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, unsqueeze_dim: int, pairing: str, is_full: bool
) -> tuple[str, Rotation] | None:
    """The layout and the rotation if the tensors fit each other in the usual way."""
    form = (unsqueeze_dim, pairing, is_full, *_form(q, k, cos, sin))
    found = _tables.get(form)
    if found is None:
        layout = _TABLE_LAYOUTS.get(unsqueeze_dim) if type(unsqueeze_dim) is int else None
        if layout is None or not _are_usual_heads(q, k, q.shape[-1], layout):
            return None
        if not _is_table_of(q, cos, sin, layout, is_full):
            return None
        found = _remember(_tables, form, (layout, table_rotation(q.shape[-1], cos.shape[-1], pairing)))
    return found


def _remember(forms: dict[_Form, Any], form: _Form, value: Any) -> Any:
    if len(forms) >= _MOST_FORMS:
        forms.clear()
    forms[form] = value
    return value


def _are_usual_heads(q: Tensor, k: Tensor | None, head_dim: int, layout: str) -> bool:
    axes, shape = LAYOUTS[layout], q.shape
    if len(shape) != axes.rank or shape[-1] != head_dim or q.stride(-1) != 1 or 0 in shape or q.dtype not in _DTYPES:
        return False
    if k is None:
        return True
    other, heads = k.shape, axes.heads
    return (
        len(other) == axes.rank and other[:heads] == shape[:heads] and other[heads + 1 :] == shape[heads + 1 :]
        and other[heads] > 0 and k.stride(-1) == 1 and k.dtype is q.dtype
    )  # fmt: skip


def _are_usual_positions(positions: Tensor | None, q: Tensor, layout: str) -> bool:
    """Whether there is an integer per token, on one axis."""
    if positions is None:
        return True
    axes, shape = LAYOUTS[layout], positions.shape
    if positions.dtype not in _INDEX_DTYPES or shape[-1:] != q.shape[axes.tokens : axes.tokens + 1]:
        return False
    return len(shape) == 1 or (len(shape) == 2 and axes.batch is not None and shape[0] in (1, q.shape[axes.batch]))


def _is_table_of(q: Tensor, cos: Tensor, sin: Tensor, layout: str, is_full: bool) -> bool:
    """Whether there is a row per token; one half as wide as a head may need a warning."""
    shape, tokens = cos.shape, q.shape[LAYOUTS[layout].tokens]
    return (
        shape == sin.shape and cos.dtype is sin.dtype and cos.dtype in _DTYPES and len(shape) == 3
        and shape[0] in (1, q.shape[0]) and shape[1] == tokens and 0 < shape[2] <= q.shape[3] and shape[2] % 2 == 0
        and (is_full or 2 * shape[2] != q.shape[3])
    )  # fmt: skip


def _are_plain_outputs(q: Tensor, k: Tensor | None, out: tuple[Tensor, Tensor | None]) -> bool:
    if type(out) is not tuple or len(out) != 2 or out[0] is None or (out[1] is None) != (k is None):
        return False
    return (out[0] is q and out[1] is k) or (_are_plain(*out) and not _is_seen(*out))


def _are_usual_outputs(q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None) -> bool:
    """Whether outputs are like their inputs, and all are contiguous."""
    pairs = [(q, q_out)] if k is None or k_out is None else [(q, q_out), (k, k_out)]
    return all(
        out.dtype is x.dtype and out.shape == x.shape and x.is_contiguous() and out.is_contiguous() for x, out in pairs
    )
