"""The backend that a context chose: kept here, asked for by the dispatch rule, and told to the native library."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextvars import ContextVar

__all__ = [
    "FROM_ENVIRONMENT",
    "NUMBERS",
    "choose",
    "chosen",
    "is_never_chosen",
    "own_choice",
    "runs_in_library",
    "tell",
    "tell_preferred",
]

FROM_ENVIRONMENT = os.environ.get("ROPE_KERNELS_BACKEND") or None
"""The backend that the environment chose at import. The library reads it too, for threads that never chose one."""

NUMBERS: dict[str | None, int] = {None: 0, "native": 1, "triton": 2, "reference": 3}
"""Backends as the library numbers them; csrc/ops/choice.h has the same numbers."""

_chosen: ContextVar[str | None] = ContextVar("rope_kernels_backend", default=None)
"""What :func:`rope_kernels.use_backend` chose in this thread, task or other context."""

_library: ctypes.CDLL | None = None
_ask: Callable[[], int] | None = None  # ctypes' function, which must live as long as the library


def tell(library: ctypes.CDLL) -> None:
    """Let the library know that there is Python, and the choices of contexts."""
    global _library
    _library = library
    library.rope_kernels_tell_of_python()


def tell_preferred(device_index: int, backend: str) -> None:
    """Let the library know what the dispatch rule prefers on a CUDA device."""
    if _library is not None:
        _library.rope_kernels_prefer_on_cuda(device_index, NUMBERS[backend])


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
    _ask = ctypes.CFUNCTYPE(ctypes.c_int)(_number)
    _library.rope_kernels_ask_python(_ask)


def is_never_chosen() -> bool:
    """Whether the library is loaded and nobody in the process ever chose a backend."""
    return _library is not None and _ask is None and FROM_ENVIRONMENT is None


def runs_in_library() -> bool:
    """Whether the library is loaded, and this context has not chosen plain torch."""
    return _library is not None and chosen() != "reference"


def _number() -> int:
    return NUMBERS.get(chosen(), NUMBERS["reference"])
