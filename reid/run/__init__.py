"""The folder of one model's life: what it has sealed, and all that changes it."""

from reid.run.run import Run

__all__ = ["Run"]
