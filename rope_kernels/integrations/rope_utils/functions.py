"""``ROPE_INIT_FUNCTIONS``: from a config to ``(inv_freq, attention_factor)``, by the package's own rope types.

A config that transformers only logs about gets the same result here; one that it fails on raises the same kind of
error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...config import RopeConfig
from ...config.fields import RopeFields
from ...config.rope_types import ROPE_TYPES
from ...core.frequency import FrequencyParams
from .keys import KEYS

__all__ = [
    "ROPE_INIT_FUNCTIONS",
    "_compute_axial_rope_parameters",
    "_compute_default_rope_parameters",
    "_compute_dynamic_ntk_parameters",
    "_compute_linear_scaling_rope_parameters",
    "_compute_llama3_parameters",
    "_compute_longrope_parameters",
    "_compute_proportional_rope_parameters",
    "_compute_yarn_parameters",
]

Device = torch.device | str | int | None
InvFreq = tuple[Tensor, float]

# PhiMoE's model code applies its two scalings itself, so transformers' longrope does not read them.
_FIELDS = {field.name for field in fields(RopeFields)} - {"head_dim", "short_mscale", "long_mscale"}
# For these types transformers computes the size of a head from the model's size before it reads the config's own.
_READS_SHAPE = ("dynamic", "yarn", "longrope")
_SMALLEST = math.ulp(0.0)


def _compute(
    rope_type: str,
    config: Any,
    device: Device,
    seq_len: int | Tensor | None,
    layer_type: str | None,
    head_dim_key: str = "head_dim",
) -> InvFreq:
    config = _of_layer(config, layer_type)
    config.standardize_rope_params()
    parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    values = _fields(rope_type, config, parameters, head_dim_key)
    length = int(seq_len) if isinstance(seq_len, Tensor) else seq_len
    params = _one_row(ROPE_TYPES[rope_type](values), length)
    table = params.inv_freqs(range(params.num_frequencies), length)
    return torch.tensor(table, dtype=torch.float32, device=device), params.scaling(length)


def _of_layer(config: Any, layer_type: str | None) -> Any:
    """The config of the layers, if layers have their own; labels that are not layer types (DeepSeek-V4) share one."""
    try:
        return config if layer_type is None else config.per_layer_config[layer_type]
    except ValueError:
        return config


def _fields(rope_type: str, config: Any, parameters: dict[str, Any], head_dim_key: str) -> RopeFields:
    kind = ROPE_TYPES[rope_type]
    values = {"rope_theta": parameters["rope_theta"]}
    if rope_type in _READS_SHAPE:
        head_dim = getattr(config, head_dim_key, config.hidden_size // config.num_attention_heads)
    else:
        head_dim = getattr(config, head_dim_key, None) or config.hidden_size // config.num_attention_heads
    values |= {key: parameters[key] for key in KEYS[rope_type].required}
    values |= {key: value for key, value in parameters.items() if key in _FIELDS and kind.takes(key)}
    if rope_type == "dynamic" or (rope_type in _READS_SHAPE and values.get("factor") is None):
        values["max_position_embeddings"] = config.max_position_embeddings
    if rope_type == "yarn":
        # transformers reads only the outer dict, so there a layer type's own value has no effect.
        values["truncate"] = bool(parameters.get("truncate", config.rope_parameters.get("truncate", True)))
    # transformers also takes tensors and arrays; they become numbers and lists.
    values = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in values.items()}
    _fail_as_transformers(rope_type, values, head_dim)
    if values.get("factor") == 0:
        values["factor"] = _SMALLEST  # transformers divides tensors by 0, which gives infinity
    return RopeFields(head_dim=head_dim, **values)


def _fail_as_transformers(rope_type: str, values: dict[str, Any], head_dim: int) -> None:
    """Raise transformers' error where its arithmetic fails and ours does not, or fails with another error."""
    for key in ("rope_theta",) if rope_type in ("yarn", "longrope") else ("rope_theta", "factor"):
        if key in values and not isinstance(values[key], Real):
            raise TypeError(f"{key}: got {values[key]!r}, must be a number")
    if rope_type == "llama3" and 0 in (values["low_freq_factor"], values["high_freq_factor"]):
        raise ZeroDivisionError("llama3 divides by low_freq_factor and high_freq_factor, which must not be 0")
    if rope_type in ("dynamic", "yarn"):
        dim = int(head_dim * values.get("partial_rotary_factor", 1.0))
        if rope_type == "dynamic" and dim == 2:
            raise ZeroDivisionError("dynamic takes the power d / (d - 2) of 2 rotated channels; more are needed")
        if rope_type == "yarn" and dim % 2 and dim > 3:
            raise RuntimeError(f"yarn needs an even number of rotated channels, got {dim}")


def _one_row(params: FrequencyParams, seq_len: int | None) -> FrequencyParams:
    """``params`` with longrope's list for ``seq_len`` only, which may have one number for all frequencies."""
    if not params.multipliers:
        return params
    row, expected = params.multipliers[int(params.is_long(seq_len))], params.num_frequencies
    if len(row) not in (1, expected):
        name = "long_factor" if params.is_long(seq_len) else "short_factor"
        raise RuntimeError(f"{name}: got {len(row)} entries, must have one per frequency, {expected}")
    return replace(params, multipliers=(row if len(row) == expected else row * expected,))


