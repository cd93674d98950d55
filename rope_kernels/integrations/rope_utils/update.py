"""``dynamic_rope_update``: updates a module's frequencies for the sequence length, as in transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from .functions import ROPE_INIT_FUNCTIONS, Device

__all__ = ["dynamic_rope_update"]


def dynamic_rope_update(rope_forward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate ``forward(self, x, position_ids, layer_type=None)`` of a rotary embedding module of transformers.

    If the frequencies depend on the length, each call first sets ``inv_freq`` (or ``{layer_type}_inv_freq``) to those
    of ``max(position_ids) + 1`` tokens. ``dynamic`` grows with the longest length so far and goes back at one below the
    original; ``longrope`` chooses one of two tables by the length of the call alone.
    """

    @wraps(rope_forward)
    def wrapper(self: Any, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        rope_type = self.rope_type if layer_type is None else self.rope_type[layer_type]
        if "dynamic" in rope_type:
            _grow_or_reset(self, rope_type, position_ids, x.device, layer_type)
        elif rope_type == "longrope":
            _choose(self, rope_type, position_ids, x.device, layer_type)
        layer = {} if layer_type is None else {"layer_type": layer_type}
        return rope_forward(self, x, position_ids, **layer)

    return wrapper


def _prefix(layer_type: str | None) -> str:
    return "" if layer_type is None else f"{layer_type}_"


def _choose(module: Any, rope_type: str, position_ids: Tensor, device: Device, layer_type: str | None) -> None:
    prefix, parameters = _prefix(layer_type), module.config.rope_parameters
    original = (parameters if layer_type is None else parameters[layer_type])["original_max_position_embeddings"]
    long = getattr(module, f"{prefix}long_inv_freq", None)
    if long is None:
        long, _ = ROPE_INIT_FUNCTIONS[rope_type](module.config, device, seq_len=original + 1, layer_type=layer_type)
    # A plain attribute, which `module.to(...)` does not move.
    long = long.to(device)
    setattr(module, f"{prefix}long_inv_freq", long)
    short = getattr(module, f"{prefix}original_inv_freq").to(device)
    is_long = torch.max(position_ids) + 1 > original
    # In place and without a branch: both tables need one graph, and CUDA graphs can replay from the buffer's address.
    getattr(module, f"{prefix}inv_freq").copy_(torch.where(is_long, long, short))


def _grow_or_reset(module: Any, rope_type: str, position_ids: Tensor, device: Device, layer_type: str | None) -> None:
    prefix = _prefix(layer_type)
    seq_len = torch.max(position_ids) + 1
    longest = getattr(module, f"{prefix}max_seq_len_cached", module.max_seq_len_cached)
    initial = getattr(module, f"{prefix}original_inv_freq")
    if seq_len > longest:
        inv_freq, module.attention_scaling = _at_length(rope_type, module.config, device, seq_len, layer_type)
        module.register_buffer(f"{prefix}inv_freq", inv_freq, persistent=False)
        setattr(module, f"{prefix}max_seq_len_cached", seq_len)
    if seq_len < module.original_max_seq_len and longest > module.original_max_seq_len:
        initial = initial.to(device)
        module.register_buffer(f"{prefix}inv_freq", initial, persistent=False)
        setattr(module, f"{prefix}original_inv_freq", initial)
        setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


# The branch before the call has already ended any compiled graph, and reading the length gains nothing from one.
@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch has no types for it
def _at_length(
    rope_type: str, config: Any, device: Device, seq_len: Tensor, layer_type: str | None
) -> tuple[Tensor, float]:
    return ROPE_INIT_FUNCTIONS[rope_type](config, device, seq_len=seq_len, layer_type=layer_type)
