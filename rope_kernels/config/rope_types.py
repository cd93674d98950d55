"""One function per rope type: maps a config's values onto the parameters of :mod:`rope_kernels.core.frequency`.

No other module knows the types' names. A new type is one decorated function, or :func:`register_rope_type`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.frequency import FrequencyParams
from ..core.rotation import AXIAL_MAPS, AXIS_MAPS, MROPE_MAPS
from ..errors import RopeConfigError
from .fields import RopeFields

__all__ = ["DEFAULTS", "ROPE_TYPES", "YARN_SCALING", "RopeType", "register_rope_type", "yarn_scaling"]

# transformers' values for keys that are not given.
DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}

_STEP = 2.0**-40  # relative width of the ramp that represents a step

_LADDER = frozenset({"rope_theta", "partial_rotary_factor"})
_SECTIONS = frozenset({"mrope_section", "axis_map"})


@dataclass(frozen=True)
class RopeType:
    """A rope type: its function and the config keys that it reads. Calling it calls the function.

    Attributes:
        fn: returns the frequency parameters of a config.
        required: keys that a config must give.
        optional: keys that it may give; ``None`` allows any key, also one that is not a field.
        axis_maps: the axis maps that it allows, the default first.
        builtin: whether the package defines it.
    """

    fn: Callable[[RopeFields], FrequencyParams]
    required: frozenset[str] = frozenset()
    optional: frozenset[str] | None = frozenset()
    axis_maps: tuple[str, ...] = MROPE_MAPS
    builtin: bool = False

    def __call__(self, config: RopeFields) -> FrequencyParams:
        """The frequency parameters of ``config``."""
        return self.fn(config)

    def takes(self, key: str) -> bool:
        """Whether the type reads ``key``."""
        return self.optional is None or key in self.required or key in self.optional


ROPE_TYPES: dict[str, RopeType] = {}


def register_rope_type(
    name: str,
    fn: Callable[[RopeFields], FrequencyParams],
    *,
    required: Iterable[str] = (),
    optional: Iterable[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Add a rope type.

    Args:
        name: the value of ``rope_type`` in configs.
        fn: takes the config, whose ``extra`` holds the keys that are not fields; returns :class:`FrequencyParams`.
        required: keys a config must give.
        optional: keys that it may give (``None``: any key).
        overwrite: replace a type that is registered under ``name``.

    Raises:
        RopeConfigError: the name is taken or is not a non-empty string, or ``fn`` is not callable.
    """
    if not isinstance(name, str) or not name:
        raise RopeConfigError("rope_type", f"got {name!r}, must be a non-empty string")
    if not callable(fn):
        raise RopeConfigError("fn", f"got {fn!r}, must be a function of the config")
    if name in ROPE_TYPES and not overwrite:
        raise RopeConfigError("rope_type", f"{name!r} is registered already; pass overwrite=True to replace it")
    more = None if optional is None else frozenset(optional) | _LADDER | _SECTIONS
    ROPE_TYPES[name] = RopeType(fn, frozenset(required), more)


def _builtin(
    name: str,
    required: str = "",
    optional: str = "",
    shared: frozenset[str] = _LADDER | _SECTIONS,
    axis_maps: tuple[str, ...] = MROPE_MAPS,
) -> Callable[[Callable[[RopeFields], FrequencyParams]], Callable[[RopeFields], FrequencyParams]]:
    def add(fn: Callable[[RopeFields], FrequencyParams]) -> Callable[[RopeFields], FrequencyParams]:
        needs = frozenset(required.split())
        ROPE_TYPES[name] = RopeType(fn, needs, frozenset(optional.split()) | shared - needs, axis_maps, builtin=True)
        return fn

    return add


