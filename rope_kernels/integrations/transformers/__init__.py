"""patch_model: the fused rotation in a model loaded by transformers, for training and inference."""

from .hub import register_kernels
from .patching import patch_model, unpatch_model
from .report import Entry, PatchReport

__all__ = ["Entry", "PatchReport", "patch_model", "register_kernels", "unpatch_model"]
