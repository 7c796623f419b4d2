"""Where the checks run, and what a check's row is."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Row = dict[str, Any]


@dataclass(frozen=True)
class Card:
    """Where the checks run, and whether they are cut down to what a CPU can do."""

    device: str
    small: bool

    @property
    def on_gpu(self) -> bool:
        """Whether this is a CUDA device."""
        return self.device.startswith("cuda")

    def wait(self) -> None:
        """Wait for the card to finish what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def about(self) -> Row:
        """Return the name of the card and what it was run with."""
        row: Row = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
        if self.on_gpu:
            held = torch.cuda.get_device_properties(self.device)
            row |= {
                "card": held.name,
                "memory_gib": round(held.total_memory / 2**30, 1),
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
            }
        else:
            row["card"] = f"CPU ({platform.machine()})"
        return row


def failed(error: Exception, **about: object) -> Row:
    """Return a row that says what went wrong; other rows still count."""
    return {**about, "ok": False, "failed": f"{type(error).__name__}: {error}"[:600]}


def rate(run: Callable[[], object], count: int, card: Card) -> float:
    """Items a second: the median of repeats for about a second, after two."""
    run(), run()
    times: list[float] = []
    while sum(times) < (0.2 if card.small else 0.7) or len(times) < 5:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return round(count / statistics.median(times), 1)
