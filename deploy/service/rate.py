"""How often a caller may ask: one token bucket per caller."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

MAX_CALLERS = 4096
BURST_SECONDS = 2.0


class RateLimit:
    """Buckets that fill at ``rate`` per second and hold two seconds' worth; used from one thread.

    A request may cost more than its bucket holds, as long as that is not empty: the level then goes below zero, and the
    caller waits longer. So no request is too expensive for ever, and the rate holds in the long run.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = monotonic) -> None:
        """Allow ``rate`` requests per second; 0 allows everything."""
        self._rate = rate
        self._most = max(1.0, BURST_SECONDS * rate)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, caller: str, cost: float = 1.0) -> float:
        """Pay for a request; returns 0, or the seconds to wait if nothing was taken."""
        if not self._rate:
            return 0.0
        now = self._clock()
        level, then = self._buckets.get(caller, (self._most, now))
        level = min(self._most, level + (now - then) * self._rate)
        if level < 1.0:
            self._buckets[caller] = (level, now)
            return (1.0 - level) / self._rate
        self._buckets[caller] = (level - cost, now)
        if len(self._buckets) > MAX_CALLERS:
            self._drop_full(now)
        return 0.0

    def charge(self, caller: str, cost: float) -> None:
        """Add to the cost of an admitted request."""
        if self._rate and caller in self._buckets:
            level, then = self._buckets[caller]
            self._buckets[caller] = (level - cost, then)

    def _drop_full(self, now: float) -> None:
        """Forget callers whose bucket would be full; they would start with a full one again."""
        self._buckets = {
            name: (level, then)
            for name, (level, then) in self._buckets.items()
            if level + (now - then) * self._rate < self._most
        }
