"""Shapes of q and k that projections and other libraries have: the usual call rotates views of them.

Flat heads, (..., heads * head_dim); grouped heads, (..., groups, heads of a group, head_dim); and packed sequences in a
batch of one entry, (1, tokens, heads, head_dim).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ..config import RopeConfig
from ..core.layouts import LAYOUTS, Layout, tokens_first
from ..errors import RopeShapeError
from . import checks
from .sharding import is_distributed

__all__ = ["rotate_other_form"]

Pair = tuple[Tensor, "Tensor | None"]


class _Form(NamedTuple):
    """How tensors of another form become those of a layout.

    Attributes:
        layout: the given one; "bshd" for a batch of packed sequences that is called "thd".
        axes: of the layout.
        head_dim: of the config.
        is_packed: whether the batch, of one entry, is taken away.
    """

    layout: str
    axes: Layout
    head_dim: int
    is_packed: bool

    def has_flat_heads(self, x: Tensor, least: int = 1) -> bool:
        """Whether x has ``least`` or more heads in its last axis."""
        return (
            x.dim() == self.axes.rank - 1 and self.axes.heads == self.axes.rank - 2
            and x.shape[-1] % self.head_dim == 0 and x.shape[-1] >= least * self.head_dim
        )  # fmt: skip

    def usual(self, x: Tensor) -> Tensor:
        """``x`` as the layout has it: a view, or a copy of grouped heads that no view can join."""
        if self.has_flat_heads(x):
            x = x.unflatten(-1, (-1, self.head_dim))
        elif x.dim() == self.axes.rank + 1:
            x = x.flatten(self.axes.heads, self.axes.heads + 1)
        return tokens_first(x, self.layout)[0] if self.is_packed and x.dim() == 4 else x

    def views(self, x: Tensor) -> list[Tensor]:
        """``x`` as views that the layout has, so that it can be written: one, or one for each group."""
        heads = self.axes.heads
        if x.dim() == self.axes.rank + 1 and x.stride(heads) != x.shape[heads + 1] * x.stride(heads + 1):
            return [self.usual(x.narrow(heads, group, 1)) for group in range(x.shape[heads])]
        return [self.usual(x)]

    def as_given(self, y: Tensor, x: Tensor) -> Tensor:
        """The result ``y`` in the shape of ``x``."""
        if self.is_packed and self.axes.heads == 1:
            y = y.transpose(0, 1)
        return y.reshape(x.shape)


def rotate_other_form(
    call: Callable[..., Pair], q: Tensor, k: Tensor | None, positions: Tensor | None, cfg: RopeConfig,
    options: dict[str, Any], out: Pair | None, in_place: bool,
) -> Pair | None:  # fmt: skip
    """``call``, ``apply_rope`` or ``apply_rope_``, on views of q and k; ``None`` if they have a layout's own shape.

    Results have the shapes of q and k. ``options``: keywords of ``call``.

    Raises:
        RopeShapeError: an output has no view of the usual shape.
    """
    form = _form_of(q, positions, cfg, options)
    if form is None or not (k is None or isinstance(k, Tensor)):
        return None
    options = options | {"layout": "thd" if form.is_packed else form.layout}
    if form.is_packed and positions is not None and positions.dim() == 2 and positions.shape[0] == 1:
        positions = positions[0]
    if in_place:
        _rotate_views(call, form.views(q), None if k is None else form.views(k), positions, cfg, options)
        return q, k
    if out is not None:
        options = options | {"out": _written_views(form, out)}
    usual_q, usual_k = form.usual(q), None if k is None else form.usual(k)
    q_out, k_out = call(usual_q, usual_k, positions, cfg, **options)
    if out is not None:
        return out
    return form.as_given(q_out, q), None if k is None or k_out is None else form.as_given(k_out, k)


def _form_of(q: Tensor, positions: Tensor | None, cfg: RopeConfig, options: dict[str, Any]) -> _Form | None:
    layout, is_packed = options["layout"], False
    if not isinstance(q, Tensor) or not isinstance(cfg, RopeConfig) or not isinstance(layout, str):
        return None
    if layout not in LAYOUTS or is_distributed(q):
        return None
    has_bounds = options["cu_seqlens"] is not None
    if has_bounds and layout == "thd" and q.dim() == 4 and q.shape[0] == 1:
        layout = "bshd"
    axes = LAYOUTS[layout]
    if has_bounds and axes.batch is not None:
        is_packed = q.dim() > axes.batch and q.shape[axes.batch] == 1
    form = _Form(layout, axes, cfg.head_dim, is_packed)
    # Without one of these, four dimensions may as well be a batch that is called packed.
    is_located = axes.batch is not None or positions is not None or has_bounds
    is_other = form.has_flat_heads(q, 2) or (is_located and q.dim() == axes.rank + 1)
    return form if is_other or (is_packed and q.dim() == axes.rank) else None


def _rotate_views(
    call: Callable[..., Pair], q: list[Tensor], k: list[Tensor] | None, positions: Tensor | None, cfg: RopeConfig,
    options: dict[str, Any],
) -> None:  # fmt: skip
    if k:
        checks.check_beside("k", k[0], cfg.head_dim, q[0], options["layout"])
    if len(q) == 1 and (k is None or len(k) == 1):
        call(q[0], None if k is None else k[0], positions, cfg, **options)
        return
    q_norm, k_norm = (options.pop(name, None) for name in ("q_norm", "k_norm"))
    for parts, norm in ((q, q_norm), (k or [], k_norm)):
        norms = {} if norm is None else {"q_norm": norm}
        for part in parts:
            call(part, None, positions, cfg, **options, **norms)


def _written_views(form: _Form, out: Pair) -> Any:
    """Views of the outputs; what is no pair of tensors is left to the usual call's checks."""
    if not isinstance(out, (tuple, list)) or not all(y is None or isinstance(y, Tensor) for y in out):
        return out
    made: list[Tensor | None] = []
    for name, y in zip(("q_out", "k_out"), out, strict=False):
        views = [None] if y is None else form.views(y)
        if len(views) > 1:
            raise RopeShapeError(f"out: {name} has groups that no view joins; give a dense tensor")
        made += views
    return tuple(made)
