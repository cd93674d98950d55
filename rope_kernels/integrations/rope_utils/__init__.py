"""A drop-in for ``transformers.modeling_rope_utils`` (5.23) that works without transformers.

Names, signatures, warnings and errors are the same. The frequencies come from :data:`rope_kernels.ROPE_TYPES`, in
double precision, rounded once to float32: within 6e-8 of the exact value, relative. transformers computes them in
float32: the same to 3e-7 where the head is a power of two, else to 1e-6.
"""

from .compatibility import rope_config_validation
from .functions import (
    ROPE_INIT_FUNCTIONS,
    _compute_axial_rope_parameters,
    _compute_default_rope_parameters,
    _compute_dynamic_ntk_parameters,
    _compute_linear_scaling_rope_parameters,
    _compute_llama3_parameters,
    _compute_longrope_parameters,
    _compute_proportional_rope_parameters,
    _compute_yarn_parameters,
)
from .log import logger
from .mixin import RopeParameters, RotaryEmbeddingConfigMixin
from .update import dynamic_rope_update

# The names that begin with "_" are transformers' own, and code outside transformers imports them.
__all__ = [
    "ROPE_INIT_FUNCTIONS",
    "RopeParameters",
    "RotaryEmbeddingConfigMixin",
    "_compute_axial_rope_parameters",
    "_compute_default_rope_parameters",
    "_compute_dynamic_ntk_parameters",
    "_compute_linear_scaling_rope_parameters",
    "_compute_llama3_parameters",
    "_compute_longrope_parameters",
    "_compute_proportional_rope_parameters",
    "_compute_yarn_parameters",
    "dynamic_rope_update",
    "logger",
    "rope_config_validation",
]
