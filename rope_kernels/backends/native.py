"""The native backend: loads the C++/CUDA extension, says why it is missing, and calls it.

On load the library defines ``rope_kernels::*`` and registers itself on the CPU and on CUDA, so torch's dispatcher calls
it without Python. It asks :mod:`.choice` which backend a context chose.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ..core.norms import Norm
from ..core.rotation import Rotation
from ..core.spec import Spec, text_of, with_norms
from . import choice, reference
from .inputs import Append, Inputs, Norms

__all__ = [
    "cuda_archs",
    "force_isa",
    "isa",
    "isas",
    "load",
    "rotate",
    "rotate_append",
    "rotate_cached",
    "rotate_norm",
    "rotate_norm_backward",
    "rotate_table",
    "tell_error",
    "unavailable",
]

_PATH = Path(__file__).parent.parent / "_native.so"
_NOTE = _PATH.with_name("_why_not_native.txt")
"""setup.py's reason why there is no library, if it left one."""
_MAX_CUDA_PAIRS = 1024
"""Pairs of a head that the CUDA kernels take; csrc/cuda/launcher.h has the same limit. Longer heads: plain torch."""
_library: ctypes.CDLL | None = None
_missing: str | None = "it has not been loaded yet"


def load() -> None:
    """Load the library into torch. Call it once, before the operators are defined: it defines its own."""
    global _library, _missing
    if not _PATH.exists():
        _missing = f"there are no native kernels: {_why_not_built()}"
        return
    try:
        torch.ops.load_library(str(_PATH))
        library = ctypes.CDLL(str(_PATH))
    except OSError as error:
        _missing = f"the extension cannot be loaded: {error}"
        return
    for name in ("rope_kernels_isa", "rope_kernels_isas", "rope_kernels_cuda_archs"):
        getattr(library, name).restype = ctypes.c_char_p
    _library, _missing = library, None
    choice.tell(library)


def tell_error(message: str) -> None:
    """Say what an operator in Python raises: until 2.13 torch drops it where C++ has called the operator."""
    if _library is not None:
        _library.rope_kernels_python_error(message.encode())


def _why_not_built() -> str:
    if _NOTE.exists():
        return _NOTE.read_text(encoding="utf-8").strip()
    return "they were not built (pip install --no-build-isolation . in a checkout, with a C++20 compiler)"


def unavailable(device: torch.device | None = None) -> str | None:
    """``None``, or why the extension cannot run on ``device``."""
    if _library is None or device is None or device.type == "cpu":
        return _missing
    if device.type != "cuda" or not cuda_archs():
        return f"the extension was built without kernels for {device.type}"
    major, minor = torch.cuda.get_device_capability(device)
    if not _has_code_for(10 * major + minor):
        return f"the extension has kernels for {', '.join(f'sm_{a}' for a in cuda_archs())}, not for sm_{major}{minor}"
    return None


