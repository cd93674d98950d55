"""The one error of the emulator."""

from __future__ import annotations

__all__ = ["PTXError"]


class PTXError(Exception):
    """A kernel is wrong, or has something that the emulator does not know; the message names it."""
