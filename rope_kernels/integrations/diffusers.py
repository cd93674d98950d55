"""patch_diffusers: the table kernel in the transformers of diffusers, for training and inference."""

from __future__ import annotations

from torch import nn

from .tables.patching import NOTHING, TableReport, patch_or_warn, unpatch_rotating

__all__ = ["patch_diffusers", "unpatch_diffusers"]


def patch_diffusers(model: nn.Module) -> TableReport:
    """Make a model of diffusers rotate q and k with our table kernel, without a change to its code or its weights.

    The model still makes its own tables, and its attention processors pass them to the kernel, which rounds once.
    Before anything is replaced, every function that rotates is measured on random tensors, in each form of the table
    that it accepts: cos and sin, complex numbers, 2x2 matrices, angles. A table that is not in the kernel's form is
    converted once, and used by all layers. Other models in the process stay unchanged. Training, ``torch.compile``,
    ``copy.deepcopy`` and pickle work as before. A processor that is set later is not patched: patch the model again.

    Args:
        model: a transformer of diffusers, such as ``pipe.transformer``, or any module whose modules or attention
            processors rotate by a table.

    Returns:
        What was replaced in each module and processor, and what was skipped and why.

    Raises:
        TypeError: ``model`` is not a module.
    """
    hint = "; pass its transformer, pipe.transformer" if hasattr(model, "transformer") else ""
    return patch_or_warn(model, "patch_diffusers", NOTHING, hint)


def unpatch_diffusers(model: nn.Module) -> nn.Module:
    """Undo :func:`patch_diffusers`; the model's outputs are again bit for bit as before.

    Returns:
        The model.
    """
    unpatch_rotating(model)
    return model
