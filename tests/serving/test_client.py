"""The example client against a server that repeats what it is sent."""

from __future__ import annotations

import ast
import base64
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dept_vl.serving import client as client_module
from dept_vl.serving.client import Client, ServiceError


class Echo(BaseHTTPRequestHandler):
    """Answers with the request's own fields; some adapters' names are errors."""

    protocol_version = "HTTP/1.1"
    served: list[str] = []  # noqa: RUF012 - of the class, as a new object serves each connection

    def do_POST(self) -> None:
        fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.served.append(fields["adapter"])
        if fields["adapter"] == "closes":
            self._reply(200, {"answer": "closed"})
            self.close_connection = True  # without a word: the client finds out with its next request
        elif fields["adapter"] == "hangs up":
            self.close_connection = True
        elif fields["adapter"] == "unknown":
            self._reply(404, {"error": "No adapter is called 'unknown'"})
        elif fields["adapter"] == "html":
            self._reply(502, "<html>Bad gateway</html>")
        else:
            self._reply(200, {"answer": json.dumps(fields)})

    def do_GET(self) -> None:
        self._reply(200 if self.path != "/base/health" else 503, {"adapters": [{"name": "colors"}]})

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def _reply(self, status: int, body: object) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def url() -> Iterator[str]:
    Echo.served.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as made:
        yield made


def test_images_are_sent_by_id_or_as_files_one_or_several(client: Client, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    coded = [base64.b64encode(content).decode() for content in (b"cat", b"dog")]
    asked = {"adapter": "colors", "text": "what color?"}
    for given, sent in (
        ({}, {}),
        ({"image_id": "cat"}, {"image_id": "cat"}),
        ({"image_id": ("left", "right")}, {"image_id": ["left", "right"]}),
        ({"image": tmp_path / "cat.jpg"}, {"image": coded[:1]}),
        ({"image": str(tmp_path / "cat.jpg")}, {"image": coded[:1]}),
        ({"image": [tmp_path / "cat.jpg", b"dog"]}, {"image": coded}),
    ):
        assert json.loads(client.answer("colors", "what color?", **given)) == {**asked, **sent}


def test_what_the_service_says_is_raised_with_its_status(client: Client) -> None:
    with pytest.raises(ServiceError, match="No adapter is called 'unknown'") as raised:
        client.answer("unknown", "what?")
    assert raised.value.status == 404
    with pytest.raises(ServiceError, match="<html>Bad gateway</html>"):
        client.answer("html", "what?")


def test_a_connection_that_was_closed_meanwhile_is_opened_again_once(client: Client) -> None:
    assert client.answer("closes", "what?") == "closed"
    assert json.loads(client.answer("colors", "what?"))["text"] == "what?"
    with pytest.raises(ConnectionError):
        client.answer("hangs up", "what?")
    assert Echo.served == ["closes", "colors", "hangs up", "hangs up"]
    client.close()
    with pytest.raises(ConnectionError):  # on a new connection, once is enough
        client.answer("hangs up", "what?")
    assert len(Echo.served) == 5


def test_adapters_are_listed_and_a_service_that_is_not_there_is_not_ready(url: str) -> None:
    with Client(f"{url}/base/") as client:
        assert client.adapters() == [{"name": "colors"}]
        assert not client.ready()  # it says so
    with Client(url) as client:
        assert client.ready()
    assert not Client("http://127.0.0.1:9").ready()


def test_it_needs_the_standard_library_alone() -> None:
    tree = ast.parse(Path(client_module.__file__).read_text())
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {str(name).partition(".")[0] for name in imported} <= sys.stdlib_module_names