def _has_code_for(arch: int) -> bool:
    """Whether a GPU of this architecture runs the library's kernels: machine code of its generation, or older PTX."""
    machine = [int(name) for name in cuda_archs()]
    ptx = [int(name.removesuffix("+PTX")) for name in _cuda_code() if name.endswith("+PTX")]
    return any(a // 10 == arch // 10 and a <= arch for a in machine) or any(a <= arch for a in ptx)


def cuda_archs() -> list[str]:
    """Architectures that the library has CUDA kernels for, such as "90" for sm_90; empty if it has none."""
    return [name for name in _cuda_code() if not name.endswith("+PTX")]


def _cuda_code() -> list[str]:
    names = b"" if _library is None else _library.rope_kernels_cuda_archs()
    return [name for name in names.decode().split(",") if name]


def isas() -> list[str]:
    """Instruction sets that both the library and this machine have, best first."""
    return [] if _library is None else _library.rope_kernels_isas().decode().split(",")


def isa() -> str:
    """The instruction set in use."""
    return "" if _library is None else _library.rope_kernels_isa().decode()


def force_isa(name: str) -> None:
    """Use another instruction set, in all threads; ``""`` goes back to the best.

    Raises:
        ValueError: the library or the machine does not have it.
    """
    if _library is None or not _library.rope_kernels_force_isa(name.encode()):
        raise ValueError(f"isa: got {name!r}, allowed are {', '.join(isas())}")


def rotate(q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec) -> None:
    """Rotate by the native operator; see :func:`.reference.rotate`."""
    if spec.rotation.num_pairs > _MAX_CUDA_PAIRS and q.is_cuda:
        reference.rotate(q, k, q_out, k_out, inputs, spec)
        return
    text = text_of(spec.encode(), "bshd", inputs.inverse, inputs.unscaled)
    torch.ops.rope_kernels.native_rotate_out(q, k, *_index_tensors(inputs), text, q_out, k_out)


def _index_tensors(inputs: Inputs) -> tuple[Tensor | None, ...]:
    i, positions = inputs, inputs.positions
    if positions is not None and positions.shape[0] == 1:
        positions = positions[0]
    return positions, i.offset, i.seq_len, i.from_seq_len, i.cu_seqlens


def rotate_norm(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec, norms: Norms
) -> None:
    """Norm and rotate by the native operator; see :func:`.reference.rotate_norm`."""
    if spec.rotation.num_pairs > _MAX_CUDA_PAIRS and q.is_cuda:
        reference.rotate_norm(q, k, q_out, k_out, inputs, spec, norms)
        return
    text = with_norms(text_of(spec.encode(), "bshd", unscaled=inputs.unscaled), norms.q, norms.k)
    torch.ops.rope_kernels.native_rotate_norm_out(
        q, k, *_index_tensors(inputs), text, norms.q_weight, norms.k_weight, q_out, k_out
    )


def rotate_append(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None, inputs: Inputs, spec: Spec, norms: Norms,
    append: Append,
) -> None:  # fmt: skip
    """Norm, rotate and store by the native operator; see :func:`.reference.rotate_append`."""
    if spec.rotation.num_pairs > _MAX_CUDA_PAIRS and q.is_cuda:
        reference.rotate_append(q, k, q_out, k_out, inputs, spec, norms, append)
        return
    text = text_of(spec.encode(), "bshd", unscaled=inputs.unscaled)
    text = with_norms(text, norms.q, norms.k, append.v_norm)
    torch.ops.rope_kernels.native_rotate_append(
        q, k, append.v, *_index_tensors(inputs), text, norms.q_weight, norms.k_weight, append.v_weight,
        append.slots, append.k_scale, append.v_scale, q_out, k_out, append.k_cache, append.v_cache,
    )  # fmt: skip


_TOKENS_PER_PART = 256
"""Tokens whose gradients of a weight are summed in one order on the CPU, whatever the number of threads."""
_PARTS_ON_CUDA = 16384
"""The most parts of a weight's gradient on CUDA: rows that a large GPU works on at a time."""


def rotate_norm_backward(
    grads: tuple[Tensor | None, Tensor | None], q: Tensor, k: Tensor | None, inputs: Inputs, spec: Spec, norms: Norms
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by the native operator; see :func:`.reference.rotate_norm_backward`."""
    if spec.rotation.num_pairs > _MAX_CUDA_PAIRS and q.is_cuda:
        return reference.rotate_norm_backward(grads, q, k, inputs, spec, norms)
    tokens = q.shape[0] * q.shape[1]
    parts = min(tokens, _PARTS_ON_CUDA) if q.is_cuda else -(-tokens // _TOKENS_PER_PART)
    sides = [
        _Side(g, x, norm, weight, parts)
        for g, x, norm, weight in zip(grads, (q, k), norms[:2], norms[2:], strict=True)
        if g is not None and x is not None
    ]
    first, second = (*sides, None, None)[:2]
    assert first is not None
    text = text_of(spec.encode(), "bshd", unscaled=inputs.unscaled)
    text = with_norms(text, first.norm, second.norm if second else None)
    torch.ops.rope_kernels.native_rotate_norm_backward(
        first.grad, second and second.grad, first.x, second and second.x, *_index_tensors(inputs), text,
        first.weight, second and second.weight, parts,
        first.out, second and second.out, first.partials, second and second.partials,
    )  # fmt: skip
    made = iter(sides)
    of_q, of_k = (None if g is None or x is None else next(made) for g, x in zip(grads, (q, k), strict=True))
    return (
        None if of_q is None else of_q.out, None if of_k is None else of_k.out,
        None if of_q is None else of_q.of_weight(), None if of_k is None else of_k.of_weight(),
    )  # fmt: skip


class _Side:
    """The gradient of q's results or of k's, and what is made of it."""

    def __init__(self, grad: Tensor, x: Tensor, norm: Norm | None, weight: Tensor | None, parts: int) -> None:
        self.grad, self.x, self.norm, self.weight = grad, x, norm, None if norm is None else weight
        self.out = torch.empty_like(x, memory_format=torch.preserve_format)
        self.partials = None
        if norm is not None and weight is not None:
            self.partials = torch.zeros((parts, x.shape[3]), dtype=torch.float32, device=x.device)

    def of_weight(self) -> Tensor | None:
        """The gradient of the weight: the sum of the parts, in order."""
        if self.partials is None or self.weight is None:
            return None
        return self.partials.sum(0, dtype=torch.float64).to(self.weight.dtype)


def rotate_table(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None,
    cos: Tensor, sin: Tensor, rotation: Rotation, inverse: bool,
) -> None:  # fmt: skip
    """Rotate by a caller's table, by the native operator; see :func:`.reference.rotate_table`."""
    if rotation.num_pairs > _MAX_CUDA_PAIRS and q.is_cuda:
        reference.rotate_table(q, k, q_out, k_out, cos, sin, rotation, inverse)
        return
    torch.ops.rope_kernels.native_rotate_table_out(
        q, k, cos, sin, 2 * rotation.num_pairs, rotation.pairing, "bshd", inverse, q_out, k_out
    )


def rotate_cached(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None,
    positions: Tensor, cos: Tensor, sin: Tensor, rotation: Rotation,
) -> None:  # fmt: skip
    """Rotate by rows of a table, by the native operator; see :func:`.reference.rotate_cached`."""
    if rotation.num_pairs > _MAX_CUDA_PAIRS and q.is_cuda:
        reference.rotate_cached(q, k, q_out, k_out, positions, cos, sin, rotation)
        return
    torch.ops.rope_kernels.native_rotate_cached_out(q, k, positions, cos, sin, rotation.pairing, "bshd", q_out, k_out)
