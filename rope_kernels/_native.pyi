"""The native library as a Python module: the functions that :mod:`rope_kernels.ops.direct` binds.

A library built without Python's headers has none of them.
"""

from types import ModuleType

from torch import Tensor
from typing_extensions import Unpack

_Lengths = int | Tensor | None
# q, k, positions, offset, seq_len, cu_seqlens, the operator's text
_Inputs = tuple[Tensor, Tensor | None, Tensor | None, _Lengths, _Lengths, Tensor | None, str]

def bind(
    exchange: object,
    tensor_type: type,
    parameter_type: type,
    watchers: tuple[object, ...],
    forward_ad: ModuleType,
    increment_version: object,
    wrap: object,
    /,
) -> bool: ...
def rotate(*inputs: Unpack[_Inputs]) -> tuple[Tensor, Tensor | None] | None: ...
def rotate_(*inputs: Unpack[_Inputs]) -> bool: ...
def rotate_out(*inputs_and_outputs: Unpack[tuple[Unpack[_Inputs], Tensor, Tensor | None]]) -> bool: ...
def rotate_table(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, unsqueeze_dim: int, pairing: str, is_full: bool, /
) -> tuple[Tensor, Tensor | None] | None: ...
def append(*call: object) -> bool: ...
def remember(*call_and_launches: object) -> bool: ...
def remember_table(*call_and_launches: object) -> bool: ...
def num_remembered() -> int: ...
