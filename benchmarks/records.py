"""What is counted or compared, and not timed: bytes kept for backward, errors by position, the GPU kernels' code."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import peers
import static_rows
from memory import saved_bytes
from ours import FORMS, Call, Inputs
from rope_kernels.measuring.curves import errors_by_position
from shapes import LLAMA_8B, SHAPES, Model, Shape, inputs

__all__ = ["RECORDS"]


def errors() -> dict[str, Any]:
    """Errors of fp32 inputs by position up to 2^24, ours and transformers', against exact phases."""
    found = errors_by_position(LLAMA_8B.config, LLAMA_8B.source, "full_attention")
    return {"model": LLAMA_8B.name, "positions": found.positions, "ours": found.ours,
            "transformers": found.transformers, "note": found.note}  # fmt: skip


def saved() -> list[dict[str, Any]]:
    """Bytes per token that each way keeps for its backward pass; both sides of q and k need a gradient."""
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
        call: Call = way(model, x)
        return saved_bytes(call, x)

    try:
        return {"way": name, "tokens": shape.tokens, "bytes": kept(LLAMA_8B)}
    except peers.MissingPeerError as error:
        return {"way": name, "tokens": shape.tokens, "missing": str(error)}


def static() -> list[dict[str, Any]]:
    """The GPU kernels' machine code; empty where Triton is not installed."""
    return [] if find_spec("triton") is None else static_rows.found()


RECORDS = {"errors": errors, "saved": saved, "static": static}