def _compute_default_rope_parameters(
    config: Any, device: Device = None, seq_len: int | Tensor | None = None, layer_type: str | None = None
) -> InvFreq:
    """The plain ladder over ``partial_rotary_factor`` of the head.

    Args:
        config: a transformers config, or anything with its attributes and ``standardize_rope_params``.
        device: of the frequencies; ``None`` is torch's default.
        seq_len: length in tokens, an int or a scalar tensor; only dynamic and longrope read it.
        layer_type: whose parameters to read if they are nested.

    Returns:
        Float32 ``(ceil(rotary_dim / 2),)`` in radians per position, and the factor on cos and sin.

    Raises:
        KeyError: a required key of the rope parameters is missing.
    """
    return _compute("default", config, device, seq_len, layer_type)


def _compute_axial_rope_parameters(
    config: Any, device: Device = None, seq_len: int | Tensor | None = None, layer_type: str | None = None
) -> InvFreq:
    """A vision tower's frequencies: the ladder that its two axes share, or the parts of both axes in sequence.

    Raises:
        RopeConfigError: it is unknown how the model splits its ladder between the axes.
    """
    cfg = RopeConfig.from_hf(config, layer_type, strict=False)
    table = cfg.frequency_params.inv_freqs(dict.fromkeys(cfg.rotation().index))
    return torch.tensor(table, dtype=torch.float32, device=device), cfg.attention_scaling


def _compute_linear_scaling_rope_parameters(
    config: Any, device: Device = None, seq_len: int | Tensor | None = None, layer_type: str | None = None
) -> InvFreq:
    """Position interpolation; arguments as of :func:`_compute_default_rope_parameters`."""
    return _compute("linear", config, device, seq_len, layer_type)


def _compute_proportional_rope_parameters(
    config: Any,
    device: Device = None,
    seq_len: int | Tensor | None = None,
    layer_type: str | None = None,
    head_dim_key: str = "head_dim",
) -> InvFreq:
    """Gemma 4's ladder over the whole head, ``config.<head_dim_key>``, with zeros for the channels not rotated."""
    return _compute("proportional", config, device, seq_len, layer_type, head_dim_key)


def _compute_dynamic_ntk_parameters(
    config: Any, device: Device = None, seq_len: int | Tensor | None = None, layer_type: str | None = None
) -> InvFreq:
    """Dynamic NTK at ``seq_len``; up to ``max_position_embeddings`` it has no effect."""
    return _compute("dynamic", config, device, seq_len, layer_type)


def _compute_yarn_parameters(
    config: Any, device: Device = None, seq_len: int | Tensor | None = None, layer_type: str | None = None
) -> InvFreq:
    """YaRN. Unlike transformers, it respects a layer type's own ``truncate``."""
    return _compute("yarn", config, device, seq_len, layer_type)


def _compute_longrope_parameters(
    config: Any, device: Device = None, seq_len: int | Tensor | None = None, layer_type: str | None = None
) -> InvFreq:
    """LongRoPE: the long list if ``seq_len`` is above the original context, else the short one."""
    return _compute("longrope", config, device, seq_len, layer_type)


def _compute_llama3_parameters(
    config: Any, device: Device = None, seq_len: int | Tensor | None = None, layer_type: str | None = None
) -> InvFreq:
    """Llama 3.1; its ramp is a step if ``low_freq_factor`` is not below ``high_freq_factor``."""
    return _compute("llama3", config, device, seq_len, layer_type)


class _InitFunctions(dict[str, Callable[..., InvFreq]]):
    """A dict that also finds ``"default"`` and ``"axial"``, but does not list them among its keys.

    transformers merges its dict over the functions of a model's own module, and reads its keys to see which types need
    parameters. These two must not be among the keys, as each model has its own functions for them.
    """

    _of_models: ClassVar[dict[str, Callable[..., InvFreq]]] = {
        "default": _compute_default_rope_parameters,
        "axial": _compute_axial_rope_parameters,
    }

    def __missing__(self, rope_type: str) -> Callable[..., InvFreq]:
        return self._of_models[rope_type]

    def __contains__(self, rope_type: object) -> bool:
        return super().__contains__(rope_type) or rope_type in self._of_models

    def get(self, rope_type: str, default: Any = None) -> Any:
        """``dict.get``, which finds the same names."""
        return super().get(rope_type) or self._of_models.get(rope_type, default)


ROPE_INIT_FUNCTIONS: dict[str, Callable[..., InvFreq]] = _InitFunctions(
    linear=_compute_linear_scaling_rope_parameters,
    dynamic=_compute_dynamic_ntk_parameters,
    yarn=_compute_yarn_parameters,
    longrope=_compute_longrope_parameters,
    llama3=_compute_llama3_parameters,
    proportional=_compute_proportional_rope_parameters,
)
"""Functions by ``rope_type``. Add your own with the same signature, as with transformers' dict."""
