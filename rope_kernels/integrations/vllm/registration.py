"""Registers the layers with vLLM: from code, or as a plug-in that an environment variable turns on."""

from __future__ import annotations

import logging
import os
from typing import Any

__all__ = ["VARIABLE", "register", "register_if_enabled"]

VARIABLE = "ROPE_KERNELS_VLLM"
"""1 turns the plug-in on; vLLM loads every plug-in that is installed."""
_log = logging.getLogger(__name__)


def register_if_enabled() -> None:
    """The entry point ``vllm.general_plugins``: :func:`register` if :data:`VARIABLE` is 1. It never raises."""
    value = os.environ.get(VARIABLE, "0")
    if value == "1":
        try:
            register()
        except Exception:
            _log.exception("rope_kernels: vLLM's own rotary layers stay")
    elif value != "0":
        _log.error("rope_kernels: %s is %r, allowed are 0 and 1; vLLM's own rotary layers stay", VARIABLE, value)


def register() -> None:
    """Let vLLM construct rotary layers that rotate by these kernels. Call it before the model is loaded.

    A layer that cannot be read, or whose own table has other angles, keeps vLLM's forward; :func:`report` says why.
    Layers that exist already are as they were. Repeating the call changes nothing.

    Raises:
        ImportError: vLLM is not installed, or has no such layers; tried with 0.32.
    """
    from vllm.model_executor.custom_op import CustomOp, op_registry_oot
    from vllm.model_executor.layers import rotary_embedding
    from vllm.model_executor.layers.rotary_embedding import ernie45_vl_rope

    from .configs import READERS
    from .layers import longrope_layer, rotary_layer

    for kind in READERS:
        own: Any = getattr(rotary_embedding, kind, None) or getattr(ernie45_vl_rope, kind, None)
        if own is None or kind in op_registry_oot:
            continue  # this vLLM has no such layer, or another plug-in was first
        made: Any = rotary_layer(own, kind)
        CustomOp.register_oot(made, name=kind)
        made.name = own.name  # which register_oot overwrites; "+rotary_embedding" would not be heard
    longrope = "Phi3LongRoPEScaledRotaryEmbedding"
    phi3: Any = getattr(rotary_embedding, longrope)
    if not hasattr(phi3, "rope_kernels_is_ours"):
        replaced: Any = longrope_layer(phi3)
        replaced.rope_kernels_is_ours = True
        setattr(rotary_embedding, longrope, replaced)  # get_rope looks it up there
