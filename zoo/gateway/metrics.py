"""What the gateway has answered, for Prometheus. Served by `zoo/gateway/doors/metrics.py`.

The broker's own numbers are at its `metrics` address: it counts requests, whatever door they came by. The labels are
bounded: doors, and statuses of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class DoorMetrics:
    """Args: sessions: gives how many callers have a session of the broker."""

    def __init__(self, sessions: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "zoo_gateway_requests", "Requests answered", ["door", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "zoo_gateway_request_seconds",
            "From the head of a request to the end of its answer",
            ["door"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        gauge = Gauge("zoo_gateway_sessions", "Callers with a session of the broker", registry=self._registry)
        gauge.set_function(sessions)

    def count(self, door: str, status: int, seconds: float) -> None:
        """One answer."""
        self._requests.labels(door, str(status)).inc()
        self._seconds.labels(door).observe(seconds)

    def exposition(self) -> bytes:
        return generate_latest(self._registry)
