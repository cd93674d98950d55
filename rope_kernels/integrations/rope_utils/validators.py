"""The validators of rope parameters by type: a missing key is an error, other problems are logged.

Conditions and messages are transformers', so that code which looks for its messages finds them.
"""

from __future__ import annotations

from typing import Any

from .keys import KEYS
from .log import logger, warning_once

__all__ = ["RopeValidators"]

Parameters = dict[str, Any]


def _is_number(value: Any) -> bool:
    return isinstance(value, (float, int))


def _warn(field: str, rule: str, got: str) -> None:
    logger.warning(f"`rope_parameters`'s {field} field must be {rule}, got {got}")


def _check_factor(factor: Any) -> None:
    if not _is_number(factor) or factor < 1.0:
        _warn("factor", "a float or int >= 1", factor)


class RopeValidators:
    """One method per rope type, found by its name: ``_validate_{rope_type}_rope_parameters``.

    Each takes the flat parameters of one layer type, with their ``rope_type``, and the keys not to report as
    unrecognized. Subclasses may add or override methods.
    """

    def _validate_default_rope_parameters(
        self, rope_parameters: Parameters, ignore_keys: set[str] | None = None
    ) -> None:
        self._check_keys_of("default", rope_parameters, ignore_keys)

    def _validate_axial_rope_parameters(self, rope_parameters: Parameters, ignore_keys: set[str] | None = None) -> None:
        self._validate_default_rope_parameters(rope_parameters, ignore_keys=ignore_keys)

    def _validate_linear_rope_parameters(
        self, rope_parameters: Parameters, ignore_keys: set[str] | None = None
    ) -> None:
        self._check_keys_of("linear", rope_parameters, ignore_keys)
        _check_factor(rope_parameters["factor"])

    def _validate_dynamic_rope_parameters(
        self, rope_parameters: Parameters, ignore_keys: set[str] | None = None
    ) -> None:
        self._check_keys_of("dynamic", rope_parameters, ignore_keys)
        _check_factor(rope_parameters["factor"])

    def _validate_yarn_rope_parameters(self, rope_parameters: Parameters, ignore_keys: set[str] | None = None) -> None:
        self._check_keys_of("yarn", rope_parameters, ignore_keys)
        factor = rope_parameters["factor"]
        _check_factor(factor)
        attention = rope_parameters.get("attention_factor")
        if attention is not None and (not isinstance(attention, float) or attention < 0):
            _warn("attention_factor", "a float greater than 0", attention)
        fast, slow = rope_parameters.get("beta_fast"), rope_parameters.get("beta_slow")
        for field, beta in (("beta_fast", fast), ("beta_slow", slow)):
            if beta is not None and not _is_number(beta):
                _warn(field, "a float or int", beta)
        if (fast or 32) < (slow or 1):
            got = f"beta_fast={fast} (defaults to 32 if None) and beta_slow={slow} (defaults to 1 if None)"
            _warn("beta_fast", "greater than beta_slow", got)
        self._check_implied_factor(factor, rope_parameters["original_max_position_embeddings"])

    def _check_implied_factor(self: Any, factor: Any, original: Any) -> None:
        implied = self.max_position_embeddings / original
        # 1 if standardizing filled in the original length
        if implied not in (factor, 1):
            warning_once(
                f"The explicitly set RoPE scaling factor (config.rope_parameters['factor'] = {factor}) does not match "
                "the ratio implicitly set by other parameters (implicit factor = post-yarn context length / pre-yarn "
                "context length = config.max_position_embeddings / "
                f"config.rope_parameters['original_max_position_embeddings'] = {implied}). Using the explicit factor "
                f"({factor}) in YaRN. This may cause unexpected behaviour in model usage, please correct the "
                "'original_max_position_embeddings' fields in the model config."
            )

    def _validate_longrope_rope_parameters(
        self: Any, rope_parameters: Parameters, ignore_keys: set[str] | None = None
    ) -> None:
        self._check_keys_of("longrope", rope_parameters, ignore_keys)
        head_dim = getattr(self, "head_dim", self.hidden_size // self.num_attention_heads)
        pairs = int(head_dim * rope_parameters.get("partial_rotary_factor", 1.0)) // 2
        for field in ("short_factor", "long_factor"):
            row = rope_parameters[field]
            if not (isinstance(row, list) and all(map(_is_number, row))):
                _warn(field, "a list of numbers", row)
            if len(row) != pairs:
                logger.warning(f"`rope_parameters`'s {field} field must have length {pairs}, got {len(row)}")
        self._check_longrope_factor(rope_parameters.get("factor"), rope_parameters["original_max_position_embeddings"])
        attention = rope_parameters.get("attention_factor")
        if attention is not None and (not _is_number(attention) or attention < 0.0):
            _warn("attention_factor", "a float or int greater than 0", attention)

    @staticmethod
    def _check_longrope_factor(factor: Any, original: Any) -> None:
        if factor is not None:
            _check_factor(factor)
        elif original is None:
            logger.warning("Missing required keys in `rope_parameters`: 'factor'")
        else:
            warning_once(
                "This model config has set a `rope_parameters['original_max_position_embeddings']` field, to be used "
                "together with `max_position_embeddings` to determine a scaling factor. Please set the `factor` field "
                "of `rope_parameters`with this ratio instead -- we recommend the use of this field over "
                "`original_max_position_embeddings`, as it is compatible with most model architectures."
            )

    def _validate_llama3_rope_parameters(
        self: Any, rope_parameters: Parameters, ignore_keys: set[str] | None = None
    ) -> None:
        self._check_keys_of("llama3", rope_parameters, ignore_keys)
        _check_factor(rope_parameters["factor"])
        low, high = rope_parameters["low_freq_factor"], rope_parameters["high_freq_factor"]
        if not _is_number(low):
            logger.warning(f"`rope_parameters`'s low_freq_factor field must be a float, or int got {low}")
        if not _is_number(high):
            _warn("high_freq_factor", "a float or int", high)
        if high <= low:
            got = f"high_freq_factor={high} and low_freq_factor={low}"
            _warn("high_freq_factor", "greater than low_freq_factor", got)
        original = rope_parameters["original_max_position_embeddings"]
        if not isinstance(original, int):
            _warn("original_max_position_embeddings", "an integer", original)
        longest = self.max_position_embeddings
        if original >= longest:
            got = f"{original} and max_position_embeddings={longest}"
            _warn("original_max_position_embeddings", "less than max_position_embeddings", got)

    def _validate_proportional_rope_parameters(
        self, rope_parameters: Parameters, ignore_keys: set[str] | None = None
    ) -> None:
        self._check_keys_of("proportional", rope_parameters, ignore_keys)
        if rope_parameters.get("partial_rotary_factor") is None:
            logger.warning(
                "`rope_parameters`'s partial_rotary_factor is None. This will default to 1.0 in the computation, "
                "making this equivalent to the linear_scaling RoPE type. Provide a value in the range [0.0, 1.0) to "
                "make use of the proportional RoPE functionality."
            )

    def _check_keys_of(self, rope_type: str, parameters: Parameters, ignore_keys: set[str] | None) -> None:
        keys = KEYS[rope_type]
        required, optional = {"rope_type", *keys.required}, set(keys.optional)
        (required if keys.needs_theta else optional).add("rope_theta")
        self._check_received_keys(parameters["rope_type"], set(parameters), required, optional, ignore_keys=ignore_keys)

    @staticmethod
    def _check_received_keys(
        rope_type: str,
        received_keys: set[str],
        required_keys: set[str],
        optional_keys: set[str] | None = None,
        ignore_keys: set[str] | None = None,
    ) -> None:
        """Compare the received keys with those that a type needs and those that it accepts.

        Raises:
            KeyError: a required key is missing, or is among ``ignore_keys``.
        """
        # the old name of "rope_type"
        if "type" in received_keys:
            received_keys -= {"type"}
            required_keys.add("rope_type")
        optional_keys = (optional_keys or set()) | {"partial_rotary_factor"}
        received_keys -= set(ignore_keys or ())
        missing_keys = required_keys - received_keys
        if missing_keys:
            raise KeyError(f"Missing required keys in `rope_parameters` for 'rope_type'='{rope_type}': {missing_keys}")
        unused_keys = received_keys - required_keys - optional_keys
        if unused_keys:
            logger.warning(f"Unrecognized keys in `rope_parameters` for 'rope_type'='{rope_type}': {unused_keys}")
