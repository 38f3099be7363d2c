"""The HTTP service, on LitServe: one process takes requests, another has the model and answers them in batches.

What LitServe's own parts do not do is done here: an error of one request stays its own, and is told in JSON; the time
limit holds to the reply, not only to the start of the work; a batch's waiting time begins with its first request; and
the model's process finishes what is asked before it ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.queues import SimpleQueue
from queue import Empty, Queue
from types import FrameType
from typing import Any, cast

from fastapi import Request, Response
from litserve import LitAPI, LitServer
from litserve.loops.simple_loops import BatchedLoop
from litserve.specs.base import LitSpec
from litserve.utils import LitAPIStatus, ResponseBufferItem, WorkerSetupStatus
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from dept_vl.command_line import exit_code_of, say
from dept_vl.serving.messages import USE, ListAdapters, Message, Refused, Reply, ServiceSettings, read_ask
from dept_vl.serving.metrics import Metrics

IDLE = 0.2  # seconds between two looks at whether the process is to end
PATH = "/predict"
HTTP_PROCESS = "LitServer"  # how the name of that process begins


class Front(LitSpec):  # type: ignore[misc]
    """The HTTP side: reads requests, hands them to the model's process, and waits for their replies."""

    def __init__(self, settings: ServiceSettings) -> None:
        super().__init__()
        self.api_path = PATH
        self._settings = settings
        self._metrics: Metrics | None = Metrics()
        self.add_endpoint(PATH, self.predict, ["POST"])
        self.add_endpoint("/adapters", self.adapters, ["GET"])
        self.add_endpoint("/metrics", self.metrics, ["GET"])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_metrics": None}  # the model's process has none

    async def predict(self, request: Request) -> Response:
        """Answer a question."""
        start, adapter = time.monotonic(), ""
        try:
            ask = read_ask(await self._fields(request), max_image_bytes=self._settings.max_image_bytes)
            adapter = ask.adapter
            reply = await self._reply(ask)
        except Refused as refusal:
            reply = refusal.reply
        cast(Metrics, self._metrics).count(adapter, reply, time.monotonic() - start)
        return JSONResponse(reply.body, reply.status)

    async def adapters(self, request: Request) -> Response:
        """Tell what adapters there are."""
        reply = await self._reply(ListAdapters())
        return JSONResponse(reply.body, reply.status)

    async def metrics(self, request: Request) -> Response:
        """Tell what was counted."""
        text = cast(Metrics, self._metrics).text(waiting=len(self.response_buffer))
        return Response(text, media_type="text/plain; version=0.0.4")

    async def _fields(self, request: Request) -> object:
        """The fields of a request in JSON, or of a form, whose files are bytes."""
        try:
            if request.headers.get("content-type", "").startswith("multipart/form-data"):
                async with request.form() as form:
                    return {key: await _values(form.getlist(key)) for key in form}
            return json.loads(await request.body())
        except HTTPException as error:
            if error.status_code != 413:
                raise Refused(400, f"The form cannot be read ({error.detail}). {USE}") from None
            most = self._settings.max_body_bytes
            raise Refused(413, f"The request is larger than {most:,} bytes (--max-image-mb). Send less") from None
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"The request is no JSON ({error}). {USE}") from None

    async def _reply(self, message: Message) -> Reply:
        """The reply of the model's process, or that there is none in time."""
        settings = self._settings
        if len(self.response_buffer) >= settings.most_waiting:
            return Reply(503, {"error": f"{settings.most_waiting:,} requests wait already. Ask again later"})
        uid, item = str(uuid.uuid4()), ResponseBufferItem(event=asyncio.Event())
        self.response_buffer[uid] = item
        try:
            self.request_queue.put((self.response_queue_id, uid, time.monotonic(), message))
            await asyncio.wait_for(item.event.wait(), settings.timeout_seconds)
        except TimeoutError:
            limit = f"{settings.timeout_seconds:g} s (--timeout)"
            return Reply(504, {"error": f"There was no answer in {limit}. Ask again later"})
        finally:
            del self.response_buffer[uid]
        reply, status = item.response
        if status != LitAPIStatus.OK:
            return Reply(500, {"error": "The service failed on this request; its log says more"})
        return cast(Reply, reply)


