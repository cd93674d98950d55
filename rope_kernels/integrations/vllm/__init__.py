"""vLLM's rotary layers on these kernels: ``register()``, or ``ROPE_KERNELS_VLLM=1`` in the environment."""

from .registration import VARIABLE, register, register_if_enabled
from .report import LayerReport, report

__all__ = ["VARIABLE", "LayerReport", "register", "register_if_enabled", "report"]
