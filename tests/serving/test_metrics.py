"""Counts of a service in the format of Prometheus."""

from __future__ import annotations

import re

from dept_vl.serving.messages import Reply
from dept_vl.serving.metrics import Metrics


def lines(metrics: Metrics) -> list[str]:
    return [line for line in metrics.text(waiting=3).decode().splitlines() if not line.startswith("#")]


def test_requests_are_counted_by_adapter_and_outcome() -> None:
    metrics = Metrics()
    for status, adapter in ((200, "colors"), (200, "colors"), (404, "made up"), (503, "x"), (504, "y"), (500, "z")):
        metrics.count(adapter, Reply(status, {}), 0.02)
    found = [line for line in lines(metrics) if line.startswith("dept_vl_requests_total")]
    assert found == [
        'dept_vl_requests_total{adapter="colors",outcome="answered"} 2.0',
        'dept_vl_requests_total{adapter="",outcome="refused"} 1.0',
        'dept_vl_requests_total{adapter="",outcome="busy"} 1.0',
        'dept_vl_requests_total{adapter="",outcome="timed_out"} 1.0',
        'dept_vl_requests_total{adapter="",outcome="failed"} 1.0',
    ]


def test_batches_are_counted_by_their_first_reply_and_times_by_every_one() -> None:
    metrics = Metrics()
    for answered in (3, 0, 0, 5):
        metrics.count("colors", Reply(200, {}, answered=answered, adapters=7, bytes=1000), 0.02)
    found = lines(metrics)
    assert {"dept_vl_batch_size_sum 8.0", "dept_vl_batch_size_count 2.0", "dept_vl_adapters 7.0"} <= set(found)
    assert {"dept_vl_adapter_bytes 1000.0", "dept_vl_requests_waiting 3.0"} <= set(found)
    assert 'dept_vl_request_seconds_bucket{le="0.025"} 4.0' in found
    assert not re.search("_created", "\n".join(found))
