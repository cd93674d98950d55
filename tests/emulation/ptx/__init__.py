"""An emulator of the PTX that the kernels compile to: every thread of a launch, and checks of all that it does."""

from .counts import Counts
from .errors import PTXError
from .launch import run
from .memory import Memory
from .parse import Program

__all__ = ["Counts", "Memory", "PTXError", "Program", "run"]
