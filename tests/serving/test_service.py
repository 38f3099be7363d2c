"""The service over real HTTP, in processes of its own: it answers, refuses, loads, times out and ends in order."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from dept_vl.model.backbone import load_backbone
from dept_vl.serving.client import Client, ServiceError
from dept_vl.serving.load_test import LoadRequest, load_test
from dept_vl.settings import BackboneSettings

pytest.importorskip("litserve", reason="the extra serve is not installed")
SECONDS = 120  # for the service to be ready
TEXT = "is there any red shape ?"
MOST_IMAGE = 20_000  # bytes, as the service is started with


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """A running service, and what it has said."""

    def __init__(self, log: Path, *options: str) -> None:
        self.port, self.log = free_port(), log
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "dept_vl.serve", "--port", str(self.port), *options]
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)

    def wait_until_ready(self) -> None:
        with Client(self.url) as client:
            for _ in range(10 * SECONDS):
                if self.process.poll() is not None:
                    break
                if client.ready():
                    return
                time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def folder(served: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the adapters, that the service watches."""
    return Path(shutil.copytree(served.adapters, tmp_path_factory.mktemp("watched") / "adapters"))


@pytest.fixture(scope="module")
def service(served: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    options = ["--backbone", str(served.backbone), "--adapters", str(folder), "--features", str(served.store.path)]
    more = ["--max-image-mb", str(MOST_IMAGE / 1e6), "--wait-ms", "20"]
    made = Service(tmp_path_factory.mktemp("log") / "serve.log", *options, *more)
    try:
        made.wait_until_ready()
        yield made
    finally:
        made.end()


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url) as made:
        yield made


def requests(served: Any, count: int) -> list[LoadRequest]:
    """Different questions to all adapters in turn."""
    words = ("is", "there", "any", "red", "shape", "dog", "cat", "?")
    asked = []
    for number in range(count):
        one = served.alone[number % len(served.alone)]
        text = " ".join(words[(number + place) % len(words)] for place in range(1 + number % 7))
        images = tuple(str((number + place) % 4) for place in range(one.settings.task.images_per_example))
        asked.append(LoadRequest(one.name, text, images))
    return asked


def test_under_load_nothing_is_lost_and_every_answer_is_that_of_its_adapter_alone(
    service: Service, served: Any
) -> None:
    asked = requests(served, 80)
    figures = load_test(service.url, asked, concurrency=16)
    assert (figures.requests, figures.errors, figures.first_error, figures.adapters) == (80, 0, "", 4)
    assert figures.mean_batch > 2
    assert 0 < figures.p50_ms <= figures.p95_ms
    assert figures.per_second > 0
    expected = [served.of(one.adapter).answer(one.text, one.image_ids, served.store) for one in asked]
    assert figures.answers == expected
    assert len(set(expected)) > 8


def test_bad_requests_are_refused_beside_good_ones_of_the_same_batch(service: Service, served: Any) -> None:
    good = requests(served, 24)
    bad = [LoadRequest("nobody", TEXT), LoadRequest("colors", TEXT), LoadRequest("colors", TEXT, ("no image",))]
    mixed = [one for place, request in enumerate(good) for one in (request, bad[place % 3])]
    figures = load_test(service.url, mixed, concurrency=24)
    assert (figures.requests, figures.errors) == (48, 24)
    assert figures.answers[::2] == [
        served.of(one.adapter).answer(one.text, one.image_ids, served.store) for one in good
    ]
    assert figures.answers[1::2] == [None] * 24
    assert figures.first_error.startswith("No adapter is called 'nobody'")


def send(service: Service, body: bytes, content_type: str = "application/json") -> tuple[int, dict[str, Any]]:
    request = Request(f"{service.url}/predict", body, {"Content-Type": content_type})
    try:
        with urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        with error:
            return error.code, json.load(error)


def form(fields: Sequence[tuple[str, bytes, bool]]) -> tuple[bytes, str]:
    """A form's body and content type; fields are a name, a content, and whether it is a file's."""
    parts = []
    for name, content, is_file in fields:
        file = '; filename="picture.png"' if is_file else ""
        head = f'--limit\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    return b"".join(parts) + b"--limit--\r\n", "multipart/form-data; boundary=limit"


def test_pictures_are_uploaded_in_base64_or_as_files_of_a_form(service: Service, served: Any, client: Client) -> None:
    first, second = ((served.pictures / f"{number}.png").read_bytes() for number in (1, 2))
    expected = served.of("colors").answer(TEXT, ["1"], served.store)
    assert client.answer("colors", TEXT, image=first) == expected
    fields = [("adapter", b"colors", False), ("text", TEXT.encode(), False), ("image", first, True)]
    assert send(service, *form(fields))[1]["answer"] == expected
    fields = [("adapter", b"pairs", False), ("text", TEXT.encode(), False), ("image", first, True)]
    status, body = send(service, *form([*fields, ("image", second, True)]))
    assert (status, body["answer"]) == (200, served.of("pairs").answer(TEXT, ["1", "2"], served.store))


