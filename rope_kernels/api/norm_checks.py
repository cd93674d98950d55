"""The checks of a :class:`HeadNorm` and of its weight, and what the operator's text says of it."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..core.norms import Norm
from ..core.spec import with_norms
from ..errors import RopeShapeError
from ..ops import autograd
from .head_norm import HeadNorm
from .sharding import is_distributed

__all__ = ["cached_text", "check_norm", "normed_text", "numbers_of", "refuse_derivative_of_weights", "weight_of"]

_WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_Numbers = tuple[float, float, bool]
"""eps, weight_offset and after_rope of a :class:`HeadNorm`."""


def numbers_of(norm: HeadNorm | None) -> _Numbers | None:
    """What the operator's text says of a norm."""
    return None if norm is None else (norm.eps, norm.weight_offset, norm.after_rope)


def normed_text(text: str, q_norm: _Numbers | None, k_norm: _Numbers | None, v_norm: _Numbers | None = None) -> str:
    """The text of a call without norms, with them."""
    return with_norms(text, *(None if numbers is None else Norm(*numbers) for numbers in (q_norm, k_norm, v_norm)))


# For the fast path only: Dynamo warns of every lru_cache that it traces, and never traces that path.
cached_text = lru_cache(maxsize=1024)(normed_text)


def check_norm(name: str, norm: HeadNorm | None, x: Tensor | None) -> None:
    """Raise :class:`RopeShapeError` unless ``norm`` is one for the heads of ``x``, or ``None``. ``name``: "q_norm"."""
    if norm is None:
        return
    if not isinstance(norm, HeadNorm):
        raise RopeShapeError(f"{name}: got {type(norm).__name__}, a HeadNorm or None is needed")
    if x is None:
        raise RopeShapeError(f"{name}: given without {name[0]}")


def weight_of(name: str, norm: HeadNorm | None, q: Tensor, head_dim: int) -> Tensor | None:
    """The weight of a norm; :class:`RopeShapeError` unless it fits heads of ``head_dim`` channels on q's device."""
    weight = None if norm is None else norm.weight
    if weight is None:
        return None
    if is_distributed(weight):
        raise RopeShapeError(f"{name}: its weight is a DTensor, q is a plain tensor; both must be one or the other")
    shape = tuple(weight.shape)
    if shape != (head_dim,):
        is_whole = len(shape) == 1 and shape[0] > head_dim and shape[0] % head_dim == 0
        hint = "; one for all heads norms the whole projection, which is another norm" if is_whole else ""
        raise RopeShapeError(f"{name}: its weight has shape {shape}, must be ({head_dim},){hint}")
    if weight.dtype not in _WEIGHT_DTYPES:
        raise RopeShapeError(f"{name}: its weight is {weight.dtype}, allowed are float32, float16, bfloat16")
    if weight.device != q.device:
        raise RopeShapeError(f"{name}: its weight is on {weight.device}, must be on q's {q.device}")
    return weight


def refuse_derivative_of_weights(**weights: Tensor | None) -> None:
    """Raise RuntimeError if a call that writes into given tensors would lose a derivative of a norm's weight."""
    for name, weight in weights.items():
        if weight is not None and autograd.is_differentiated(weight, None):
            raise RuntimeError(
                f"{name}: its weight needs a derivative, which a call in place or with out= would lose; use apply_rope"
            )
