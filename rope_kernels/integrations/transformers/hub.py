"""The route of the ``kernels`` package: our rotation behind the layer name ``rotary_pos_emb``."""

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
    """What ``kernels.kernelize`` puts in the place of an ``apply_rotary_pos_emb``: the table kernel.

    ``kernels`` knows functions by a layer's name, and three of the functions with this name turn in other ways than
    the rest (gpt-oss, nanochat and the privacy filter). So the function that is replaced is measured first, as
    everywhere here; one of no known convention goes on by itself.
    """

    can_torch_compile = True
    has_backward = True

    def forward(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        """The rotation of the function that this layer replaces, whose arguments these are."""
        return _functions[_measured(type(self))](q, k, cos, sin, unsqueeze_dim)


def _measured(replaced: type) -> str:
    """The key of our function for the one that ``kernels`` made the class ``replaced`` of; or of that function."""
    key = f"{replaced.__module__}.{replaced.__qualname__}.{id(replaced)}"
    if key not in _functions:
        original = replaced().forward  # a new instance's, which is not replaced; kept here, so the id stays its own
        convention = probe_function(original)
        _functions[key] = replacement(original, convention) if isinstance(convention, Convention) else original
    return key


# What torch.compiler.assume_constant_result sets; calling that imports all of Dynamo with the package.
_measured._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Repository:
    """What ``kernels`` loads a layer from; ours is here already."""

    def load(self) -> type[nn.Module]:
        return RotaryPosEmb

    def __str__(self) -> str:
        return f"rope_kernels, layer {LAYER_NAME}"


def register_kernels() -> None:
    """Register the table kernel for ``rotary_pos_emb``, for training, inference and ``torch.compile``, on CPU and CUDA.

    Then ``kernels.kernelize(model, mode=...)`` lets a model of the transformers library use it, and so does
    ``model.set_use_kernels(True)``. transformers must have been imported with a ``kernels`` that it accepts.
    :func:`patch_model` needs none of this and computes the angles besides.

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

    # transformers registers its own mapping again whenever a model asks for kernels.
    own = getattr(hub_kernels, "get_kernel_mapping_transformers", None)
    if own is not None:
        own().update(mapping)
