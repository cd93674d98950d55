"""The rotation in plain torch operations: the fallback without a kernel, and the reference that kernels must match.

On the CPU it makes few passes (:mod:`.passes`) and recalls the angles of the last calls (:mod:`.recall`); elsewhere,
and where torch must differentiate it, it is :func:`~rope_kernels.core.pairs.rotate_pairs`. They agree to the last place
of float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.norms import rotate_normed, rotate_normed_backward
from ..core.pairs import pairs, rotate_pairs
from ..core.rotation import Rotation
from ..core.spec import Spec
from . import passes
from .angles import copied_tokens, cos_sin
from .inputs import Append, Inputs, Norms
from .recall import recalled_table
from .storing import rotate_then_store

__all__ = [
    "rotate",
    "rotate_append",
    "rotate_cached",
    "rotate_norm",
    "rotate_norm_backward",
    "rotate_table",
    "rotated_by_table",
    "unavailable",
]


def unavailable(device: torch.device | None = None) -> str | None:
    """``None``: it runs wherever torch does."""
    return None


def rotate(q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec) -> None:
    """Rotate (batch, tokens, heads, head_dim) views into the outputs, which may be the same; see :class:`Inputs`."""
    if q.is_cpu:
        _rotate_on_cpu(q, k, q_out, k_out, inputs, spec)
        return
    cos, sin = (part.unsqueeze(2) for part in cos_sin(q.shape[0], q.shape[1], q.device, inputs, spec))
    if inputs.inverse:
        sin = -sin
    copied = copied_tokens(q.shape[0], q.shape[1], q.device, inputs)
    for x, out in ((q, q_out), (k, k_out)):
        if x is not None and out is not None:
            y = rotate_pairs(x, (cos, cos), (sin, sin), spec.rotation, inputs.inverse)
            out.copy_(y if copied is None else torch.where(copied.unsqueeze(2), x, y))


def _rotate_on_cpu(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec
) -> None:
    table = recalled_table(q.shape[0], q.shape[1], inputs, spec)
    if inputs.cu_seqlens is not None:
        end = int(inputs.cu_seqlens[-1])
        for x, out in ((q, q_out), (k, k_out)):
            if x is not None and out is not None and out is not x:
                out[:, end:].copy_(x[:, end:])
        if end == 0:
            return
        q, q_out, table = q[:, :end], q_out[:, :end], table.until(end)
        k, k_out = (None if x is None else x[:, :end] for x in (k, k_out))
    passes.rotate(q, k, q_out, k_out, table, spec.rotation, inputs.inverse)


def rotate_norm(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec, norms: Norms
) -> None:
    """:func:`rotate`, with the heads normed in the same call; see :class:`Norms`."""
    cos, sin = (part.unsqueeze(2) for part in cos_sin(q.shape[0], q.shape[1], q.device, inputs, spec))
    copied = copied_tokens(q.shape[0], q.shape[1], q.device, inputs)
    for x, out, norm, weight in ((q, q_out, norms.q, norms.q_weight), (k, k_out, norms.k, norms.k_weight)):
        if x is not None and out is not None:
            if norm is None:
                y = rotate_pairs(x, (cos, cos), (sin, sin), spec.rotation, False)
            else:
                y = rotate_normed(x, (cos, sin), spec.rotation, norm, weight).to(x.dtype)
            out.copy_(y if copied is None else torch.where(copied.unsqueeze(2), x, y))


def rotate_norm_backward(
    grads: tuple[Tensor | None, Tensor | None], q: Tensor, k: Tensor | None, inputs: Inputs, spec: Spec, norms: Norms
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of q, k and both weights, each in its tensor's dtype, given those of the outputs; ``None``: of none."""
    cos, sin = (part.unsqueeze(2) for part in cos_sin(q.shape[0], q.shape[1], q.device, inputs, spec))
    copied = copied_tokens(q.shape[0], q.shape[1], q.device, inputs)
    of_x: list[Tensor | None] = []
    of_weights: list[Tensor | None] = []
    for grad, x, norm, weight in zip(grads, (q, k), norms[:2], norms[2:], strict=True):
        found = None
        if grad is None or x is None:
            of_x.append(None)
        elif norm is None:
            y = rotate_pairs(grad, (cos, cos), (-sin, -sin), spec.rotation, True)
            of_x.append(y if copied is None else torch.where(copied.unsqueeze(2), grad, y))
        else:
            live = grad if copied is None else grad.masked_fill(copied.unsqueeze(2), 0.0)
            y, found = rotate_normed_backward(live, x, (cos, sin), spec.rotation, norm, weight)
            y = y.to(x.dtype)
            of_x.append(y if copied is None else torch.where(copied.unsqueeze(2), grad, y))
        of_weights.append(None if found is None or weight is None else found.to(weight.dtype))
    return of_x[0], of_x[1], of_weights[0], of_weights[1]


def rotate_append(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec, norms: Norms,
    append: Append,
) -> None:  # fmt: skip
    """Norm and rotate q and k, and store k and v in a cache; without ``k_out``, k goes to the cache alone."""
    rotate_then_store(rotate, rotate_norm, q, k, q_out, k_out, inputs, spec, norms, append)


def rotate_table(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None,
    cos: Tensor, sin: Tensor, rotation: Rotation, inverse: bool,
) -> None:  # fmt: skip
    """Rotate by a caller's table. ``cos``, ``sin``: (batch or 1, tokens, rotary_dim), in the order of the output."""
    if q.is_cpu and rotation.pairing != "interleaved_to_half":
        passes.rotate(q, k, q_out, k_out, passes.caller_table(cos, sin, rotation, inverse), rotation, inverse)
        return
    for x, out in ((q, q_out), (k, k_out)):
        if x is not None and out is not None:
            out.copy_(rotated_by_table(x, cos, sin, rotation, inverse))


def rotate_cached(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None,
    positions: Tensor, cos: Tensor, sin: Tensor, rotation: Rotation,
) -> None:  # fmt: skip
    """Rotate by rows of a table. ``positions``: (batch or 1, tokens); ``cos``, ``sin``: (rows, pairs).

    A position without a row is an error of the caller's on a CPU; elsewhere the token is copied.
    """
    if q.is_cpu:
        rows = positions.long()
        table = passes.table_of(cos[rows], sin[rows], rotation, False)
        passes.rotate(q, k, q_out, k_out, table, rotation, False)
        return
    has_row = ((positions >= 0) & (positions < cos.shape[0]))[..., None, None]
    rows = positions.long().clamp(0, cos.shape[0] - 1)
    c, s = cos[rows].float().unsqueeze(2), sin[rows].float().unsqueeze(2)
    for x, out in ((q, q_out), (k, k_out)):
        if x is not None and out is not None:
            out.copy_(torch.where(has_row, rotate_pairs(x, (c, c), (s, s), rotation, False), x))


def rotated_by_table(x: Tensor, cos: Tensor, sin: Tensor, rotation: Rotation, inverse: bool) -> Tensor:
    """``x`` rotated by a table, in operations that torch can trace and differentiate."""
    c, s = (_table_pairs(table, rotation) for table in (cos, sin))
    if inverse:
        s = -s[1], -s[0]
    return rotate_pairs(x, c, s, rotation, inverse)


def _table_pairs(table: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    first, second = pairs(table, rotation, written=True)
    return first.float().unsqueeze(2), second.float().unsqueeze(2)
