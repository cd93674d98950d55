"""What the plug-in makes of a model's config, and how far vLLM's own rotary table is off; for ``rope-kernels vllm``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from ...config import RopeConfig
from ...errors import RopeConfigError
from .configs import NotReadError, config_of, longrope_config, table_of

__all__ = ["Audit", "audit"]

_FREQUENCIES_DIFFER = 1e-5
"""Of a frequency, relative to it: vLLM computes them in float32."""


@dataclass(frozen=True)
class Audit:
    """One kind of layers of a model.

    Attributes:
        layers: their type in the config, "" for all.
        kind: vLLM's rotary class.
        replaced: whether the plug-in rotates in its place.
        reason: why not, else "".
        table_error: the largest error of the rows of vLLM's float32 table against exact angles, as a share of its
            scaling; ``None`` if the layer cannot be read.
        farthest: the position of the last row, in tokens.
        difference: how far vLLM's frequencies are from what the config means, relative to those; 0 where they agree.
        note: in words, where they do not.
    """

    layers: str
    kind: str
    replaced: bool
    reason: str
    table_error: float | None
    farthest: int
    difference: float
    note: str


def audit(config: Mapping[str, Any]) -> list[Audit]:
    """Construct vLLM's rotary layer of each kind of layers in a transformers config, and measure it.

    Args:
        config: the dict of a config.json.

    Raises:
        ImportError: vLLM is not installed.
        RopeConfigError: the config cannot be read, or names no model type.
    """
    if "model_type" not in config:
        raise RopeConfigError("model_type", "missing; vLLM chooses a model by it")
    from vllm.config import VllmConfig, set_current_vllm_config

    kinds = RopeConfig.per_layer(config)
    engine = VllmConfig()
    # Phi3LongRoPEScaledRotaryEmbedding asks how long sequences may become: here, as long as the config says.
    longest = max(cfg.max_position_embeddings or 0 for cfg in kinds.values())
    object.__setattr__(engine, "model_config", SimpleNamespace(max_model_len=longest))
    with set_current_vllm_config(engine):
        return [_audited(name, meant, _parameters(config, name), len(kinds) == 1) for name, meant in kinds.items()]


def _parameters(config: Mapping[str, Any], layers: str) -> dict[str, Any]:
    """vLLM's ``rope_parameters`` of these layers: those of transformers 5, whatever the config's spelling."""
    from transformers import AutoConfig
    from vllm.transformers_utils.config import patch_rope_parameters

    values = dict(config)
    kind = values.pop("model_type")
    try:
        text: Any = AutoConfig.for_model(kind, **values).get_text_config()
    except ValueError as error:  # code of the model's own, which is not run here
        raise RopeConfigError("model_type", f"got {kind!r}, which the installed transformers does not have") from error
    patch_rope_parameters(text)
    found: dict[str, Any] = dict(text.rope_parameters)
    nested = found.get(layers.partition(",")[0])
    return dict(nested) if isinstance(nested, Mapping) else found


def _audited(name: str, meant: RopeConfig, parameters: dict[str, Any], only: bool) -> Audit:
    from vllm.model_executor.layers.rotary_embedding import get_rope

    layers = "" if only else name
    length = meant.max_position_embeddings or meant.original_max_position_embeddings or 8192
    try:
        layer = get_rope(
            meant.head_dim, max_position=length, is_neox_style=meant.pairing == "half", rope_parameters=parameters,
            dtype=torch.float32,
        )  # fmt: skip
    except Exception as error:
        return Audit(layers, "-", False, f"vLLM cannot make it: {type(error).__name__}: {error}", None, 0, 0.0, "")
    kind = type(layer).__name__.removeprefix("RopeKernels")
    try:
        read, seq_len = _read(layer, kind)
    except (NotReadError, RopeConfigError, KeyError) as error:
        reason = f"no reader for {kind}" if isinstance(error, KeyError) else str(error)
        return Audit(layers, kind, False, reason, None, 0, 0.0, "")
    table = table_of(layer).detach().cpu()
    difference = _difference(read, meant, seq_len)
    note = f"up to {difference:.1%} from the config's own" if difference > _FREQUENCIES_DIFFER else ""
    if meant.rope_type == "dynamic":
        note += ("; " if note else "") + "fixed for the longest sequence; the config's grow with each"
    return Audit(layers, kind, True, "", _table_error(table, read, seq_len), table.shape[0] - 1, difference, note)


def _read(layer: Any, kind: str) -> tuple[RopeConfig, int | None]:
    if kind == "Phi3LongRoPEScaledRotaryEmbedding":
        return longrope_config(layer)
    return config_of(layer, kind, bool(layer.is_neox_style)), None


def _table_error(table: torch.Tensor, cfg: RopeConfig, seq_len: int | None, rows: int = 4096) -> float:
    """Over the last rows, where the error is largest."""
    last = table.shape[0]
    positions = torch.arange(max(0, last - rows), last, dtype=torch.float64)[:, None]
    angle = positions * cfg.inv_freq(seq_len).double()[None, : table.shape[1] // 2]
    scaling = cfg.frequency_params.scaling(seq_len)
    exact = torch.cat((angle.cos(), angle.sin()), -1) * scaling
    return ((table[max(0, last - rows) :].double() - exact).abs().max() / scaling).item()


def _difference(read: RopeConfig, meant: RopeConfig, seq_len: int | None) -> float:
    """Of the frequencies, and where they agree of the scaling; at the start if they depend on the length."""
    ours, theirs = meant.inv_freq(seq_len).double(), read.inv_freq(seq_len).double()
    if ours.shape != theirs.shape:
        return float("inf")
    live = ours != 0
    apart = ((theirs - ours).abs()[live] / ours.abs()[live]).max().item() if live.any() else 0.0
    scaling = meant.frequency_params.scaling(seq_len)
    return max(apart, abs(read.frequency_params.scaling(seq_len) - scaling) / scaling)
