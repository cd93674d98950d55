"""transformers' own rotation for the same config, positions, q and k, for comparison."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..environment import version_of

__all__ = ["PeerError", "PeerRotation", "bound", "transformers_rotation"]

Pair = tuple[Tensor, Tensor]

# Models without code in transformers, and the model that has the same rotation.
_SAME_ROTATION = {"internlm2": "llama"}


class PeerError(RuntimeError):
    """transformers cannot rotate this config; the message says why."""


@dataclass(frozen=True)
class PeerRotation:
    """A library's rotation in its two steps: a model makes the table once, and each layer applies it.

    Attributes:
        table: (q, positions) -> (cos, sin).
        apply: (q, k, cos, sin) -> (q, k) rotated.
    """

    table: Callable[[Tensor, Tensor], Pair]
    apply: Callable[[Tensor, Tensor, Tensor, Tensor], Pair]

    def __call__(self, q: Tensor, k: Tensor, positions: Tensor) -> Pair:
        """(q, k) rotated, by a table that is made for this call."""
        return self.apply(q, k, *self.table(q, positions))


def bound(dtype: torch.dtype, last_position: int) -> float:
    """Error that a peer may have, relative to the largest value: tables are in q's dtype, angles in float32."""
    return 3 * torch.finfo(dtype).eps + 2.0**-22 * (last_position + 1)


def transformers_rotation(source: Mapping[str, Any], layer_type: str) -> PeerRotation:
    """transformers' rotary embedding and ``apply_rotary_pos_emb`` of the config's own model.

    Args:
        source: the dict of a config.json.
        layer_type: which layers, if the model's embedding distinguishes them.

    Returns:
        For q and k (batch, tokens, heads, head_dim) and positions (batch, tokens) or (axes, batch, tokens).

    Raises:
        PeerError: transformers is missing, or this version cannot build the model's rotary embedding.
    """
    if version_of("transformers") is None:
        raise PeerError("transformers is not installed")
    try:
        config = _config(source)
        modeling = importlib.import_module(type(config).__module__.replace("configuration_", "modeling_"))
        embedding = _embedding_class(config, modeling)(config)
    except (ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise PeerError(f"this transformers cannot build it: {type(error).__name__}: {error}") from error
    extra = {"layer_type": layer_type} if "layer_type" in inspect.signature(embedding.forward).parameters else {}

    def table(q: Tensor, positions: Tensor) -> Pair:
        cos, sin = embedding.to(q.device)(q, positions, **extra)
        return cos, sin

    return PeerRotation(table, _apply_function(config, modeling))


def _config(source: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig
    from transformers.utils import logging

    values = dict(source)
    model_type = values.pop("model_type")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return AutoConfig.for_model(_SAME_ROTATION.get(model_type, model_type), **values)
    finally:
        logging.set_verbosity(verbosity)


def _embedding_class(config: Any, modeling: ModuleType) -> Any:
    stem = type(config).__name__.removesuffix("Config")
    own = getattr(modeling, f"{stem}RotaryEmbedding", None)
    return own or getattr(modeling, f"{stem.removesuffix('Text')}RotaryEmbedding")


def _apply_function(config: Any, modeling: ModuleType) -> Callable[..., tuple[Tensor, Tensor]]:
    name = "apply_rotary_pos_emb"
    if getattr(config, "rope_interleave", False) and hasattr(modeling, f"{name}_interleave"):
        name += "_interleave"
    function = getattr(modeling, name)
    if "k" in inspect.signature(function).parameters:
        return lambda q, k, cos, sin: function(q, k, cos, sin, unsqueeze_dim=2)
    return lambda q, k, cos, sin: (function(q, cos, sin, unsqueeze_dim=2), function(k, cos, sin, unsqueeze_dim=2))
