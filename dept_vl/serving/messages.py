"""What a client may ask, what it is told, and the limits of both. Imports no torch: the HTTP side has none."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dept_vl.settings import nearest

MOST_TEXT = 50_000  # characters; of 512 tokens, which reading tasks take, they are some 3,000
MOST_IMAGES = 8  # of one request
KEYS = ("adapter", "text", "image", "image_id")
USE = (
    'Send {"adapter": NAME, "text": TEXT}, and of a task with images "image" (base64) or "image_id" (of the feature '
    "store), which may be lists"
)


@dataclass(frozen=True)
class ServiceSettings:
    """What a service is started with."""

    backbone: str
    adapters: Path
    features: Path | None = None
    precision: str = "fp32"
    max_batch: int = 64  # requests
    wait_seconds: float = 0.005  # that the first request of a batch waits for others
    timeout_seconds: float = 30.0  # from a request's arrival to its answer
    max_image_bytes: int = 20_000_000
    most_waiting: int = 1_000  # requests at once, beyond which new ones are refused

    @property
    def max_body_bytes(self) -> int:
        """Of a request: as many images of the largest size in base64 as a pair takes, and a text."""
        return 2 * self.max_image_bytes * 4 // 3 + 1_000_000


class Ask(NamedTuple):
    """A question to an adapter."""

    adapter: str
    text: str
    uploads: tuple[bytes, ...] = ()  # encoded images
    image_ids: tuple[str, ...] = ()


class ListAdapters(NamedTuple):
    """The wish to know what adapters there are."""


Message = Ask | ListAdapters


class Reply(NamedTuple):
    """What a client is told; ``answered`` and ``adapters`` are for the metrics."""

    status: int  # of HTTP
    body: dict[str, Any]
    answered: int = 0  # size of the batch, in the reply to its first question; 0 in the others
    adapters: int = 0  # that are loaded
    bytes: int = 0  # that they take


class Refused(Exception):
    """A request that is not answered, with the status of HTTP and the sentence for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.reply = Reply(status, {"error": message})


def read_ask(fields: object, *, max_image_bytes: int) -> Ask:
    """A request's fields as a question, each checked.

    Uploads are bytes, or texts in base64.

    Raises:
        Refused: names what is wrong, and what would be right.
    """
    if not isinstance(fields, Mapping):
        raise Refused(400, f"The request is no JSON object. {USE}")
    unknown = [key for key in fields if key not in KEYS]
    if unknown:
        raise Refused(400, f"Unknown field {unknown[0]!r}.{nearest(str(unknown[0]), KEYS)} {USE}")
    for key in ("adapter", "text"):
        if not isinstance(fields.get(key), str):
            fault = f"is {type(fields[key]).__name__}, not a text" if key in fields else "is missing"
            raise Refused(400, f"The field {key!r} {fault}. {USE}")
    adapter, text = fields["adapter"], fields["text"]
    if not text.strip():
        raise Refused(400, f"The field 'text' is empty. {USE}")
    if len(text) > MOST_TEXT:
        raise Refused(413, f"The text has {len(text):,} characters; at most {MOST_TEXT:,} are read")
    image_ids = _listed(fields, "image_id")
    if not all(isinstance(image_id, str) for image_id in image_ids):
        raise Refused(400, f"The field 'image_id' is to be a text, or a list of texts. {USE}")
    uploads = tuple(_decoded(image, max_image_bytes) for image in _listed(fields, "image"))
    if uploads and image_ids:
        raise Refused(400, "The request has both 'image' and 'image_id'. Send one of them")
    return Ask(adapter, text, uploads, image_ids)


def _listed(fields: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    """The values of a field that may be absent, a single value or a list."""
    value = fields.get(key)
    values = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if len(values) > MOST_IMAGES:
        raise Refused(413, f"The field {key!r} has {len(values)} entries; at most {MOST_IMAGES} are read")
    return values


def _decoded(image: object, max_image_bytes: int) -> bytes:
    if isinstance(image, str):
        text = image.partition("base64,")[2] if image.startswith("data:") else image
        if len(text) * 3 // 4 > max_image_bytes + 2:
            raise _too_large(len(text) * 3 // 4, max_image_bytes)
        try:
            image = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refused(
                400, f"The field 'image' is not base64 ({error}). Encode the bytes of the image file, without line ends"
            ) from None
    if not isinstance(image, bytes):
        raise Refused(400, f"The field 'image' is {type(image).__name__}. {USE}")
    if len(image) > max_image_bytes:
        raise _too_large(len(image), max_image_bytes)
    if not image:
        raise Refused(400, "The field 'image' has no bytes. Send the contents of an image file")
    return image


def _too_large(size: int, most: int) -> Refused:
    return Refused(413, f"The image has {size:,} bytes; at most {most:,} are read (--max-image-mb). Send a smaller one")
