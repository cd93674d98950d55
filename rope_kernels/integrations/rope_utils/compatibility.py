"""The deprecated function that transformers keeps for code written for its older releases."""

from __future__ import annotations

import warnings
from typing import Any

__all__ = ["rope_config_validation"]


def rope_config_validation(config: Any, ignore_keys: set[str] | None = None) -> None:
    """Standardize and validate ``config``, with transformers' ``FutureWarning``; ``ignore_keys`` has no effect."""
    warnings.warn(
        "`rope_config_validation` is deprecated and has been removed. "
        "Its functionality has been moved to RotaryEmbeddingConfigMixin.validate_rope method. "
        "PreTrainedConfig inherits this class, so please call self.validate_rope() instead. "
        "Also, make sure to use the new rope_parameters syntax. "
        "You can call self.standardize_rope_params() in the meantime.",
        FutureWarning,
        stacklevel=1,
    )
    config.standardize_rope_params()
    config.validate_rope()
