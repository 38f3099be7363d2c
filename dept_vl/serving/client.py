"""A client of the service that needs nothing but this file and the standard library."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Image = str | Path | bytes  # a file, or its contents


class ServiceError(RuntimeError):
    """What the service says of a request that it does not answer; ``status`` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """A connection to a service, for one thread.

    ::

        with Client("http://127.0.0.1:8000") as client:
            client.answer("colors", "what color is the cat?", image="cat.jpg")
            client.answer("colors", "what color is the cat?", image_id="cat")
            client.answer("pairs", "both show a dog", image=["left.jpg", "right.jpg"])
            client.answer("sentiment", "a gorgeous film")
    """

    def __init__(self, url: str, *, timeout: float = 60.0) -> None:
        """Take a service's address; ``timeout`` in seconds is of a connection that says nothing."""
        address = urlsplit(url)
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(address.hostname or "127.0.0.1", address.port, timeout=timeout)
        self._path = address.path.rstrip("/")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def answer(
        self,
        adapter: str,
        text: str,
        image: Image | Sequence[Image] | None = None,
        image_id: str | Sequence[str] | None = None,
    ) -> str:
        """The answer of an adapter to a text, about images if its task has some: their files, or ids of the store.

        Raises:
            ServiceError: the service does not answer, and says why.
            OSError: the service cannot be reached.
        """
        fields: dict[str, Any] = {"adapter": adapter, "text": text}
        if image is not None:
            files = [image] if isinstance(image, str | Path | bytes) else image
            fields["image"] = [base64.b64encode(_contents(file)).decode() for file in files]
        if image_id is not None:
            fields["image_id"] = image_id if isinstance(image_id, str) else list(image_id)
        answer: str = self.request("POST", "/predict", fields)["answer"]
        return answer

    def adapters(self) -> list[dict[str, Any]]:
        """The adapters that can be asked."""
        listed: list[dict[str, Any]] = self.request("GET", "/adapters")["adapters"]
        return listed

    def ready(self) -> bool:
        """Whether the service answers questions yet."""
        try:
            self.text("/health")
        except (ServiceError, OSError):
            return False
        return True

    def request(self, method: str, path: str, fields: dict[str, Any] | None = None) -> dict[str, Any]:
        """The body of a reply.

        Raises:
            ServiceError, OSError: as of ``answer``.
        """
        body: dict[str, Any] = json.loads(self._send(method, path, fields))
        return body

    def text(self, path: str) -> str:
        """A page as it is, such as /metrics.

        Raises:
            ServiceError, OSError: as of ``answer``.
        """
        return self._send("GET", path).decode()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()

    def _send(self, method: str, path: str, fields: dict[str, Any] | None = None) -> bytes:
        body = None if fields is None else json.dumps(fields).encode()
        kept = self._connection.sock is not None
        try:
            response, content = self._exchange(method, path, body)
        except ConnectionError:
            if not kept:
                raise
            # The service closes connections that were idle for some seconds; to ask twice does no harm.
            response, content = self._exchange(method, path, body)
        if response.status != 200:
            raise ServiceError(response.status, _message(content))
        return content

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[http.client.HTTPResponse, bytes]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            self._connection.request(method, self._path + path, body, headers)
            response = self._connection.getresponse()
            return response, response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise error if isinstance(error, OSError) else ConnectionError(str(error)) from error


def _contents(file: Image) -> bytes:
    return file if isinstance(file, bytes) else Path(file).read_bytes()


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace")
