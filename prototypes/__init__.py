"""What is remembered of a learned domain: never a pixel."""

from prototypes.memory import Memory
from prototypes.transport import Transport

__all__ = ["Memory", "Transport"]
