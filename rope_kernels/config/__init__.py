"""RopeConfig: its fields, their checks, the rope types, and the reading of HuggingFace's configs."""

from .config import RopeConfig

__all__ = ["RopeConfig"]
