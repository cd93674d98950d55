"""torchtitan's rotary embeddings on these kernels, by its own slot for overrides.

``--override.imports rope_kernels.integrations.torchtitan.rope`` replaces a model's RoPE modules before it is built.
Written for torchtitan 0.3 (torchtitan/models/common/rope.py, torchtitan/config/override.py).
"""

from __future__ import annotations

from typing import Any

from torchtitan.config import derive, override
from torchtitan.models.common.rope import ComplexRoPE, CosSinRoPE, RoPE
from torchtitan.tools.logging import logger

from .modules import RopeKernelsComplexRoPE, RopeKernelsCosSinRoPE
from .reading import config_of

__all__ = ["RopeKernelsComplexRoPE", "RopeKernelsCosSinRoPE", "config_of", "rope"]


@override(target=RoPE.Config, description="exact rotary embeddings without a table (rope_kernels)")  # type: ignore[untyped-decorator]
def rope(cfg: Any) -> Any:
    """The override: the config of our module in place of torchtitan's; of a RoPE that we do not know, its own.

    Args:
        cfg: a ``RoPE.Config``: of ComplexRoPE, CosSinRoPE or Qwen3.5's MRoPE.

    Returns:
        A config with the same fields that builds our module.

    Raises:
        RopeConfigError: the fields make no valid RoPE, by the name that the field has in RopeConfig.
    """
    module = _module_for(type(cfg))
    if module is None:
        logger.warning(f"rope_kernels: {type(cfg).__qualname__} stays torchtitan's own, we do not know how it rotates")
        return cfg
    derived = derive(cfg, module.Config)
    config_of(derived, module.rope_kernels_pairing)  # an error is raised here, not when the model is built
    return derived


def _module_for(kind: type) -> Any:
    if kind is ComplexRoPE.Config:
        return RopeKernelsComplexRoPE
    if kind is CosSinRoPE.Config:
        return RopeKernelsCosSinRoPE
    if (kind.__module__, kind.__qualname__) == ("torchtitan.models.qwen3_5.rope", "MRoPE.Config"):
        from .mrope import RopeKernelsMRoPE  # it imports that model

        return RopeKernelsMRoPE
    return None
