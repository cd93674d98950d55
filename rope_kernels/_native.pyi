"""The library as a Python module: what :mod:`rope_kernels.backends.direct` binds.

A library that was built without Python's headers has none of it.
"""

from types import ModuleType

from torch import Tensor

def bind(
    exchange: object,
    tensor_type: type,
    watchers: tuple[object, ...],
    forward_ad: ModuleType,
    increment_version: object,
    wrap: object,
    /,
) -> bool: ...
def rotate(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor | None,
    offset: int | Tensor | None,
    seq_len: int | Tensor | None,
    cu_seqlens: Tensor | None,
    text: str,
    /,
) -> tuple[Tensor, Tensor | None] | None: ...
def rotate_(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor | None,
    offset: int | Tensor | None,
    seq_len: int | Tensor | None,
    cu_seqlens: Tensor | None,
    text: str,
    /,
) -> bool: ...
def rotate_out(
    q: Tensor,
    k: Tensor | None,
    positions: Tensor | None,
    offset: int | Tensor | None,
    seq_len: int | Tensor | None,
    cu_seqlens: Tensor | None,
    text: str,
    q_out: Tensor,
    k_out: Tensor | None,
    /,
) -> bool: ...
