"""Prometheus metrics of one service."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

STORES = ("gallery", "audit")
"""What erases by age."""

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters in their own registry, so that two services in one process do not mix. Labels are routes, statuses and
    codes: a small fixed set.
    """

    def __init__(self) -> None:
        """Start at zero."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the output and add nothing
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "reid_requests", "Requests by route and status.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "reid_request_seconds", "Time to answer.", ("route",), buckets=_SECONDS, registry=self.registry
        )
        self.rejections = Counter(
            "reid_rejections", "Requests refused or failed, by reason.", ("reason",), registry=self.registry
        )
        self.batches = Histogram("reid_batch_size", "Crops per inference.", buckets=_BATCHES, registry=self.registry)
        self.queue = Gauge("reid_queue_depth", "Requests that are being read or answered.", registry=self.registry)
        self.buffered = Gauge("reid_buffered_bytes", "Bytes of requests held in memory.", registry=self.registry)
        self._entries = Gauge("reid_gallery_entries", "Entries in the gallery.", registry=self.registry)
        self._generation = Gauge("reid_gallery_generation", "Number of changes to the gallery.", registry=self.registry)
        self._ready = Gauge("reid_ready", "1 if requests are answered.", registry=self.registry)

        self._waits = Gauge(
            "reid_ageing_waits",
            "1 if nothing is erased by age until somebody confirms the time.",
            ("store",),
            registry=self.registry,
        )
        self.waiting: set[str] = set()
        for store in STORES:
            self.age(store, waits=False)

    def age(self, store: str, *, waits: bool) -> None:
        """Say whether one of :data:`STORES` waits for a person before it erases anything by age."""
        (self.waiting.add if waits else self.waiting.discard)(store)
        self._waits.labels(store).set(float(waits))

    def watch(self, entries: Callable[[], float], generation: Callable[[], float], ready: Callable[[], float]) -> None:
        """Call these whenever metrics are read."""
        self._entries.set_function(entries)
        self._generation.set_function(generation)
        self._ready.set_function(ready)

    def text(self) -> bytes:
        """Render in Prometheus' text format."""
        return generate_latest(self.registry)