class Model(LitAPI):  # type: ignore[misc]
    """The model's side, in a process of its own."""

    def __init__(self, settings: ServiceSettings) -> None:
        super().__init__(
            max_batch_size=settings.max_batch,
            batch_timeout=settings.wait_seconds,
            spec=Front(settings),
            loop=WaitingLoop(),
        )
        self.settings = settings
        self.stopping = False
        # Why the process could not start, for the one that started it.
        self.failure: SimpleQueue[Exception] = multiprocessing.get_context("spawn").SimpleQueue()

    def setup(self, device: str) -> None:
        """Load everything, and leave the end of the process to the one that started it."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # which reaches all processes of a terminal
        signal.signal(signal.SIGTERM, self._stop)
        try:
            import torch

            from dept_vl.serving.answering import Answerer

            self._answerer = Answerer(self.settings, torch.device(device))
        except Exception as error:
            if exit_code_of(error) is not None:
                logging.getLogger("litserve").setLevel(logging.CRITICAL)  # its traceback says no more
                self.failure.put(error)
            raise
        say(f"Ready: {self._answerer.describe()}")

    def decode_request(self, request: Message) -> Message:
        """As it is: whatever is raised here would fail the whole batch."""
        return request

    def predict(self, messages: Sequence[Message]) -> list[Reply]:
        """A reply to each message."""
        return self._answerer.replies(messages)

    def encode_response(self, output: Reply) -> Reply:
        """As it is."""
        return output

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True


class WaitingLoop(BatchedLoop):  # type: ignore[misc]
    """Takes a batch from the queue: all that is there, and what comes until the first has waited long enough."""

    def get_batch_requests(
        self, lit_api: Model, request_queue: Queue[Any], transport: object
    ) -> tuple[list[Any], list[Any]]:
        """The next requests, none where none comes for a while; those that nobody waits for any more are dropped."""
        taken = []
        try:
            taken.append(request_queue.get(timeout=IDLE))
            end = taken[0][2] + lit_api.batch_timeout  # from its arrival: what waited for the last batch goes at once
            while len(taken) < lit_api.max_batch_size:
                left = end - time.monotonic()
                taken.append(request_queue.get(timeout=left) if left > 0 else request_queue.get_nowait())
        except Empty:
            if not taken and lit_api.stopping:
                sys.exit(0)
        oldest = time.monotonic() - lit_api.settings.timeout_seconds
        return [(queue, uid, message) for queue, uid, arrived, message in taken if arrived >= oldest], []


def run_service(settings: ServiceSettings, *, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that came before are still answered. Ctrl-C again stops at once.

    Raises:
        UsageError, InputDataError, IncompatibleError, DamagedError: the model's process could not start.
    """
    model = Model(settings)
    server = LitServer(
        model,
        accelerator="cpu" if sys.platform == "darwin" else "auto",
        devices=1,
        timeout=settings.timeout_seconds,
        max_payload_size=settings.max_body_bytes,
        disable_openapi_url=True,
        restart_workers=True,
    )
    server.uvicorn_graceful_timeout = int(settings.timeout_seconds) + 1
    stop = _Stop(server)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    _watch_start(server)
    try:
        # One process for HTTP: the metrics are its own.
        server.run(host, port, num_api_servers=1, generate_client_file=False, log_level="warning", access_log=False)
    except RuntimeError:
        if model.failure.empty():
            raise
        raise model.failure.get() from None
    finally:
        for child in multiprocessing.active_children():
            child.kill()


async def _values(values: Sequence[UploadFile | str]) -> Any:  # noqa: ANN401 - a text, bytes, or a list of these
    """The values of a form's field: one as it is, several as a list."""
    read = [await value.read() if isinstance(value, UploadFile) else value for value in values]
    return read[0] if len(read) == 1 else read


class _Stop:
    """What a signal does: the first ends the service in order, and at once while it is still loading, as Ctrl-C does.

    Processes that were forked from this one have it too. That of HTTP has handlers of its own while it serves. The one
    with the queues goes on until it is told, also where a signal reaches all processes, as systemd's does.
    """

    def __init__(self, server: LitServer) -> None:
        self._server = server
        self._process = os.getpid()
        self._stopping = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            if multiprocessing.current_process().name.startswith(HTTP_PROCESS):
                sys.exit(0)
            return
        serving = any(child.name.startswith(HTTP_PROCESS) for child in multiprocessing.active_children())
        if number == signal.SIGINT and (self._stopping or not serving):
            raise KeyboardInterrupt
        if not serving:
            sys.exit(0)
        if not self._stopping:
            say(f"{signal.Signals(number).name} received: answering what was asked, then stopping")
            self._stopping = True
            # In a thread, since the main one may be waiting for this very event, over the same connection.
            threading.Thread(target=self._server._shutdown_event.set).start()


def _watch_start(server: LitServer) -> None:
    """End the wait for a model's process that has died before it was ready, as for want of memory."""

    def watch() -> None:
        while True:
            time.sleep(IDLE)
            workers = getattr(server, "inference_workers", [])
            states: Mapping[str, str] = getattr(server, "workers_setup_status", {})
            if workers and WorkerSetupStatus.READY in states.values():
                return
            if workers and not all(worker.is_alive() for worker in workers):
                server.workers_setup_status.update(dict.fromkeys(states.keys(), WorkerSetupStatus.ERROR))
                return

    def watch_until_it_ends() -> None:
        with suppress(OSError, EOFError):  # the states are another process's, which has ended with the service
            watch()

    threading.Thread(target=watch_until_it_ends, daemon=True).start()
