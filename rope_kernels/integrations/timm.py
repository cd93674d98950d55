"""patch_timm: the table kernel in the vision transformers of timm, for training and inference."""

from __future__ import annotations

from torch import nn

from .tables.patching import TableReport, patch_or_warn, unpatch_rotating

__all__ = ["patch_timm", "unpatch_timm"]


def patch_timm(model: nn.Module) -> TableReport:
    """Make a model of timm rotate q and k with our table kernel, without a change to its code or its weights.

    timm has one function for this, ``apply_rot_embed_cat``, another one for Gemma 4, and tables of several kinds:
    ``RotaryEmbeddingCat``, ``RotaryEmbeddingDinoV3``, ``RotaryEmbeddingMRope`` and, with frequencies that are learned
    for each head, ``RotaryEmbeddingMixed``, whose gradients the kernel returns. The functions are measured on random
    tensors first, as :func:`~rope_kernels.integrations.diffusers.patch_diffusers` does it. Training, ``torch.compile``,
    ``copy.deepcopy`` and pickle work as before.

    Args:
        model: a model of timm, or any module whose modules rotate by a table.

    Returns:
        What was replaced in each module, and what was skipped and why.

    Raises:
        TypeError: ``model`` is not a module.
    """
    return patch_or_warn(model, "patch_timm", "none of its modules calls a function that rotates")


def unpatch_timm(model: nn.Module) -> nn.Module:
    """Undo :func:`patch_timm`; the model's outputs are again bit for bit as before.

    Returns:
        The model.
    """
    unpatch_rotating(model)
    return model
