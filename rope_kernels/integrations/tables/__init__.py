"""Models that rotate by tables of their own: measuring their functions, then replacing them by the table kernel."""

from .patching import TableReport

__all__ = ["TableReport"]
