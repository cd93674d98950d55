"""RopeConfig, its fields and checks, the rope types, and the reader of HuggingFace configs."""

from .config import RopeConfig

__all__ = ["RopeConfig"]
