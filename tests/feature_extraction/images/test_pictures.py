from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from feature_extraction.images.pictures import SMALLEST_SIDE, contact_sheet, draw_boxes, shortened

FONT = ImageFont.load_default(14)


def grey(width: int, height: int) -> np.ndarray[Any, Any]:
    return np.full((height, width, 3), 128, np.uint8)


def boxes(*rows: tuple[float, float, float, float]) -> np.ndarray[Any, Any]:
    return np.array(rows, np.float32).reshape(-1, 4)


def drawn(picture: Image.Image) -> tuple[int, int, int, int] | None:
    """The rectangle around everything that is not grey."""
    return Image.fromarray((np.array(picture) != 128).any(axis=2)).getbbox()


def test_a_picture_without_boxes_is_the_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    assert np.array_equal(np.array(draw_boxes(image, boxes())), image)


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    assert draw_boxes(grey(30, 20), boxes()).size == (960, 640)
    assert draw_boxes(grey(SMALLEST_SIDE, 2000), boxes()).size == (SMALLEST_SIDE, 2000)
    assert draw_boxes(grey(2000, 1), boxes()).size == (2000, 1)


def test_an_outline_lies_on_its_box() -> None:
    picture = draw_boxes(grey(800, 1000), boxes((0.25, 0.1, 0.75, 0.3)))
    left, top, right, bottom = drawn(picture) or (0, 0, 0, 0)
    assert (left, top, right, bottom) == pytest.approx((200, 100, 600, 300), abs=3)
    assert picture.getpixel((400, 200)) == (128, 128, 128)  # what is inside stays to be seen


def test_boxes_beyond_the_image_and_without_area_are_drawn_at_its_edge() -> None:
    beyond = boxes((-1, -1, 2, 2), (0, 0, 0, 0), (1, 1, 1, 1), (0.5, -3, 0.5, 4))
    picture = draw_boxes(grey(640, 640), beyond, ["whole", "corner", "end", "line"])
    assert picture.size == (640, 640)
    assert drawn(picture) == (0, 0, 640, 640)


def test_the_first_of_overlapping_boxes_is_on_top() -> None:
    same = (0.2, 0.2, 0.8, 0.8)
    one, both = draw_boxes(grey(640, 640), boxes(same)), draw_boxes(grey(640, 640), boxes(same, same))
    assert np.array_equal(np.array(one), np.array(both))


def test_neighbouring_boxes_have_colours_that_differ_much() -> None:
    rows = boxes(*((row / 40, 0.1, row / 40 + 0.01, 0.9) for row in range(36)))
    picture = draw_boxes(grey(1600, 640), rows)
    colours = np.array([picture.getpixel((round(row / 40 * 1599) + 1, 300)) for row in range(36)], int)
    assert min(np.abs(one - other).sum() for one, other in pairwise(colours)) > 100


@pytest.mark.parametrize("place", [(0, 0, 0.1, 0.1), (0.95, 0.95, 1, 1), (0.99, 0, 1, 0.01), (0, 0, 1, 1)])
def test_labels_stay_inside_the_picture(place: tuple[float, float, float, float]) -> None:
    without, labelled = (draw_boxes(grey(640, 640), boxes(place), labels) for labels in ([], ["a label 0.99"]))
    label = Image.fromarray((np.array(without) != np.array(labelled)).any(axis=2)).getbbox()
    assert label is not None
    width, height = FONT.getlength("a label 0.99") * 12 / 14, 12
    assert label[2] - label[0] >= width * 0.9 - 4  # nothing is cut off
    assert label[3] - label[1] >= height
    assert min(label) >= 0
    assert max(label) <= 640


def test_labels_keep_off_each_other() -> None:
    same = (0.2, 0.2, 0.8, 0.8)
    one = np.array(draw_boxes(grey(640, 640), boxes(same, same), ["first"]))
    two = np.array(draw_boxes(grey(640, 640), boxes(same, same), ["first", "second"]))
    bare = np.array(draw_boxes(grey(640, 640), boxes(same, same)))
    first = (one != bare).any(axis=2)
    assert np.array_equal(two[first], one[first])


def test_missing_and_empty_labels_are_left_out() -> None:
    places = boxes((0.1, 0.1, 0.4, 0.4), (0.5, 0.5, 0.9, 0.9))
    bare = draw_boxes(grey(640, 640), places)
    assert np.array_equal(np.array(draw_boxes(grey(640, 640), places, ["", ""])), np.array(bare))
    assert draw_boxes(grey(640, 640), places, ["one"]).size == bare.size


# --- texts


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("plain 0.5", "plain 0.5"),
        ("Bäume, café", "Baume, cafe"),
        ("猫 and 😀", "? and ?"),
        ("two\nlines\t\x00", "two?lines??"),
        ("\udce9.jpg", "?.jpg"),  # a file name that is no UTF-8
        ("", ""),
    ],
)
def test_texts_are_drawn_in_the_characters_of_the_font(text: str, plain: str) -> None:
    assert shortened(text, FONT, 1000) == plain
    contact_sheet([(Image.new("RGB", (9, 9)), text)], columns=1, tile=100)
    draw_boxes(grey(64, 64), boxes((0, 0, 1, 1)), [text])


def test_long_texts_lose_their_middle() -> None:
    text = "COCO_train2014_" + "0" * 60 + "42"
    short = shortened(text, FONT, 100)
    assert FONT.getlength(short) <= 100
    assert short.startswith("COCO_")
    assert short.endswith("42")
    assert "..." in short
    assert shortened("long text", FONT, 3) == ""


# --- sheets


def test_a_sheet_has_a_tile_and_a_caption_for_each_picture() -> None:
    pictures = [(Image.new("RGB", (200, 100), "red"), f"image {number}") for number in range(5)]
    sheet = contact_sheet(pictures, columns=3, tile=100)
    red = (np.array(sheet) == (255, 0, 0)).all(axis=2)
    assert red.sum() == 5 * 100 * 50  # fitted into the squares
    rows = np.flatnonzero(red.any(axis=1))
    assert np.flatnonzero(np.diff(rows) > 1).size == 1  # two rows of tiles
    dark = (np.array(sheet).sum(axis=2) < 100).any(axis=1)
    assert dark[rows[-1] :].any()  # captions below


def test_a_sheet_of_fewer_pictures_than_columns_is_as_wide_as_they_are() -> None:
    wide, narrow = (contact_sheet([(Image.new("L", (9, 9)), "x")] * n, columns=4, tile=50).width for n in (4, 1))
    assert narrow < wide / 3


def test_an_empty_sheet_is_a_picture() -> None:
    assert min(contact_sheet([], columns=4, tile=50).size) > 0


def test_pictures_on_a_sheet_stay_as_they_are() -> None:
    picture = Image.new("RGB", (500, 500))
    contact_sheet([(picture, "x")], columns=1, tile=50)
    assert picture.size == (500, 500)


def test_pictures_need_no_torch() -> None:
    code = "import sys, feature_extraction.images.pictures; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
