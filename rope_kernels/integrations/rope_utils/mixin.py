"""``RotaryEmbeddingConfigMixin``: how a config standardizes and validates its rope parameters, as in transformers."""

# No `from __future__ import annotations`: the fields of RopeParameters are real types, which transformers' validating
# dataclasses read without the names of this module.

from typing import Any, ClassVar, TypedDict

from .log import logger
from .validators import RopeValidators

__all__ = ["RopeParameters", "RotaryEmbeddingConfigMixin"]

_SCALED = ("llama3", "yarn", "longrope")
_SMALL_HEAD = 4  # channels up to which transformers lets an odd head pass, for its test models


class RopeParameters(TypedDict, total=False):
    """The rope parameters of a config, or of one layer type; keys mean what they do in ``RopeConfig``.

    ``rope_theta`` left out is the model's ``default_theta``, ``rope_type`` left out is "default".
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
    """For config classes with ``rope_parameters``: flat, or one dict per layer type, ``None`` for one without rotation.

    Attributes:
        default_theta: ``rope_theta`` of configs that name none.
        default_rope_type: what "default" stands for; "axial" in vision towers.
        ignore_keys_at_rope_validation: keys that validation does not call unrecognized.
    """

    default_theta = 10_000.0
    default_rope_type = "default"
    ignore_keys_at_rope_validation: ClassVar[set[str]] = set()

    def nested_rope_parameter_keys(self: Any, rope_parameters: dict[str, Any]) -> list[str]:
        """The layer types of the config that are keys of ``rope_parameters``; none for a flat dict.

        ``_rope_type_labels`` names them where they are no ``layer_types`` (DeepSeek-V4, LFM3).
        """
        labels = getattr(self, "_rope_type_labels", None) or getattr(self, "layer_types", None) or ()
        return [key for key in rope_parameters if key in labels]

    def convert_rope_params_to_dict(self: Any, **kwargs: Any) -> dict[str, Any]:
        """Gather the rope parameters from ``rope_scaling`` and values beside it, then standardize them.

        A value in ``rope_parameters`` comes first, then one in ``kwargs``, then the config's attribute, then the
        default.

        Returns:
            ``kwargs`` without what was read.
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
        """Check the rope parameters of every layer type by its type's validator; configs without any pass.

        Raises:
            KeyError: a required key is missing.
            ValueError: all of an odd head would turn.
        """
        rope_parameters = getattr(self, "rope_parameters", None)
        if not rope_parameters:
            return
        nested_keys = self.nested_rope_parameter_keys(rope_parameters)
        layers = {key: rope_parameters[key] for key in nested_keys} or {"full_attention": rope_parameters}
        # A heterogeneous config has no head size of its own to read.
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
        # Phi-3 keeps it beside the rope parameters; there it comes first.
        parameters[key] = getattr(config, key)
    else:
        parameters.setdefault(key, config.max_position_embeddings)


def _check_head(head_dim: Any, share: Any, layer_type: str) -> None:
    if head_dim is not None and head_dim > _SMALL_HEAD and head_dim % 2 and int(head_dim * share) == head_dim:
        raise ValueError(
            f"RoPE requires an even rotary dimension, but got `head_dim`={head_dim} with "
            f"`partial_rotary_factor`={share} for `{layer_type}`."
        )
