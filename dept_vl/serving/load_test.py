"""Many requests at once to a running service: whether all are answered, and how fast."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from dept_vl.serving.client import Client, ServiceError

SECONDS_TO_ANSWER = 120.0


class LoadRequest(NamedTuple):
    """What one request asks."""

    adapter: str
    text: str
    image_ids: tuple[str, ...] = ()


class LoadFigures(NamedTuple):
    """What came of a load test."""

    requests: int
    errors: int  # requests without an answer
    adapters: int  # different ones that were asked
    concurrency: int  # requests at a time
    mean_batch: float  # questions answered in one batch, by the service's own count
    p50_ms: float  # of the times from a request to its answer
    p95_ms: float
    per_second: float  # requests
    answers: list[str | None]  # in the order of the requests; None where there is none
    first_error: str  # empty if there is none


def load_test(url: str, requests: Sequence[LoadRequest], *, concurrency: int) -> LoadFigures:
    """Send requests, so many at a time, each as soon as the one before it on its connection is answered."""
    local, clients = threading.local(), [Client(url)]

    def ask(request: LoadRequest) -> tuple[str | None, float, str]:
        if not hasattr(local, "client"):
            local.client = Client(url, timeout=SECONDS_TO_ANSWER)
            clients.append(local.client)
        start, answer, error = time.perf_counter(), None, ""
        try:
            answer = local.client.answer(request.adapter, request.text, image_id=request.image_ids or None)
        except (ServiceError, OSError) as failure:
            error = str(failure)
        return answer, time.perf_counter() - start, error

    questions, batches = _batches(clients[0])
    start = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as threads:
        done = list(threads.map(ask, requests))
    elapsed = time.perf_counter() - start
    more_questions, more_batches = _batches(clients[0])
    for client in clients:
        client.close()
    answers, times, errors = [list(column) for column in zip(*done, strict=True)]
    ranked = sorted(1000 * seconds for seconds in times)
    failed = [error for error in errors if error]
    return LoadFigures(
        requests=len(requests),
        errors=len(failed),
        adapters=len({request.adapter for request in requests}),
        concurrency=concurrency,
        mean_batch=(more_questions - questions) / max(more_batches - batches, 1),
        p50_ms=ranked[len(ranked) // 2],
        p95_ms=ranked[len(ranked) * 95 // 100],
        per_second=len(requests) / elapsed,
        answers=answers,
        first_error=failed[0] if failed else "",
    )


def _batches(client: Client) -> tuple[float, float]:
    """Questions answered so far, and the batches that they were answered in."""
    text = client.text("/metrics")
    found = (re.search(rf"^dept_vl_batch_size_{part} (\S+)$", text, re.MULTILINE) for part in ("sum", "count"))
    questions, batches = (0.0 if one is None else float(one[1]) for one in found)
    return questions, batches
