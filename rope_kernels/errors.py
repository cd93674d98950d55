"""The two errors users meet: a bad config and a bad tensor."""

from __future__ import annotations

__all__ = ["RopeBackendWarning", "RopeConfigError", "RopeConfigWarning", "RopeShapeError", "RopeTableWarning"]


class RopeConfigError(ValueError):
    """A config value is wrong. The message names the field first, then the value given and the allowed ones."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field

    def __reduce__(self) -> tuple[object, ...]:
        return RopeConfigError, (self.field, str(self).removeprefix(f"{self.field}: "))


class RopeShapeError(ValueError):
    """A tensor is wrong. The message names the tensor first, then what was given and what is allowed."""


class RopeBackendWarning(UserWarning):
    """Plain torch rotates because no kernel can: the message says why, and how to install one. Given once a process."""


class RopeConfigWarning(UserWarning):
    """A config value is odd but legal, or would be an error without ``strict=False``."""


class RopeTableWarning(UserWarning):
    """A cos/sin table is half as wide as a head, and nobody said whether its entries are of channels or of pairs."""
