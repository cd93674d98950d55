"""``RotaryEmbeddingConfigMixin``: standardizes and validates the rope parameters of a config, as in transformers."""

# No `from __future__ import annotations`: transformers' validating dataclasses read the types of RopeParameters, and
# cannot resolve names of this module.

from typing import Any, ClassVar, TypedDict

from .log import logger
from .validators import RopeValidators

__all__ = ["RopeParameters", "RotaryEmbeddingConfigMixin"]

_SCALED = ("llama3", "yarn", "longrope")
_SMALL_HEAD = 4  # transformers accepts an odd head up to so many channels, for its test models


class RopeParameters(TypedDict, total=False):
    """The rope parameters of a config, or of one layer type; keys have the same meaning as in ``RopeConfig``.

    Without ``rope_theta`` it is the model's ``default_theta``, without ``rope_type`` it is "default".
    """

    rope_theta: float | None
    rope_type: str | None
    partial_rotary_factor: float | None
    factor: float | None
    original_max_position_embeddings: int | None
    attention_factor: float | None
    beta_fast: float | None
    beta_slow: float | None
    short_factor: list[float] | None
    long_factor: list[float] | None
    low_freq_factor: float | None
    high_freq_factor: float | None
    mscale: float | None
    mscale_all_dim: float | None
    truncate: bool | None
    mrope_section: list[int] | None


class RotaryEmbeddingConfigMixin(RopeValidators):
    """Mixin for configs with ``rope_parameters``: a flat dict, or one per layer type, ``None`` without rotation.

    Attributes:
        default_theta: ``rope_theta`` of configs without one.
        default_rope_type: the type that "default" means; "axial" in vision towers.
        ignore_keys_at_rope_validation: keys that validation does not report as unrecognized.
    """

    default_theta = 10_000.0
    default_rope_type = "default"
    ignore_keys_at_rope_validation: ClassVar[set[str]] = set()

    def nested_rope_parameter_keys(self: Any, rope_parameters: dict[str, Any]) -> list[str]:
        """The layer types of the config that are keys of ``rope_parameters``; none for a flat dict.

        ``_rope_type_labels`` names them if they are not ``layer_types`` (DeepSeek-V4, LFM3).
        """
        labels = getattr(self, "_rope_type_labels", None) or getattr(self, "layer_types", None) or ()
        return [key for key in rope_parameters if key in labels]

    def convert_rope_params_to_dict(self: Any, **kwargs: Any) -> dict[str, Any]:
        """Collect the rope parameters from ``rope_scaling`` and from keys outside it, then standardize them.

        A value in ``rope_parameters`` wins over one in ``kwargs``, then the config's attribute, then the default.

        Returns:
            ``kwargs`` without the keys that were read.
        """
        self.rope_parameters = kwargs.pop("rope_scaling", None) or self.rope_parameters
        if self.rope_parameters is None:
            self.rope_parameters = {}
        rope_theta = kwargs.pop("rope_theta", getattr(self, "rope_theta", self.default_theta))
        share = kwargs.pop("partial_rotary_factor", getattr(self, "partial_rotary_factor", None))
        nested_keys = self.nested_rope_parameter_keys(self.rope_parameters)
        for parameters in [self.rope_parameters[key] for key in nested_keys] or [self.rope_parameters]:
            if parameters is not None:
                _fill(parameters, rope_theta, share)
        if share is not None:
            ignored = set(self.ignore_keys_at_rope_validation or ())
            self.ignore_keys_at_rope_validation = ignored | {"partial_rotary_factor"}
        self.standardize_rope_params()
        return kwargs

    def standardize_rope_params(self: Any) -> None:
        """Fill in each dict's ``rope_type``, ``rope_theta``, share and original length from the config's attributes."""
        rope_theta, share = getattr(self, "rope_theta", None), getattr(self, "partial_rotary_factor", None)
        rope_parameters = getattr(self, "rope_parameters", None) or {}
        nested_keys = self.nested_rope_parameter_keys(rope_parameters)
        if not (rope_parameters or rope_theta):
            logger.warning("`standardize_rope_params` was called but no RoPE parameters were found.")
            return
        for parameters in [rope_parameters[key] for key in nested_keys] or [rope_parameters]:
            if parameters is None:
                continue
            parameters.setdefault("rope_type", parameters.get("type", "default"))
            _fill(parameters, rope_theta, share)
            if parameters["rope_type"] == "default":
                parameters["rope_type"] = self.default_rope_type
            if parameters["rope_type"] in _SCALED:
                _fill_original(self, parameters, is_flat=not nested_keys)
        self.rope_parameters = rope_parameters

    def validate_rope(self: Any) -> None:
        """Check the rope parameters of every layer type with its rope type's validator; configs without any pass.

        Raises:
            KeyError: a required key is missing.
            ValueError: all channels of an odd head would be rotated.
        """
        rope_parameters = getattr(self, "rope_parameters", None)
        if not rope_parameters:
            return
        nested_keys = self.nested_rope_parameter_keys(rope_parameters)
        layers = {key: rope_parameters[key] for key in nested_keys} or {"full_attention": rope_parameters}
        # A heterogeneous config has no single head size.
        head_dim = None if self.is_heterogeneous else getattr(self, "head_dim", None)
        for layer_type, parameters in layers.items():
            if parameters is None:
                continue
            rope_type = parameters.get("rope_type", parameters.get("type", "default"))
            validate = getattr(self, f"_validate_{rope_type}_rope_parameters", None)
            parameters["rope_type"] = rope_type
            if validate is None:
                logger.warning(
                    f"Missing validation function in 'RotaryEmbeddingConfigMixin' for 'rope_type'='{rope_type}'"
                )
            else:
                validate(parameters, ignore_keys=self.ignore_keys_at_rope_validation)
            _check_head(head_dim, parameters.get("partial_rotary_factor", 1.0), layer_type)


def _fill(parameters: dict[str, Any], rope_theta: Any, share: Any) -> None:
    parameters.setdefault("rope_theta", rope_theta)
    if share is not None:
        parameters.setdefault("partial_rotary_factor", share)


def _fill_original(config: Any, parameters: dict[str, Any], is_flat: bool) -> None:
    key = "original_max_position_embeddings"
    if is_flat and hasattr(config, key):
        # Phi-3 has it outside the rope parameters, and that value wins.
        parameters[key] = getattr(config, key)
    else:
        parameters.setdefault(key, config.max_position_embeddings)


def _check_head(head_dim: Any, share: Any, layer_type: str) -> None:
    if head_dim is not None and head_dim > _SMALL_HEAD and head_dim % 2 and int(head_dim * share) == head_dim:
        raise ValueError(
            f"RoPE requires an even rotary dimension, but got `head_dim`={head_dim} with "
            f"`partial_rotary_factor`={share} for `{layer_type}`."
        )
