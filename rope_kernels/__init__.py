"""Rotary position embeddings in one fused kernel: exact at any position, from a validated config.

The names in ``__all__`` are public. The main call is ``apply_rope(q, k, positions, RopeConfig.from_hf(config))``.
"""

from ._version import __version__
from .api.append import apply_rope_append
from .api.apply import apply_rope, apply_rope_
from .api.cached import apply_rope_cached_
from .api.context_parallel import context_parallel_positions
from .api.cos_sin import cos_sin
from .api.dynamic_state import DynamicState
from .api.head_norm import HeadNorm
from .api.kv_cache import KVCache, slots_of
from .api.module import RotaryEmbedding
from .api.rerotation import rerotate_, shift_
from .api.table import apply_rotary_pos_emb
from .api.warm_up import warm_up
from .backends import available_backends, use_backend
from .config import RopeConfig
from .config.rope_types import ROPE_TYPES, register_rope_type
from .core.frequency import FrequencyParams
from .errors import RopeBackendWarning, RopeConfigError, RopeConfigWarning, RopeShapeError, RopeTableWarning

__all__ = [
    "ROPE_TYPES",
    "DynamicState",
    "FrequencyParams",
    "HeadNorm",
    "KVCache",
    "RopeBackendWarning",
    "RopeConfig",
    "RopeConfigError",
    "RopeConfigWarning",
    "RopeShapeError",
    "RopeTableWarning",
    "RotaryEmbedding",
    "__version__",
    "apply_rope",
    "apply_rope_",
    "apply_rope_append",
    "apply_rope_cached_",
    "apply_rotary_pos_emb",
    "available_backends",
    "context_parallel_positions",
    "cos_sin",
    "register_rope_type",
    "rerotate_",
    "shift_",
    "slots_of",
    "use_backend",
    "warm_up",
]
