"""DynamicState: the length that transformers' ``dynamic`` RoPE remembers between calls, kept on the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import RopeConfig
from ..errors import RopeConfigError, RopeShapeError
from .lengths import length_of

__all__ = ["DynamicState"]


class DynamicState:
    """The ``seq_len`` that transformers' stateful rotary embedding would use in each call.

    With ``rope_type="dynamic"`` transformers keeps the frequencies of the longest call so far, and goes back to the
    initial ones at a call shorter than ``max_position_embeddings``. This class follows that rule with one int64 scalar
    per layer type, which tensor operations update in place: no host read, one graph for ``torch.compile``, and a fixed
    address for CUDA graphs. Types without a history (longrope among them) get the length of the call itself. Source:
    ``dynamic_frequency_update`` of transformers 5.23.

    Example::

        state = DynamicState(cfg)
        q, k = apply_rope(q, k, positions, cfg, seq_len=state.update(positions))

    Args:
        cfg: a config, or a mapping of layer type to config, as :meth:`RopeConfig.per_layer` returns.
        device: device of the state. By default it starts on the CPU and moves to the device of the first ``update``'s
            positions. Before you capture a CUDA graph, pass the device or call ``update`` once.

    Raises:
        RopeConfigError: neither a config nor a non-empty mapping to configs.
    """

    def __init__(
        self, cfg: RopeConfig | Mapping[str, RopeConfig], device: torch.device | str | int | None = None
    ) -> None:
        configs: dict[str | None, RopeConfig] = {None: cfg} if isinstance(cfg, RopeConfig) else _layers(cfg)
        # 0 for types without a history
        self._original = {name: layer.frequency_params.dynamic_length for name, layer in configs.items()}
        # An explicit device, as a default device of meta would lose the lengths. And no inference mode: its tensors
        # cannot be written outside it.
        with torch.inference_mode(False):
            self._lengths = {
                name: torch.full((), length, dtype=torch.int64, device="cpu" if device is None else device)
                for name, length in self._original.items()
            }

    def update(self, positions: Tensor, layer_type: str | None = None) -> Tensor:
        """Update the state for one call and return the call's ``seq_len``.

        Args:
            positions: all positions of the call, in tokens, of any shape; if empty, the state stays as it is.
            layer_type: which layers the call is for; ignored if the state was made from one config.

        Returns:
            The int64 scalar to pass as ``seq_len``, on the device of ``positions``. It has its own memory, which a
            later ``update`` does not change.

        Raises:
            RopeConfigError: ``layer_type`` is missing or not in the mapping.
            RopeShapeError: ``positions`` is not a tensor of numbers.
        """
        if not isinstance(positions, Tensor) or positions.dtype == torch.bool or positions.is_complex():
            got = str(positions.dtype) if isinstance(positions, Tensor) else type(positions).__name__
            raise RopeShapeError(f"positions: got {got}, must be an integer or floating tensor")
        name = self._name(layer_type)
        original, length = self._original[name], self._on(name, positions.device)
        if positions.numel() == 0:
            return length.clone()
        seq_len = length_of(positions)
        if not original:
            return seq_len
        is_short = (seq_len < original) & (length > original)
        seq_len = torch.where(is_short, original, torch.maximum(length, seq_len))
        length.copy_(seq_len)
        return seq_len

    def reset(self) -> None:
        """Return all layer types to their state before the first call."""
        for name, length in self._lengths.items():
            length.fill_(self._original[name])

    def __repr__(self) -> str:
        """The original lengths; the state itself is not read from the device."""
        layers = (f"{name or 'original'}={length or None}" for name, length in self._original.items())
        return f"{type(self).__name__}({', '.join(layers)})"

    def _name(self, layer_type: str | None) -> str | None:
        if None in self._original:
            return None
        if layer_type not in self._original:
            allowed = ", ".join(map(str, self._original))
            problem = "missing" if layer_type is None else f"got {layer_type!r}"
            raise RopeConfigError("layer_type", f"{problem}; the state has {allowed}")
        return layer_type

    def _on(self, name: str | None, device: torch.device) -> Tensor:
        length = self._lengths[name]
        if length.device != device:
            with torch.inference_mode(False):
                length = self._lengths[name] = length.to(device)
        return length


def _layers(cfg: object) -> dict[str | None, RopeConfig]:
    if not isinstance(cfg, Mapping) or not cfg:
        raise RopeConfigError("cfg", f"got {cfg!r}, must be a RopeConfig or a mapping of layer type to RopeConfig")
    for name, layer in cfg.items():
        if not isinstance(name, str) or not isinstance(layer, RopeConfig):
            raise RopeConfigError("cfg", f"got {name!r}: {type(layer).__name__}, must be layer type to RopeConfig")
    return dict(cfg)