def _ladder(config: RopeFields, **values: object) -> FrequencyParams:
    d = config.ladder_dim
    # mypy cannot know which fields ``values`` names.
    # An odd share of the head is rounded up to whole pairs, but stays the divisor of the exponent: transformers.
    return FrequencyParams(config.rope_theta, d, (d + 1) // 2, **values)  # type: ignore[arg-type]


def _given(config: RopeFields, key: str) -> Any:
    """The value of a required key, which a :class:`RopeConfig` has checked."""
    return getattr(config, key)


def _need(field: str, value: int | None, why: str) -> int:
    if value is None:
        raise RopeConfigError(field, f"missing; {why}")
    return value


@_builtin("default")
def _default(config: RopeFields) -> FrequencyParams:
    """``theta ** (-2 j / d)``: RoFormer, https://arxiv.org/abs/2104.09864."""
    return _ladder(config)


_builtin("mrope", required="mrope_section")(_default)


@_builtin("linear", required="factor")
def _linear(config: RopeFields) -> FrequencyParams:
    """Position interpolation: https://arxiv.org/abs/2306.15595."""
    return _ladder(config, factor=config.factor, ramp=(0.0, 0.0, 0.0))


@_builtin("dynamic", required="factor max_position_embeddings")
def _dynamic(config: RopeFields) -> FrequencyParams:
    """Dynamic NTK: theta grows with the length; transformers' ``_compute_dynamic_ntk_parameters``."""
    _wider_than_two(config)
    return _ladder(config, dynamic_factor=config.factor, dynamic_length=config.max_position_embeddings)


@_builtin("ntk_alpha", required="alpha")
def _ntk_alpha(config: RopeFields) -> FrequencyParams:
    """NTK with a constant growth: HunYuan's ``alpha``."""
    _wider_than_two(config)
    d, theta, alpha = config.ladder_dim, config.rope_theta, config.alpha or 1.0
    return FrequencyParams(theta * alpha ** (d / (d - 2)), d, (d + 1) // 2)


def _wider_than_two(config: RopeFields) -> None:
    if config.ladder_dim <= 2:
        raise RopeConfigError(
            "head_dim",
            f"{config.rope_type} takes the power d / (d - 2) of {config.ladder_dim} rotated channels; "
            "more than 2 are needed",
        )


def _mscale(scale: float, mscale: float = 1.0) -> float:
    return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0


@_builtin(
    "yarn",
    required="original_max_position_embeddings",
    optional="factor attention_factor beta_fast beta_slow mscale mscale_all_dim truncate",
)
def _yarn(config: RopeFields) -> FrequencyParams:
    """YaRN: https://arxiv.org/abs/2309.00071; attention factor as in DeepSeek."""
    original = _given(config, "original_max_position_embeddings")
    factor = _yarn_factor(config.factor, config.max_position_embeddings, original)
    scaling = config.attention_factor
    if scaling is None:
        scaling = yarn_scaling({name: getattr(config, name) for name in YARN_SCALING})
    low, high = _yarn_range(config, original)
    ramp = (-1.0 / (high - low), 0.0, 1.0 + low / (high - low))
    return _ladder(config, factor=factor, ramp=ramp, attention_scaling=scaling)


YARN_SCALING = ("factor", "mscale", "mscale_all_dim", "max_position_embeddings", "original_max_position_embeddings")


def yarn_scaling(values: Mapping[str, Any]) -> float:
    """YaRN's own attention factor, from the values of :data:`YARN_SCALING`.

    Raises:
        RopeConfigError: neither ``factor`` nor the two lengths are given.
    """
    factor = _yarn_factor(*(values[key] for key in ("factor", *YARN_SCALING[3:])))
    if values["mscale"] and values["mscale_all_dim"]:
        return _mscale(factor, values["mscale"]) / _mscale(factor, values["mscale_all_dim"])
    return _mscale(factor)


def _yarn_factor(factor: float | None, longest: int | None, original: int | None) -> float:
    if factor is not None:
        return factor
    longest = _need("max_position_embeddings", longest, "yarn without factor needs it")
    return longest / _need("original_max_position_embeddings", original, "yarn needs it")


def _yarn_range(config: RopeFields, original: int) -> tuple[float, float]:
    d = config.ladder_dim

    def index(turns: float) -> float:
        return d * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = index(config.beta_fast or DEFAULTS["beta_fast"]), index(config.beta_slow or DEFAULTS["beta_slow"])
    if config.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    return low, high + 0.001 if low == high else high


@_builtin("llama3", required="factor low_freq_factor high_freq_factor original_max_position_embeddings")
def _llama3(config: RopeFields) -> FrequencyParams:
    """Llama 3.1: transformers' ``_compute_llama3_parameters``."""
    low, high = _given(config, "low_freq_factor"), _given(config, "high_freq_factor")
    # transformers treats a ramp that does not rise as a step at `low`.
    width = high - low if high > low else low * _STEP
    ramp = (0.0, _given(config, "original_max_position_embeddings") / (2 * math.pi * width), -low / width)
    return _ladder(config, factor=config.factor, ramp=ramp)


@_builtin(
    "longrope",
    required="short_factor long_factor original_max_position_embeddings",
    optional="factor attention_factor short_mscale long_mscale",
)
def _longrope(config: RopeFields) -> FrequencyParams:
    """LongRoPE: https://arxiv.org/abs/2402.13753; PhiMoE's ``short_mscale`` and ``long_mscale`` set the scaling."""
    original = _given(config, "original_max_position_embeddings")
    short, long = config.short_mscale, config.long_mscale
    if short is None or long is None:
        scaling = _longrope_scaling(config, original)
        short, long = (scaling if x is None else x for x in (short, long))
    rows = tuple(tuple(1.0 / x for x in _given(config, key)) for key in ("short_factor", "long_factor"))
    return _ladder(
        config,
        attention_scaling=short,
        long_attention_scaling=None if long == short else long,
        multipliers=rows,
        switch_length=original,
    )


def _longrope_scaling(config: RopeFields, original: int) -> float:
    if config.attention_factor is not None:
        return config.attention_factor
    factor = config.factor
    if factor is None:
        why = "longrope without factor, attention_factor and mscales needs it"
        factor = _need("max_position_embeddings", config.max_position_embeddings, why) / original
    return 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))


@_builtin("proportional", optional="factor")
def _proportional(config: RopeFields) -> FrequencyParams:
    """The ladder spans the whole head and its slow part is cut off: Gemma 4's full attention."""
    d = config.head_dim
    rotated = int(config.partial_rotary_factor * d // 2)
    return FrequencyParams(
        config.rope_theta, d, d // 2, rotated=rotated, factor=config.factor or 1.0, ramp=(0.0, 0.0, 0.0)
    )


@_builtin("axial", shared=_LADDER | {"axis_map"}, axis_maps=AXIAL_MAPS)
def _axial(config: RopeFields) -> FrequencyParams:
    """Two position rows; each has its own ladder over half the channels, or (pixtral) they share one."""
    d = config.ladder_dim
    if d % 4:
        raise RopeConfigError("head_dim", f"axial needs a multiple of 4 rotated channels, got {d}")
    return _ladder(config) if config.axis_map == "pixtral" else FrequencyParams(config.rope_theta, d // 2, d // 4)


@_builtin("inv_freq", required="inv_freq_table", optional="attention_factor", shared=_SECTIONS, axis_maps=AXIS_MAPS)
def _inv_freq(config: RopeFields) -> FrequencyParams:
    """The caller's own table, unchanged."""
    table = tuple(config.inv_freq_table or ())
    scaling = 1.0 if config.attention_factor is None else config.attention_factor
    return FrequencyParams(1.0, 2 * len(table), len(table), attention_scaling=scaling, multipliers=(table,))
