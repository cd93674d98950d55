"""The operator that norms and rotates q and k and stores k and v in a paged KV cache: ``rotate_append``.

The caller has checked all arguments. It has no gradient: what it stores is for inference.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import backend_for
from ..backends.inputs import Append, Norms
from ..core.layouts import tokens_first
from ..core.spec import parse_text
from .operators import INDEX_TENSORS, LIBRARY, TAGS, Arguments, inputs_of

__all__ = ["Stored", "rotate_append"]

_SCHEMA = (
    f"(Tensor q, Tensor? k, Tensor? v, {INDEX_TENSORS}, str spec, Tensor? q_weight, Tensor? k_weight, "
    "Tensor? v_weight, Tensor slots, Tensor? k_scale, Tensor? v_scale, Tensor(a!) q_out, Tensor(b!)? k_out, "
    "Tensor(c!)? k_cache, Tensor(d!)? v_cache) -> ()"
)


class Stored(NamedTuple):
    """The arguments after the text in the schema of ``rotate_append``.

    Attributes:
        q_weight, k_weight, v_weight: of the norms, (head_dim,) or v's (width,); ``None``: no weight.
        slots: int32 or int64 (rows,), where the first tokens go.
        k_scale, v_scale: float32 (1,) or (kv_heads,); ``None`` where the cache has q's dtype.
        q_out, k_out: what is written in q's layout; k_out may be ``None``.
        k_cache, v_cache: (pages, page_size, kv_heads, width), ``None`` where k or v is.
    """

    q_weight: Tensor | None
    k_weight: Tensor | None
    v_weight: Tensor | None
    slots: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None
    q_out: Tensor
    k_out: Tensor | None
    k_cache: Tensor | None
    v_cache: Tensor | None


def _rotate_append(q: Tensor, k: Tensor | None, v: Tensor | None, *rest: Any) -> None:
    count = len(Arguments._fields)
    args, to = Arguments(*rest[:count]), Stored(*rest[count:])
    operation = parse_text(args.text)
    if q.numel() == 0:
        return
    wide_q, wide_k, wide_v, wide_q_out, wide_k_out = (
        None if x is None else tokens_first(x, operation.layout) for x in (q, k, v, to.q_out, to.k_out)
    )
    assert wide_q is not None
    assert wide_q_out is not None
    backend_for(q.device).rotate_append(
        wide_q, wide_k, wide_q_out, wide_k_out, inputs_of(args, operation), operation.spec,
        Norms(operation.q_norm, operation.k_norm, to.q_weight, to.k_weight),
        Append(to.slots, wide_v, operation.v_norm, to.v_weight, to.k_cache, to.v_cache, to.k_scale, to.v_scale),
    )  # fmt: skip


def _fake_rotate_append(q: Tensor, k: Tensor | None, v: Tensor | None, *rest: Any) -> None:
    parse_text(rest[Arguments._fields.index("text")])


LIBRARY.define(f"rotate_append{_SCHEMA}", tags=TAGS)
LIBRARY.impl("rotate_append", _rotate_append, "CompositeExplicitAutograd")
LIBRARY.impl("rotate_append", _fake_rotate_append, "Meta")
# Called by the native backend alone.
LIBRARY.define(f"native_rotate_append{_SCHEMA}")

rotate_append = torch.ops.rope_kernels.rotate_append.default
