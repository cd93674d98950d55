"""The native backend: loads the C++/CUDA extension, says why it is missing, tells it which backend a thread chose.

On load the library registers itself for ``rope_kernels::*`` on the CPU, so torch's dispatcher calls it without Python.
CUDA tensors reach it by the dispatch rule.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor

from ..core.rotation import Rotation
from ..core.spec import Spec, text_of
from . import reference
from .inputs import Inputs

__all__ = [
    "FROM_ENVIRONMENT",
    "choose",
    "chosen",
    "cuda_archs",
    "force_isa",
    "isa",
    "isas",
    "load",
    "own_choice",
    "rotate",
    "rotate_table",
    "state",
    "takes_cpu_tensors",
    "unavailable",
]

FROM_ENVIRONMENT = os.environ.get("ROPE_KERNELS_BACKEND") or None
"""The backend that the environment chose at import. The library reads it too, for threads that never chose one."""

_PATH = Path(__file__).parent.parent / "_native.so"
_MAX_CUDA_PAIRS = 1024
"""Pairs of a head that the CUDA kernels take; csrc/cuda/params.cuh has the same limit. Longer heads: plain torch."""
_library: ctypes.CDLL | None = None
_missing: str | None = "it has not been loaded yet"


_chosen: ContextVar[str | None] = ContextVar("rope_kernels_backend", default=None)
"""What :func:`rope_kernels.use_backend` chose in this thread, task or other context."""


class _State:
    """Whether nobody in the process ever chose a backend, so that all calls on CPU tensors go to the library."""

    is_default = False


state = _State()
_ask: Callable[[], int] | None = None  # ctypes' function, which must live as long as the library


def load() -> None:
    """Load the library into torch. Call it once, after the operators are defined."""
    global _library, _missing
    if not _PATH.exists():
        _missing = "the extension was not built (pip install --no-build-isolation, with a C++20 compiler)"
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
    state.is_default = FROM_ENVIRONMENT in (None, "native")


def unavailable(device: torch.device | None = None) -> str | None:
    """``None``, or why the extension cannot run on ``device``."""
    if _library is None or device is None or device.type == "cpu":
        return _missing
    if device.type != "cuda" or not cuda_archs():
        return f"the extension was built without kernels for {device.type}"
    return None


def own_choice() -> str | None:
    """What this context chose; ``None``: nothing, or the dispatch rule."""
    return _chosen.get()


def chosen() -> str | None:
    """The backend that this context chose, or else ``ROPE_KERNELS_BACKEND``; ``None`` is the dispatch rule."""
    return _chosen.get() or FROM_ENVIRONMENT


def choose(backend: str | None) -> None:
    """Choose the backend of this context. From the first choice on the library asks before each call."""
    global _ask
    _chosen.set(backend)
    if backend is None or _ask is not None or _library is None:
        return
    state.is_default = False
    _ask = ctypes.CFUNCTYPE(ctypes.c_int)(_is_forwarding)
    _library.rope_kernels_ask_python(_ask)


def _is_forwarding() -> int:
    return int(chosen() not in (None, "native"))


def takes_cpu_tensors() -> bool:
    """Whether calls of this context on CPU tensors run in the library."""
    return state.is_default or (_library is not None and not _is_forwarding())


def cuda_archs() -> list[str]:
    """Architectures that the library has CUDA kernels for, such as "90" for sm_90; empty if it has none."""
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
    i, positions = inputs, inputs.positions
    if positions is not None and positions.shape[0] == 1:
        positions = positions[0]
    torch.ops.rope_kernels.native_rotate_out(
        q, k, positions, i.offset, i.seq_len, i.from_seq_len, i.cu_seqlens,
        text_of(spec.encode(), "bshd", i.inverse, i.unscaled), q_out, k_out,
    )  # fmt: skip


def rotate_table(
    q: Tensor, k: Tensor | None, q_out: Tensor, k_out: Tensor | None,
    cos: Tensor, sin: Tensor, rotation: Rotation, inverse: bool,
) -> None:  # fmt: skip
    """Rotate by a caller's table in plain torch. On the CPU the library registers kernels that run instead of this."""
    reference.rotate_table(q, k, q_out, k_out, cos, sin, rotation, inverse)
