from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

from feature_extraction.images.preprocessing import (
    RESIZES,
    WHOLE,
    Preprocessing,
    Transform,
    View,
    boxes_in_image,
    boxes_on_square,
)

RANDOM = np.random.default_rng(0)
SHAPES = [(60, 60), (40, 120), (120, 40), (47, 31), (500, 64)]


def preprocessing(size: int = 64, resize: str = "squash", interpolation: str = "bicubic") -> Preprocessing:
    return Preprocessing(size, interpolation, (0.485, 0.456, 0.406), (0.2, 0.2, 0.2), resize)


def views(view: View) -> np.ndarray:
    return np.array([view], dtype=np.float32)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1), (1, 300), (300, 1)])
def test_squash_is_pillow_s_resize(shape: tuple[int, int], interpolation: str) -> None:
    image = RANDOM.integers(0, 256, (*shape, 3), dtype=np.uint8)
    square, view = preprocessing(33, interpolation=interpolation).apply(image)
    expected = Image.fromarray(image).resize((33, 33), Image.Resampling[interpolation.upper()])
    assert np.array_equal(square, np.array(expected))
    assert view == WHOLE


@pytest.mark.parametrize("resize", RESIZES)
def test_a_square_image_is_resized_alike_by_all(resize: str) -> None:
    image = RANDOM.integers(0, 256, (50, 50, 3), dtype=np.uint8)
    square, view = preprocessing(resize=resize).apply(image)
    assert np.array_equal(square, preprocessing().apply(image)[0])
    assert view == WHOLE


@pytest.mark.parametrize("shape", [(40, 120), (120, 40), (30, 47), (1, 9), (9, 1)])
def test_crop_shows_the_central_square(shape: tuple[int, int]) -> None:
    # Smooth and never black or white: Pillow begins with rows or columns, and rounds and clips in between.
    noise = RANDOM.integers(60, 196, (*shape, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)))
    square, view = preprocessing(resize="crop").apply(image)
    height, width = shape
    side = min(shape)
    assert (view.x1 - view.x0) * width == pytest.approx(side)
    assert (view.y1 - view.y0) * height == pytest.approx(side)
    assert (view.x0 + view.x1, view.y0 + view.y1) == pytest.approx((1, 1))
    # As torchvision does it: the whole is resized first, so that the edge knows its neighbours outside.
    whole = 64 * np.array(shape) / side
    if (whole == whole.astype(int)).all():
        rows, columns = whole.astype(int)
        resized = np.array(Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC))
        top, left = (rows - 64) // 2, (columns - 64) // 2
        difference = square.astype(int) - resized[top : top + 64, left : left + 64]
        assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("shape", [(40, 120), (120, 40), (30, 47), (1, 9), (9, 1), (1, 5000), (5000, 1)])
def test_pad_shows_all_with_a_border_that_is_zero_after_normalisation(shape: tuple[int, int]) -> None:
    chosen = preprocessing(resize="pad")
    image = RANDOM.integers(0, 256, (*shape, 3), dtype=np.uint8)
    square, view = chosen.apply(image)
    width, height = round(64 / view.x1), round(64 / view.y1)
    assert (view.x0, view.y0, max(width, height)) == (0, 0, 64)
    whole = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    assert np.array_equal(square[:height, :width], np.array(whole))
    border = np.ones((64, 64), dtype=bool)
    border[:height, :width] = False
    normalised = (square[border] / 255 - chosen.mean) / chosen.std
    assert border.any()
    assert np.abs(normalised).max() <= 0.5 / 255 / 0.2 + 1e-9


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_mark_in_the_image_is_found_again_by_its_box(resize: str, shape: tuple[int, int]) -> None:
    height, width = shape
    image = np.zeros((*shape, 3), dtype=np.uint8)
    side = min(shape)
    top, left = height // 2 - side // 4, width // 2 - side // 3
    bottom, right = top + side // 2, left + side // 2
    image[top:bottom, left:right] = 255
    box = np.array([[left / width, top / height, right / width, bottom / height]], dtype=np.float32)

    square, view = preprocessing(128, resize=resize, interpolation="bilinear").apply(image)
    rows, columns = ((square == 255).all(axis=2).any(axis=axis).nonzero()[0] for axis in (1, 0))
    seen = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=np.float32) / 128
    # The mark's edge is soft: as wide as a pixel of the image, and one of the square.
    soft = max(1 / (width * (view.x1 - view.x0)), 1 / (height * (view.y1 - view.y0)), 1 / 128) + 1 / 128
    assert np.abs(boxes_on_square(box, views(view)) - seen).max() <= soft
    again, inside = boxes_in_image(seen, views(view))
    assert inside.all()
    assert np.abs(again - box).max() <= soft * max(1, view.x1 - view.x0, view.y1 - view.y0)


def test_a_box_taken_to_the_square_and_back_is_its_visible_part() -> None:
    for _ in range(1000):
        origin, size = RANDOM.uniform(0, 0.5, 2), RANDOM.uniform(0.3, 2.0, 2)
        view = np.array([[*origin, *(origin + size)]], dtype=np.float32)
        corners = np.sort(RANDOM.random((1, 2, 2)), axis=1).reshape(1, 4).astype(np.float32)
        back, inside = boxes_in_image(boxes_on_square(corners, view), view)
        visible = np.concatenate([np.maximum(corners[:, :2], view[:, :2]), np.minimum(corners[:, 2:], view[:, 2:])], 1)
        if (visible[:, 2:] - visible[:, :2] > 1e-4).all():
            assert inside.all()
            assert np.abs(back - visible).max() < 1e-6
        elif (visible[:, 2:] <= visible[:, :2] - 1e-4).any():
            assert not inside.any()


def test_boxes_of_the_border_are_not_in_the_image() -> None:
    boxes = np.array([[0, 0, 0.5, 0.5], [0.25, 0, 0.75, 1], [0.5, 0, 1, 1]], dtype=np.float32)
    found, inside = boxes_in_image(boxes, views(View(0, 0, 2, 1)))  # the image fills the left half
    assert found.tolist() == [[0, 0, 1, 0.5], [0.5, 0, 1, 1], [1, 0, 1, 1]]
    assert inside.tolist() == [True, True, False]


def test_boxes_of_several_images_each_have_their_view() -> None:
    boxes = np.tile(np.array([0.5, 0.5, 1, 1], dtype=np.float32), (2, 3, 1))
    each = np.array([WHOLE, View(0.25, 0, 0.75, 1)], dtype=np.float32)
    found, inside = boxes_in_image(boxes, each[:, None])
    assert inside.shape == (2, 3)
    assert found[:, 0].tolist() == [[0.5, 0.5, 1, 1], [0.5, 0.5, 0.75, 1]]
    assert np.array_equal(boxes_on_square(found, each[:, None]), boxes)


def test_the_identity_tells_apart_whatever_changes_the_square_and_is_json() -> None:
    one = preprocessing()
    changes = {"image_size": 65, "interpolation": "nearest", "mean": (0.0,) * 3, "std": (1.0,) * 3, "resize": "pad"}
    identities = [one._replace(**{name: value}).identity() for name, value in changes.items()]
    assert json.loads(json.dumps(one.identity())) == one.identity()
    assert set(one.identity()) == set(changes)
    assert all(identity != one.identity() for identity in identities)


def test_it_is_a_transform() -> None:
    assert isinstance(preprocessing(), Transform)
