"""The error that ends a build."""

from __future__ import annotations

__all__ = ["WITHOUT", "BuildError"]

WITHOUT = "Without native kernels (CPU tensors run on plain torch, which is slower): set ROPE_KERNELS_NATIVE=0."


class BuildError(SystemExit):
    """Ends the build with a message of three lines: the reason, what to do about it, and how to do without.

    It is a ``SystemExit``, so that pip shows the message instead of a traceback.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"rope_kernels: the native kernels were not built: {reason}\n  {remedy}\n  {WITHOUT}")
        self.reason = reason
        self.remedy = remedy
