"""The checks that every image of every format passes through."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from feature_extraction.interchange.image_arrays import Unusable, look_of, usable

FLOAT32 = np.dtype("float32")


def image(**changes: Any) -> dict[str, np.ndarray]:
    whole: dict[str, Any] = {
        "features": np.ones((2, 3), np.float32),
        "boxes": np.array([[0, 0, 320, 240], [0, 0, 640, 480]], np.float32),
        "obj_id": np.array([1, 2]),
        "obj_conf": np.array([0.5, 0.25], np.float32),
        "img_w": np.array(640),
        "img_h": np.array(480),
        **changes,
    }
    return {name: array for name, array in whole.items() if array is not None}


def checked(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return usable(found, look_of(found["features"].shape, found["features"].dtype, found))


def test_vl_t5_names_and_pixels_become_those_of_a_store() -> None:
    arrays = checked(image())
    assert sorted(arrays) == ["boxes", "class_ids", "features", "image_size", "scores"]
    assert arrays["boxes"].tolist() == [[0, 0, 0.5, 0.5], [0, 0, 1, 1]]
    assert arrays["image_size"].tolist() == [480, 640]


def test_names_and_fractions_of_a_store_stay_as_they_are() -> None:
    fractions = np.array([[0, 0, 0.5, 0.5], [0, 0, 1, 1]], np.float32)
    found = {"features": np.ones((2, 3), np.float16), "boxes": fractions, "mask": np.array([True, False])}
    arrays = checked(found)
    assert arrays["boxes"].tobytes() == fractions.tobytes()
    assert arrays["mask"].tolist() == [True, False]


def test_sizes_of_one_number_and_narrow_types_are_understood() -> None:
    arrays = checked(image(img_w=np.array([640], np.int32), img_h=np.array([[480]]), obj_id=np.array([1, 2], np.uint8)))
    assert arrays["image_size"].tolist() == [480, 640]
    assert arrays["class_ids"].dtype == np.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.array([[1, np.nan]], np.float32)}, "features hold NaN or infinite numbers"),
        ({"features": np.array([[1, np.inf]], np.float16)}, "features hold NaN or infinite numbers"),
        ({"features": np.ones((2, 3), np.int8)}, "features are int8 of shape (2, 3), expected floating point of shape"),
        ({"features": np.ones(6, np.float32)}, "features are float32 of shape (6,), expected floating point of shape"),
        ({"features": np.ones((0, 3), np.float32)}, "features are float32 of shape (0, 3), expected floating point"),
        ({"boxes": np.ones((3, 4), np.float32)}, "boxes are float32 (3, 4), expected float32 (2, 4)"),
        ({"boxes": np.ones((2, 5), np.float32)}, "boxes are float32 (2, 5), expected float32 (2, 4)"),
        ({"boxes": np.full((2, 4), np.nan, np.float32)}, "boxes hold NaN or infinite numbers"),
        (
            {"boxes": np.full((2, 4), 641, np.float32)},
            "boxes reach from 1.002 to 1.335 of the image's width and height, "
            "expected 0 to 1. Are they in pixels of another image size, or without img_w and img_h?",
        ),
        ({"boxes": np.full((2, 4), -1, np.float32)}, "boxes reach from -0.002083 to -0.001563 of the image's"),
        ({"obj_id": np.array([1.0, 2.0])}, "class_ids are float64 (2,), expected int64 (2,)"),
        ({"obj_id": np.array([1])}, "class_ids are int64 (1,), expected int64 (2,)"),
        ({"obj_conf": np.array([np.inf, 1], np.float32)}, "scores hold NaN or infinite numbers"),
        ({"obj_conf": np.array([1e300, 1])}, "scores hold NaN or infinite numbers"),
        ({"img_w": np.array(0)}, "the image size is 480 x 0 pixels (height x width), expected at least 1 x 1"),
        ({"img_h": np.array(-480)}, "the image size is -480 x 640 pixels (height x width), expected at least 1 x 1"),
        ({"img_w": np.array(640.0)}, "img_w is float64 (), expected a whole number"),
        ({"img_h": np.array([480, 1])}, "img_h is int64 (2,), expected a whole number"),
        ({"img_h": None}, "boxes are in pixels, but img_w or img_h is missing"),
        ({"img_h": None, "img_w": None}, "boxes are in pixels, but img_w or img_h is missing"),
    ],
)
def test_what_is_odd_is_unusable(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Unusable, match=re.escape(message)):
        checked(image(**changes))


def test_features_that_changed_since_they_were_listed_are_unusable() -> None:
    look = look_of((3, 3), FLOAT32, ["features"])
    with pytest.raises(Unusable, match=re.escape("features are float32 (2, 3), but float32 (3, 3) was announced")):
        usable({"features": np.ones((2, 3), np.float32)}, look)
