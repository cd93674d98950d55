"""Calls with a norm on the Triton backend: launches :mod:`.norm_kernels`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...core.norms import Norm
from ...core.pairs import pairs as pairs_of
from ...core.rotation import Rotation
from ...core.spec import Spec
from .. import reference
from ..inputs import Inputs, Norms
from . import kernels, norm_backward_kernels, norm_kernels
from .arguments import Pair, launches_of, prepared, present
from .launching import OPTIONS, device_of, first_in_capture
from .plan import RowNorm, Tile, alignment

__all__ = ["rotate_norm", "rotate_norm_backward", "row_norm"]

_VECTOR_BYTES = 16


def rotate_norm(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec, norms: Norms
) -> None:
    """Norm and rotate (batch, tokens, heads, head_dim) views in one launch; see :func:`.launch.rotate`.

    Heads without a pair that turns take plain torch operations.
    """
    if not spec.rotation.num_pairs:
        reference.rotate_norm(q, k, q_out, k_out, inputs, spec, norms)
        return
    for pairs in launches_of(present(q, k, q_out, k_out)):
        _rotate_norm(pairs, q.shape[0], q.shape[1], inputs, spec, norms)


def rotate_norm_backward(
    grads: tuple[Tensor | None, Tensor | None], q: Tensor, k: Tensor | None, inputs: Inputs, spec: Spec, norms: Norms
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of q, k and both weights, in one launch; see :func:`.reference.rotate_norm_backward`.

    Those of the weights are summed in an order that depends on the shapes only: two calls give the same bits.
    """
    if not spec.rotation.num_pairs:
        return reference.rotate_norm_backward(grads, q, k, inputs, spec, norms)
    triples: list[Pair | None] = [
        None if grad is None or x is None else (x, torch.empty_like(x), grad)
        for grad, x in zip(grads, (q, k), strict=True)
    ]
    batch, tokens = q.shape[:2]
    normed = [triple if norm is not None else None for triple, norm in zip(triples, norms[:2], strict=True)]
    rotated = [triple[:0:-1] if triple and norm is None else None for triple, norm in zip(triples, norms, strict=False)]
    if any(rotated):
        _rotate_back(rotated, batch, tokens, inputs, spec)
    of_weights: list[Tensor | None] = [None, None]
    if any(normed):
        of_weights = _norm_backward(normed, batch, tokens, inputs, spec, norms)
    of_q, of_k = (None if triple is None else triple[1] for triple in triples)
    return of_q, of_k, of_weights[0], of_weights[1]


def _rotate_back(pairs: list[Pair | None], batch: int, tokens: int, inputs: Inputs, spec: Spec) -> None:
    """Gradients of heads without a norm."""
    x, arguments, tile, angle, grid, *_ = prepared(pairs, batch, tokens, replace(inputs, inverse=True), spec)
    with device_of(x), first_in_capture():
        kernels.rotate_kernel[grid](*arguments, ANGLE=angle, TILE=tile, num_warps=tile.WARPS, **OPTIONS)


def _norm_backward(
    triples: list[Pair | None], batch: int, tokens: int, inputs: Inputs, spec: Spec, norms: Norms
) -> list[Tensor | None]:
    """Writes the gradients of heads with a norm; returns those of the weights."""
    weights = [None if triple is None else weight for triple, weight in zip(triples, norms[2:], strict=True)]
    x, arguments, tile, angle, grid, *_ = prepared(triples, batch, tokens, inputs, spec, normed=True, one_head=True)
    partials = [
        None if weight is None else x.new_empty(
            (grid[0] * tile.TOKENS * block, tile.PLANES * tile.UNITS), dtype=torch.float32
        )
        for weight, block in zip(weights, (tile.Q_BLOCK, tile.K_BLOCK), strict=True)
    ]  # fmt: skip
    with device_of(x), first_in_capture():
        norm_backward_kernels.rotate_norm_backward_kernel[grid](
            *arguments, *_norm_arguments(norms), *partials, ANGLE=angle, TILE=tile,
            BACK=replace(tile, READ_PAIRS=tile.WRITE_PAIRS, WRITE_PAIRS=tile.READ_PAIRS),
            Q_NORM=row_norm(norms.q, norms.q_weight, tile, spec.rotation),
            K_NORM=row_norm(norms.k, norms.k_weight, tile, spec.rotation),
            num_warps=tile.WARPS, **OPTIONS,
        )  # fmt: skip
    return [
        None
        if part is None or norm is None or weight is None
        else _of_weight(part, tile, spec.rotation, norm).to(weight.dtype)
        for part, norm, weight in zip(partials, norms[:2], weights, strict=True)
    ]


def _of_weight(partials: Tensor, tile: Tile, rotation: Rotation, norm: Norm) -> Tensor:
    """The gradient of a weight, float64 (head_dim,), from the kernel's parts of it, which are in its own order."""
    planes = partials.sum(0, dtype=torch.float64).view(tile.PLANES, tile.UNITS)
    members, count = 2 * tile.PAIRS_PER_UNIT, 2 if tile.WORDS else 1
    found = planes.new_empty(tile.HEAD_DIM)
    for i, channels in enumerate(pairs_of(found, rotation, written=norm.after_rope)):
        channels.copy_(planes[i:members:2].T.reshape(-1)[: tile.PAIRS].view(channels.shape))
    for r, (first, last) in enumerate(tile.RESTS):
        rest = planes[members + count * r : members + count * (r + 1)]
        found[first:last] = rest.T.reshape(-1)[: last - first]
    return found


def _rotate_norm(
    pairs: list[Pair | None], batch: int, tokens: int, inputs: Inputs, spec: Spec, norms: Norms
) -> None:  # fmt: skip
    x, arguments, tile, angle, grid, *_ = prepared(pairs, batch, tokens, inputs, spec, normed=True)
    with device_of(x), first_in_capture():
        norm_kernels.rotate_norm_kernel[grid](
            *arguments, *_norm_arguments(norms), ANGLE=angle, TILE=tile,
            Q_NORM=row_norm(norms.q, norms.q_weight, tile, spec.rotation),
            K_NORM=row_norm(norms.k, norms.k_weight, tile, spec.rotation),
            num_warps=tile.WARPS, **OPTIONS,
        )  # fmt: skip


def _norm_arguments(norms: Norms) -> tuple[Tensor | float | None, ...]:
    numbers = [norm or Norm(0.0) for norm in norms[:2]]
    return (*norms[2:], *(norm.weight_offset for norm in numbers), *(norm.eps for norm in numbers))


def row_norm(norm: Norm | None, weight: Tensor | None, tile: Tile, rotation: Rotation) -> RowNorm | None:
    """What a kernel is compiled for; ``None`` without a norm."""
    if norm is None:
        return None
    if weight is None:
        return RowNorm(False, norm.after_rope)
    word = 2 * weight.element_size()
    aligned = alignment(weight.element_size(), [weight.data_ptr()], rotation)
    words = min(tile.VECTOR, aligned // word, _VECTOR_BYTES // word) if tile.WORDS else 0
    return RowNorm(True, norm.after_rope, norm.weight_offset != 0.0, words)
