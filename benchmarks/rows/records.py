"""Records that are not timed: bytes saved for backward, errors by position, and the GPU kernels' machine code."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from rope_kernels.measuring.curves import errors_by_position

from . import peers
from .memory import saved_bytes
from .ours import FORMS, Inputs, TimedCall
from .shapes import LLAMA_8B, SHAPES, Model, Shape, inputs

__all__ = ["RECORDS"]


def errors() -> dict[str, Any]:
    """Errors of fp32 results against exact ones at positions up to 2^24, ours and transformers'."""
    found = errors_by_position(LLAMA_8B.config, LLAMA_8B.source, "full_attention")
    return {"model": LLAMA_8B.name, "positions": found.positions, "ours": found.ours,
            "transformers": found.transformers, "note": found.note}  # fmt: skip


def saved() -> list[dict[str, Any]]:
    """Bytes that each library saves for the backward pass; q and k both need a gradient."""
    ways = {
        "rope_kernels": lambda model, x: FORMS["allocating"](model.config, *x),
        "transformers": peers.transformers,
        "hand-fused, torch.compile": peers.fused_compiled,
        "transformers, torch.compile": peers.transformers_compiled,
    }
    return [_saved(name, way, SHAPES[2]) for name, way in ways.items()]


def _saved(name: str, way: Any, shape: Shape) -> dict[str, Any]:
    def kept(model: Model) -> int:
        q, k, positions = inputs(model, shape)
        x: Inputs = q.requires_grad_(), k.requires_grad_(), positions
        call: TimedCall = way(model, x)
        return saved_bytes(call, x)

    try:
        return {"way": name, "tokens": shape.tokens, "bytes": kept(LLAMA_8B)}
    except peers.MissingPeerError as error:
        return {"way": name, "tokens": shape.tokens, "missing": str(error)}


def static() -> list[dict[str, Any]]:
    """Figures of the GPU kernels' machine code; empty without Triton."""
    if find_spec("triton") is None:
        return []
    from .static_figures import nvidia_bf16_figures

    return nvidia_bf16_figures()


RECORDS = {"errors": errors, "saved": saved, "static": static}
