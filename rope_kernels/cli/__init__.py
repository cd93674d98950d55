"""The ``rope-kernels`` command."""

from .commands import app, main

__all__ = ["app", "main"]
