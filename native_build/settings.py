"""The environment variables of the build that are no paths. docs/install.md lists all of them."""

from __future__ import annotations

import os

from .errors import BuildError

__all__ = ["cuda_wanted", "jobs", "native_wanted"]


def _switch(name: str) -> bool | None:
    """Whether a variable is "1" or "0"; ``None`` if it is empty or not set.

    Raises:
        BuildError: it is something else.
    """
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise BuildError(f"{name}: got {value!r}, allowed are 0 and 1", f"Set it to 0 or 1, or unset {name}.")
    return {"": None, "0": False, "1": True}[value]


def native_wanted() -> bool:
    """Whether there shall be native kernels: unless ``ROPE_KERNELS_NATIVE`` is 0."""
    return _switch("ROPE_KERNELS_NATIVE") is not False


def cuda_wanted() -> bool | None:
    """``ROPE_KERNELS_CUDA``: 1 makes missing CUDA kernels an error, ``None`` builds them if there is nvcc."""
    return _switch("ROPE_KERNELS_CUDA")


def jobs() -> list[str]:
    """ninja's arguments for ``MAX_JOBS``, the variable of torch's own builds; without it ninja decides."""
    value = os.environ.get("MAX_JOBS", "")
    if value and not (value.isdigit() and int(value)):
        raise BuildError(f"MAX_JOBS: got {value!r}, a number from 1 on is needed", "Set it, or unset MAX_JOBS.")
    return ["-j", value] if value else []
