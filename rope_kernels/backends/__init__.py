"""The dispatch rule: a call runs on the first backend of :data:`PREFERENCE` that can, unless the user chose another.

A backend is a module with ``rotate``, ``rotate_table`` and ``unavailable``, whose signatures are those of
:mod:`rope_kernels.backends.reference`.
"""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType, TracebackType

import torch

from ..core.names import BackendName
from ..errors import RopeBackendWarning
from . import choice, native

__all__ = [
    "PREFERENCE",
    "available_backends",
    "backend_for",
    "current_override",
    "is_plain_torch",
    "use_backend",
    "variable_error",
]

VARIABLE = "ROPE_KERNELS_BACKEND"
PREFERENCE: tuple[BackendName, ...] = ("triton", "native", "reference")
_MODULES = {"triton": ".triton.launch", "native": ".native", "reference": ".reference"}


def _module(name: str) -> ModuleType | str:
    """The backend's module, or why it cannot be imported."""
    try:
        return importlib.import_module(_MODULES[name], __name__)
    except ImportError as error:
        return f"cannot be imported: {error}"


def _why_not(name: str, device: torch.device | None) -> str | None:
    module = _module(name)
    reason: str | None = module if isinstance(module, str) else module.unavailable(device)
    return reason


def available_backends() -> dict[str, str | None]:
    """Every backend, best first, with ``None`` or the reason why it cannot be used on this machine."""
    return {name: _why_not(name, None) for name in PREFERENCE}


def current_override() -> str | None:
    """The backend this context chose with :func:`use_backend`, or else ``ROPE_KERNELS_BACKEND`` as it was at import."""
    return choice.chosen()


def backend_for(device: torch.device) -> ModuleType:
    """The module that runs a call on ``device``.

    Raises:
        RuntimeError: the chosen backend cannot run there; the message says why.
    """
    override = current_override()
    if override is None:
        return _preferred(device)
    _check_name(override, "backend" if choice.own_choice() else VARIABLE)
    reason = _why_not(override, device)
    if reason is not None:
        raise RuntimeError(f"backend {override!r} was chosen, but {reason}")
    return importlib.import_module(_MODULES[override], __name__)


_CPU = torch.device("cpu")
_chosen: dict[torch.device, ModuleType] = {}
_notices = ["the fallback"]  # one; whoever pops it gives it


def _preferred(device: torch.device) -> ModuleType:
    module = _chosen.get(device)
    if module is None:
        name = next(name for name in PREFERENCE if _why_not(name, device) is None)
        if device.type == "cuda":
            choice.tell_preferred(device.index, name)
        if name == "reference":
            _notify_of_fallback(device)
        module = _chosen[device] = importlib.import_module(_MODULES[name], __name__)
    return module


def _notify_of_fallback(device: torch.device) -> None:
    """Say once per process that plain torch rotates because nothing better can, and what to do about it."""
    try:
        _notices.pop()
    except IndexError:
        return
    better = [name for name in PREFERENCE[:-1] if name != "triton" or device.type == "cuda"]
    reasons = "; ".join(f"{name}: {_why_not(name, device)}" for name in better)
    warnings.warn(
        f"calls on {device.type} run in plain torch, several times slower than the kernels, because nothing better can "
        f"({reasons}). Install the package again with its native kernels: pip install --no-build-isolation, in an "
        "environment with torch and a C++20 compiler; `rope-kernels info` shows what is missing. "
        'use_backend("reference") or ROPE_KERNELS_BACKEND=reference chooses plain torch without this notice',
        RopeBackendWarning,
        stacklevel=1,
    )


def is_plain_torch() -> bool:
    """Whether plain torch runs the calls of this context on CPU tensors."""
    override = choice.chosen()
    if override is None:
        return native.unavailable() is not None and _preferred(_CPU).__name__.endswith("reference")
    return override == "reference"


def _check_name(name: str, source: str = "backend") -> None:
    if name not in PREFERENCE:
        raise ValueError(f"{source}: got {name!r}, allowed are {', '.join(PREFERENCE)}")


def variable_error() -> str | None:
    """Why calls fail with ``ROPE_KERNELS_BACKEND`` as it was at import: no such backend, or none that can run here.

    ``None`` if it is not set or right.
    """
    name = choice.FROM_ENVIRONMENT
    if name is None:
        return None
    try:
        _check_name(name, VARIABLE)
    except ValueError as error:
        return str(error)
    reason = _why_not(name, None)
    return None if reason is None else f"{VARIABLE}: got {name!r}, which cannot run here: {reason}"


class use_backend:  # noqa: N801  (a function to its users)
    """Choose the backend of this context: ``use_backend("reference")``, or ``with use_backend("reference"):``.

    A context is a thread, an asyncio task, or what :mod:`contextvars` makes one: the choice of one does not reach the
    others. ``None`` goes back to the dispatch rule. A backward pass runs on the backend of its forward pass.

    Raises:
        ValueError: no backend has that name.
    """

    def __init__(self, name: BackendName | None) -> None:
        if name is not None:
            _check_name(name)
        self._before = choice.own_choice()
        choice.choose(name)

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        choice.choose(self._before)
