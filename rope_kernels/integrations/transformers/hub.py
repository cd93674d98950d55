"""register_kernels: our rotation for the ``kernels`` package, under the layer name ``rotary_pos_emb``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .conventions import Convention
from .probing import probe_function
from .rotating import replacement

__all__ = ["LAYER_NAME", "RotaryPosEmb", "register_kernels"]

LAYER_NAME = "rotary_pos_emb"
_DEVICES = ("cpu", "cuda")

_functions: dict[str, Callable[..., Any]] = {}


class RotaryPosEmb(nn.Module):
    """The layer by which ``kernels.kernelize`` replaces an ``apply_rotary_pos_emb``: the table kernel.

    ``kernels`` finds functions by a layer's name, and three of the functions with this name rotate in other ways than
    the rest (gpt-oss, nanochat and the privacy filter). So the replaced function is measured first; if its convention
    is unknown, it runs itself.
    """

    can_torch_compile = True
    has_backward = True

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        """The rotation of the function that this layer replaces, with that function's arguments."""
        return _functions[_measured(type(self))](q, k, cos, sin, unsqueeze_dim)


def _measured(replaced: type) -> str:
    """The key in ``_functions`` for ``replaced``, the class that ``kernels`` made of an apply function."""
    key = f"{replaced.__module__}.{replaced.__qualname__}.{id(replaced)}"
    if key not in _functions:
        original = replaced().forward  # of a new instance, so not replaced; kept here, so that the id stays unique
        convention = probe_function(original)
        _functions[key] = replacement(original, convention) if isinstance(convention, Convention) else original
    return key


# torch.compiler.assume_constant_result would set the same mark, but it imports all of Dynamo with the package.
_measured._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Repository:
    """The repository object from which ``kernels`` loads our layer; it needs no download."""

    def load(self) -> type[nn.Module]:
        return RotaryPosEmb

    def __str__(self) -> str:
        return f"rope_kernels, layer {LAYER_NAME}"


def register_kernels() -> None:
    """Register the table kernel for ``rotary_pos_emb``, for training, inference and ``torch.compile``, on CPU and CUDA.

    After that, ``kernels.kernelize(model, mode=...)`` or ``model.set_use_kernels(True)`` lets a model of transformers
    use it. transformers must have been imported with a ``kernels`` version that it accepts. :func:`patch_model` needs
    none of this, and computes the angles in the kernel too.

    Raises:
        ImportError: ``kernels`` is not installed.
    """
    try:
        kernels = importlib.import_module("kernels")
    except ImportError as error:
        raise ImportError("kernels is not installed; pip install kernels") from error
    repository = _Repository()
    Mode = kernels.Mode
    modes = (Mode.INFERENCE, Mode.TRAINING, Mode.INFERENCE | Mode.TORCH_COMPILE, Mode.TRAINING | Mode.TORCH_COMPILE)
    mapping = {LAYER_NAME: {device: dict.fromkeys(modes, repository) for device in _DEVICES}}
    kernels.register_kernel_mapping(mapping)
    from transformers.integrations import hub_kernels

    # transformers registers its own mapping again whenever a model requests kernels.
    own = getattr(hub_kernels, "get_kernel_mapping_transformers", None)
    if own is not None:
        own().update(mapping)
