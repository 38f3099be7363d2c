"""Between HTTP and the model: which requests make a batch, and what becomes of those that get no reply in time."""

from __future__ import annotations

import asyncio
import pickle
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("litserve", reason="the extra serve is not installed")

from litserve.utils import LitAPIStatus

from dept_vl.serving.messages import Ask, Reply, ServiceSettings
from dept_vl.serving.service import Front, Model, WaitingLoop

ASK = Ask("colors", "what color?")
ANSWER = Reply(200, {"answer": "red"})


def settings(**more: Any) -> ServiceSettings:
    return ServiceSettings(backbone="t5-mini", adapters=Path(), **more)


class Taker:
    """A loop on a queue of its own; requests are named by numbers."""

    def __init__(self, **more: Any) -> None:
        self.model, self.queue = Model(settings(**more)), queue.Queue[Any]()

    def put(self, *uids: int, age: float = 0.0) -> None:
        for uid in uids:
            self.queue.put((0, uid, time.monotonic() - age, ASK))

    def take(self) -> list[int]:
        wanted, answered_already = WaitingLoop().get_batch_requests(self.model, self.queue, None)
        assert all(message == ASK for _, _, message in wanted)
        assert answered_already == []
        return [uid for _, uid, _ in wanted]


def test_a_batch_is_what_has_come_up_to_the_most() -> None:
    taker = Taker(max_batch=3, wait_seconds=0.0)
    taker.put(1, 2, 3, 4)
    assert taker.take() == [1, 2, 3]
    assert taker.take() == [4]
    assert taker.take() == []


def test_the_first_of_a_batch_waits_for_others() -> None:
    taker = Taker(wait_seconds=5.0, max_batch=2)

    class Slow(queue.Queue[Any]):
        """The second request comes while the first waits."""

        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            if self.empty():
                assert timeout is not None
                assert 4 < timeout <= 5
                taker.put(2)
            return super().get(block, timeout)

    taker.queue = Slow()
    taker.put(1)
    assert taker.take() == [1, 2]


def test_one_that_waited_for_the_last_batch_goes_at_once_with_those_that_came_meanwhile() -> None:
    taker = Taker(wait_seconds=5.0)
    taker.put(1, age=6.0)
    taker.put(2, 3)
    start = time.monotonic()
    assert taker.take() == [1, 2, 3]
    assert time.monotonic() - start < 4


def test_requests_that_nobody_waits_for_any_more_are_not_answered() -> None:
    taker = Taker(timeout_seconds=2.0, wait_seconds=0.0)
    taker.put(1, age=3.0)
    taker.put(2)
    assert taker.take() == [2]


def test_the_process_ends_once_it_is_told_to_and_all_is_answered() -> None:
    taker = Taker(wait_seconds=0.0)
    taker.put(1)
    taker.model._stop(15, None)
    assert taker.take() == [1]
    with pytest.raises(SystemExit) as raised:
        taker.take()
    assert raised.value.code == 0


def front(reply: Callable[[Front, str], None], **more: Any) -> Front:
    """The HTTP side with a queue that replies as told."""
    made = Front(settings(**more))
    made.response_buffer, made.response_queue_id = {}, 0

    class Replying:
        def put(self, item: tuple[int, str, float, Ask]) -> None:
            reply(made, item[1])

    made.request_queue = Replying()
    return made


def replying(response: object, status: str = LitAPIStatus.OK) -> Callable[[Front, str], None]:
    def reply(made: Front, uid: str) -> None:
        made.response_buffer[uid].response = (response, status)
        made.response_buffer[uid].event.set()

    return reply


def test_a_reply_is_handed_on_and_forgotten() -> None:
    made = front(replying(ANSWER))
    assert asyncio.run(made._reply(ASK)) == ANSWER
    assert made.response_buffer == {}


def test_without_a_reply_in_time_the_client_is_told_and_nothing_is_kept() -> None:
    made = front(lambda made, uid: None, timeout_seconds=0.01)
    reply = asyncio.run(made._reply(ASK))
    assert reply == Reply(504, {"error": "There was no answer in 0.01 s (--timeout). Ask again later"})
    assert made.response_buffer == {}


def test_a_reply_that_is_none_is_a_failure() -> None:
    failed = asyncio.run(front(replying(b"an error", LitAPIStatus.ERROR))._reply(ASK))
    assert failed == Reply(500, {"error": "The service failed on this request; its log says more"})


def test_when_too_many_wait_new_requests_are_refused_at_once() -> None:
    made = front(replying(ANSWER), most_waiting=2)
    made.response_buffer = {"one": None, "other": None}
    reply = asyncio.run(made._reply(ASK))
    assert reply == Reply(503, {"error": "2 requests wait already. Ask again later"})


def test_the_model_s_side_goes_to_its_process_without_what_the_http_side_counts() -> None:
    made = cast(Front, pickle.loads(pickle.dumps(Front(settings()))))
    assert made._metrics is None
    assert [path for path, _, _ in made.endpoints] == ["/predict", "/adapters", "/metrics"]
