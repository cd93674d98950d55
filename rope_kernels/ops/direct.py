"""Fast path for plain CPU and CUDA tensors: calls the kernel without torch's dispatcher, which takes longer than it.

Each function does the call, or returns ``None`` or ``False`` without writing anything; the caller then takes the slow
path. It refuses a call that needs autograd, a transform, a mode, a tracer, a profiler, another backend or an error
message: tensors that do not fit or are no plain tensors, and memory that might overlap. On CUDA it repeats launches of
Triton's kernels that were made once before, or launches the kernels of nvcc. Check
``torch.compiler.is_compiling()`` before: the functions are not for code that ``torch.compile`` traces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

__all__ = [
    "append",
    "load",
    "remember",
    "remember_cached",
    "remember_table",
    "rotate",
    "rotate_",
    "rotate_cached",
    "rotate_out",
    "rotate_table",
    "unavailable",
]

_missing: str | None = "the extension has not been loaded"


def _refuse(*arguments: object) -> None:
    return None


rotate: Callable[..., tuple[Tensor, Tensor | None] | None] = _refuse
"""(q, k, positions, offset, seq_len, cu_seqlens, the operator's text) -> (q, k) rotated, or ``None``.

The arguments are those of ``apply_rope``; all but q and the text may be ``None``. With norms, here and in the next two,
the weights of q's and of k's, or ``None``, are two more arguments at the end; see :mod:`.norm_operators`.
"""
rotate_: Callable[..., bool | None] = _refuse
"""(the same) -> whether q and k have been rotated in place."""
rotate_out: Callable[..., bool | None] = _refuse
"""(the same, q_out, k_out or ``None``) -> whether q_out and k_out have been written."""
rotate_table: Callable[..., tuple[Tensor, Tensor | None] | None] = _refuse
"""(q, k, cos, sin, unsqueeze_dim, pairing), as in ``apply_rotary_pos_emb`` -> (q, k) rotated, or ``None``."""
append: Callable[..., bool | None] = _refuse
"""(the same, v, and those of :class:`.append_operators.Stored`) -> whether all has been written and stored."""
rotate_cached: Callable[..., bool | None] = _refuse
"""(q, k, positions, cos or cos | sin, sin or ``None``, rotary_dim, pairing, layout, q_out, k_out), as in
``apply_rope_cached_`` -> whether the outputs have been written."""
remember: Callable[..., bool | None] = _refuse
"""(q, k, the arguments of ``rotate``'s schema, q_out, k_out, Triton's launches, what they need) -> whether such calls
will repeat them."""
remember_table: Callable[..., bool | None] = _refuse
"""(q, k, cos, sin, layout, pairing, inverse, q_out, k_out, launches, what they need) -> the same by a table."""

remember_cached: Callable[..., bool | None] = _refuse
"""(the arguments of :data:`rotate_cached`, launches, what they need) -> the same by the rows of a table."""


def load() -> None:
    """Bind the functions to the library's. Call it once, after torch has loaded the library; before, all refuse."""
    global append, rotate, rotate_, rotate_cached, rotate_out, rotate_table, remember, remember_cached, remember_table
    global _missing
    try:
        from .. import _native

        is_bound = _native.bind(torch.Tensor.__dlpack_c_exchange_api__, Tensor, torch.nn.Parameter, *_of_torch())
    except ImportError as error:
        _missing = f"the extension was built without Python's headers ({error})"
        return
    except AttributeError as error:
        _missing = f"this torch lacks a function that they need ({error})"
        return
    if not is_bound:
        _missing = "this torch exchanges tensors by another major version of DLPack"
        return
    try:
        rotate_table = _native.rotate_table
        rotate, rotate_, rotate_out = _native.rotate, _native.rotate_, _native.rotate_out
        remember, remember_table = _native.remember, _native.remember_table
        append = _native.append
        rotate_cached, remember_cached = _native.rotate_cached, _native.remember_cached
    except AttributeError as error:
        _missing = f"the extension is older than the package; install the package again ({error})"
        return
    _missing = None


def _of_torch() -> tuple[Any, ...]:
    """The functions that tell whether torch must see a call, and the parts of torch that the library calls."""
    watchers = (
        torch._C._are_functorch_transforms_active,
        torch._C._len_torch_dispatch_stack,
        torch._C._len_torch_function_stack,
        torch._C._is_tracing,
        torch._C._autograd._profiler_enabled,
    )
    return watchers, forward_ad, torch._C._increment_version, torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs


def unavailable() -> str | None:
    """``None``, or why every call is refused."""
    return _missing
