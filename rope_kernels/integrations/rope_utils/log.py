"""The logger of transformers' own module, so that its verbosity, handlers and log assertions apply here too."""

from __future__ import annotations

import functools
import logging

__all__ = ["logger", "warning_once"]

logger = logging.getLogger("transformers.modeling_rope_utils")


@functools.lru_cache(maxsize=1024)
def _first_time(message: str) -> None:
    logger.warning(message)


def warning_once(message: str) -> None:
    """Log a message the first time only, by transformers' own cache if transformers is loaded."""
    getattr(logger, "warning_once", _first_time)(message)
