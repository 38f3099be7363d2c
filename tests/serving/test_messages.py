"""Requests as questions, and what is refused with which status."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from dept_vl.serving.messages import MOST_TEXT, Ask, Refused, ServiceSettings, read_ask

IMAGE = b"\x89PNG and so on"
CODED = base64.b64encode(IMAGE).decode()


def read(**fields: Any) -> Ask:
    return read_ask({"adapter": "colors", "text": "what color?", **fields}, max_image_bytes=30)


def test_images_are_ids_or_uploads_one_or_a_list() -> None:
    assert read() == Ask("colors", "what color?")
    assert read(image=None, image_id=None) == Ask("colors", "what color?")
    assert read(image_id="beach").image_ids == ("beach",)
    assert read(image_id=["left", "right"]).image_ids == ("left", "right")
    for image in (CODED, IMAGE, f"data:image/png;base64,{CODED}"):
        assert read(image=image).uploads == (IMAGE,)
    assert read(image=[CODED, IMAGE]).uploads == (IMAGE, IMAGE)


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"adapter": None}, 400, "The field 'adapter' is NoneType, not a text. Send {"),
        ({"text": ["a"]}, 400, "The field 'text' is list, not a text. Send {"),
        ({"text": " \n"}, 400, "The field 'text' is empty. Send {"),
        ({"text": "a" * (MOST_TEXT + 1)}, 413, "The text has 50,001 characters; at most 50,000 are read"),
        ({"imageid": "beach"}, 400, "Unknown field 'imageid'. Did you mean 'image_id'? Send {"),
        ({"image_id": [1]}, 400, "The field 'image_id' is to be a text, or a list of texts. Send {"),
        ({"image_id": ["a"] * 9}, 413, "The field 'image_id' has 9 entries; at most 8 are read"),
        ({"image": "no base64!"}, 400, "The field 'image' is not base64 ("),
        ({"image": "\u00e9"}, 400, "The field 'image' is not base64 ("),
        ({"image": 7}, 400, "The field 'image' is int. Send {"),
        ({"image": ""}, 400, "The field 'image' has no bytes. Send the contents of an image file"),
        ({"image": b"a" * 31}, 413, "The image has 31 bytes; at most 30 are read (--max-image-mb). Send a smaller one"),
        ({"image": "A" * 80}, 413, "The image has 60 bytes; at most 30 are read"),
        ({"image": CODED, "image_id": "beach"}, 400, "both 'image' and 'image_id'. Send one of them"),
    ],
)
def test_wrong_fields_are_named_with_what_would_be_right(fields: dict[str, Any], status: int, message: str) -> None:
    with pytest.raises(Refused, match=re.escape(message)) as raised:
        read(**fields)
    assert raised.value.reply.status == status
    assert raised.value.reply.body == {"error": str(raised.value)}


@pytest.mark.parametrize(
    ("request_body", "message"),
    [([], "no JSON object"), ("text", "no JSON object"), ({"text": "a"}, "'adapter' is missing. Send {")],
)
def test_requests_that_lack_everything_are_told_what_to_send(request_body: object, message: str) -> None:
    with pytest.raises(Refused, match=re.escape(message)):
        read_ask(request_body, max_image_bytes=30)


def test_a_body_has_room_for_a_pair_of_the_largest_images_in_base64() -> None:
    settings = ServiceSettings(backbone="t5-mini", adapters=Path(), max_image_bytes=3_000_000)
    assert settings.max_body_bytes >= 2 * len(base64.b64encode(bytes(3_000_000))) + MOST_TEXT
