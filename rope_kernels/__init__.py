"""Rotary position embeddings in one fused kernel: exact at any position, from a config that is checked.

The public names are those of ``__all__``; ``apply_rope(q, k, positions, RopeConfig.from_hf(config))`` is the main one.
"""

from ._version import __version__
from .backends import available_backends, use_backend
from .config import RopeConfig
from .dynamic_state import DynamicState
from .errors import RopeConfigError, RopeConfigWarning, RopeShapeError
from .frequency import FrequencyParams
from .functional import apply_rope, apply_rope_, cos_sin
from .module import RotaryEmbedding
from .rerotation import rerotate_, shift_
from .rope_types import ROPE_TYPES, register_rope_type
from .table import apply_rotary_pos_emb

__all__ = [
    "ROPE_TYPES",
    "DynamicState",
    "FrequencyParams",
    "RopeConfig",
    "RopeConfigError",
    "RopeConfigWarning",
    "RopeShapeError",
    "RotaryEmbedding",
    "__version__",
    "apply_rope",
    "apply_rope_",
    "apply_rotary_pos_emb",
    "available_backends",
    "cos_sin",
    "register_rope_type",
    "rerotate_",
    "shift_",
    "use_backend",
]