def test_requests_that_cannot_be_read_are_told_what_to_send(service: Service) -> None:
    for body, status, message in (
        (b"{", 400, "The request is no JSON ("),
        (b"\xff", 400, "The request is no JSON ("),
        (b"[" * 100_000, 400, "The request is no JSON ("),
        (b"[]", 400, "The request is no JSON object. Send {"),
        (b'{"adapter": "sentiment"}', 400, "The field 'text' is missing. Send {"),
        (json.dumps({"adapter": "colors", "text": TEXT, "image": "A" * 40_000}).encode(), 413, "The image has 30,000 "),
        (b'{"adapter": "colors", "text": "' + b"a" * 1_200_000, 413, "The request is larger than 1,053,333 bytes"),
    ):
        found = send(service, body)
        assert found[0] == status, found
        assert found[1]["error"].startswith(message)
    found = send(service, b"no form", "multipart/form-data")
    assert found[0] == 400
    assert found[1]["error"].startswith("The form cannot be read (")


def test_adapters_are_added_and_removed_while_the_service_runs(
    service: Service, served: Any, folder: Path, client: Client
) -> None:
    shutil.copytree(served.adapters / "plain", folder / ".coming")
    (folder / ".coming").rename(folder / "later")
    assert client.answer("later", TEXT) == served.of("plain").answer(TEXT)
    assert [one["name"] for one in client.adapters()] == ["colors", "later", "pairs", "plain", "sentiment"]
    shutil.rmtree(folder / "later")
    with pytest.raises(ServiceError, match="No adapter is called 'later'") as raised:
        client.answer("later", TEXT)
    assert raised.value.status == 404


def test_health_and_metrics_tell_how_it_is(service: Service, client: Client) -> None:
    client.answer("sentiment", TEXT)
    assert client.text("/health") == "ok"
    found = client.text("/metrics")
    assert 'dept_vl_requests_total{adapter="sentiment",outcome="answered"}' in found
    assert "dept_vl_adapters 4.0" in found
    assert "dept_vl_requests_waiting 0.0" in found


def test_a_model_s_process_that_dies_is_started_again(service: Service, served: Any, client: Client) -> None:
    processes = psutil.Process(service.process.pid).children(recursive=True)
    worker = next(one for one in processes if "spawn_main" in " ".join(one.cmdline()))
    worker.kill()
    for _ in range(10 * SECONDS):  # until it is seen to be dead
        if not client.ready():
            break
        time.sleep(0.1)
    service.wait_until_ready()
    assert client.answer("sentiment", TEXT) == served.of("sentiment").answer(TEXT)


def test_sigterm_to_all_its_processes_lets_what_was_asked_be_answered(service: Service, served: Any) -> None:
    """The last test: it ends the service."""
    outcomes: Counter[str] = Counter()
    started = threading.Semaphore(0)

    def ask(number: int) -> None:
        with Client(service.url) as client:
            started.release()
            try:
                outcomes[client.answer("sentiment", TEXT)] += 1
            except ServiceError as error:
                outcomes[f"status {error.status}"] += 1
            except OSError:
                outcomes["refused"] += 1

    expected = served.of("sentiment").answer(TEXT)
    with ThreadPoolExecutor(24) as threads:
        for number in range(400):
            threads.submit(ask, number)
        for _ in range(100):
            started.acquire()
        os.killpg(service.process.pid, signal.SIGTERM)
    assert service.process.wait(timeout=SECONDS) == 0
    assert set(outcomes) == {expected, "refused"}
    assert outcomes[expected] >= 76
    said = service.log.read_text()
    assert said.count("Ready: 4 adapters") == 2  # once after its process had been killed
    assert "SIGTERM received: answering what was asked, then stopping" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_two_thousand_requests_to_sixteen_adapters_are_answered_as_by_each_alone(
    served: Any, tmp_path: Path, build: Any
) -> None:
    """On the embedded t5-mini; it prints its figures, which stand in docs/serving.md."""
    backbone = load_backbone(BackboneSettings())
    adapters = []
    for number in range(16):
        sizes = (f"method.prompt_length={(20, 40, 60, 10)[number % 4]}", "method.budget_length=100")
        lengths = ("task.max_text_length=64", "task.max_target_length=8")
        task, method = ("sst2", "rte", "squad", "cola")[number % 4], "prompt" if number % 5 == 0 else "dept"
        folder = tmp_path / "adapters" / f"adapter-{number}"
        more = {"task": task, "method": method, "seed": number, "trained": 40, "spread": 0.3}
        adapters.append(build(backbone, served.store, folder, *sizes, *lengths, **more))
    words = ("the", "film", "is", "a", "gorgeous", "mess", "of", "red", "cats", "and", "two", "dogs", "in", "london")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randint(2, 30))) for _ in range(2000)]
    asked = [LoadRequest(f"adapter-{number % 16}", text) for number, text in enumerate(texts)]
    made = Service(tmp_path / "serve.log", "--backbone", "t5-mini", "--adapters", str(tmp_path / "adapters"))
    try:
        made.wait_until_ready()
        figures = load_test(made.url, asked, concurrency=32)
    finally:
        made.end()
    sys.stderr.write(f"\n{figures._replace(answers=[])}\n")
    assert (figures.requests, figures.errors, figures.adapters) == (2000, 0, 16)
    wrong = [
        (request, answer, expected)
        for number, one in enumerate(adapters)
        for request, answer, expected in zip(
            asked[number::16], figures.answers[number::16], one.answers(texts[number::16]), strict=True
        )
        if answer != expected
    ]
    assert wrong == []
    assert len(set(figures.answers)) > 500
