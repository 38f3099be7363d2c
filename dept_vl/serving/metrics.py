"""What a service counts, in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from dept_vl.serving.messages import Reply

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
OUTCOMES = {200: "answered", 503: "busy", 504: "timed_out"}  # by status; others of 4xx are refused, of 5xx failed


class Metrics:
    """Counts of requests, their times, and the sizes of batches."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second line for each count, which says nothing
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "dept_vl_requests", "Requests by adapter and outcome.", ["adapter", "outcome"], registry=registry
        )
        self._seconds = Histogram(
            "dept_vl_request_seconds", "From a request's arrival to its reply.", buckets=SECONDS, registry=registry
        )
        self._batches = Histogram(
            "dept_vl_batch_size", "Questions that were answered in one batch.", buckets=SIZES, registry=registry
        )
        self._waiting = Gauge("dept_vl_requests_waiting", "Requests that have no reply yet.", registry=registry)
        self._adapters = Gauge("dept_vl_adapters", "Adapters that are loaded.", registry=registry)
        self._bytes = Gauge("dept_vl_adapter_bytes", "What they take on the device.", registry=registry)

    def count(self, adapter: str, reply: Reply, seconds: float) -> None:
        """Count a request and its reply; an adapter that there is not goes without a name, as anything may be asked."""
        outcome = OUTCOMES.get(reply.status, "refused" if reply.status < 500 else "failed")
        self._requests.labels(adapter if reply.status == 200 else "", outcome).inc()
        self._seconds.observe(seconds)
        if reply.answered:
            self._batches.observe(reply.answered)
        if reply.adapters:
            self._adapters.set(reply.adapters)
            self._bytes.set(reply.bytes)

    def text(self, *, waiting: int) -> bytes:
        """All counts."""
        self._waiting.set(waiting)
        return generate_latest(self._registry)
