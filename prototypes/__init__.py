"""What is remembered of a learned domain: never a pixel."""

from prototypes.memory import Memory

__all__ = ["Memory"]
