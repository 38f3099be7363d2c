from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.models.yolos.image_processing_pil_yolos import get_size_with_aspect_ratio_yolos

from feature_extraction.errors import UsageError
from feature_extraction.images.inputs import Inputs
from feature_extraction.images.preprocessing import Transform
from feature_extraction.regions.detectors import (
    BATCH_SIZE,
    DetectedRegions,
    Detector,
    WholeImage,
    candidates,
)
from feature_extraction.regions.regions import Candidates
from feature_extraction.settings import ExtractionSettings

CPU = torch.device("cpu")
KEEPS_SHAPE = WholeImage(40, 40, "bilinear", shortest=24)
SQUASHES = WholeImage(16, 24, "bilinear")


class BrightestPixels:
    """A stand-in for a detector: a box around all white pixels of a picture. Remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, ...]] = []

    def __call__(self, shown: torch.Tensor) -> list[Candidates]:
        self.shown.append(tuple(shown.shape))
        height, width = shown.shape[1:3]
        found = []
        for picture in shown:
            rows, columns = torch.nonzero(picture[..., 0] > 127, as_tuple=True)
            boxes = np.zeros((0, 4), np.float32)
            if len(rows):
                corner, end = (columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)
                box = [corner[0] / width, corner[1] / height, end[0] / width, end[1] / height]
                boxes = np.array([box], np.float32)
            found.append(Candidates(boxes, np.full(len(boxes), 0.5, np.float32), np.ones(len(boxes), np.int64)))
        return found


def source(transform: WholeImage, **settings: Any) -> tuple[DetectedRegions, BrightestPixels]:
    find = BrightestPixels()
    detector = Detector("mine", torch.nn.Linear(2, 2), find, transform, {"scale": 1.0})
    built = DetectedRegions(detector, ExtractionSettings(region_count=2, **settings), CPU)
    find.shown.clear()
    return built, find


def with_a_white_box(width: int, height: int) -> np.ndarray[Any, Any]:
    """A black picture with white from a half to three quarters of its width, and the upper half of its height."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, width // 2 : width * 3 // 4] = 255
    return picture


# --- what a detector sees


@pytest.mark.parametrize(("shortest", "longest"), [(800, 1333), (480, 480), (320, 640)])
def test_the_sides_are_those_of_the_libraries_own_preprocessing(shortest: int, longest: int) -> None:
    random = np.random.default_rng(0)
    for height, width in random.integers(60, 900, (300, 2)).tolist():
        theirs = get_size_with_aspect_ratio((height, width), shortest, longest)
        if theirs == (height, width):  # there images that are a pixel off stay as they are, even beyond the canvas
            continue
        assert WholeImage(longest, longest, "bilinear", shortest)._inner(height, width) == theirs
        yolos = WholeImage(longest, longest, "bilinear", shortest, 16)._inner(height, width)
        assert yolos == get_size_with_aspect_ratio_yolos((height, width), shortest, longest)


@pytest.mark.parametrize("transform", [KEEPS_SHAPE, SQUASHES, WholeImage(40, 40, "bicubic", 24, multiple=8)])
def test_every_image_gives_a_canvas_of_one_shape_that_shows_all_of_it(transform: WholeImage) -> None:
    assert isinstance(transform, Transform)
    for width, height in ((1, 1), (1, 300), (300, 1), (40, 24), (33, 57), (640, 480)):
        canvas, view = transform.apply(np.full((height, width, 3), 200, np.uint8))
        rows, columns = transform.shown(np.array(view, np.float32))
        assert canvas.shape == (transform.height, transform.width, 3)
        assert canvas.dtype == np.uint8
        assert (canvas[:rows, :columns] == 200).all()
        assert canvas.astype(int).sum() == 200 * 3 * rows * columns  # the rest is black
        assert (view.x0, view.y0) == (0, 0)
        assert min(view.x1, view.y1) >= 1


def test_a_canvas_depends_on_what_its_identity_says() -> None:
    assert KEEPS_SHAPE.identity() == {
        "height": 40,
        "width": 40,
        "interpolation": "bilinear",
        "shortest": 24,
        "multiple": 1,
    }


# --- regions


@pytest.mark.parametrize("transform", [KEEPS_SHAPE, SQUASHES])
@pytest.mark.parametrize(("width", "height"), [(64, 64), (64, 32), (32, 64), (128, 32)])
def test_boxes_land_where_the_things_are_in_the_image(
    make_inputs: Callable[..., Inputs], transform: WholeImage, width: int, height: int
) -> None:
    regions, _ = source(transform)
    found = regions.regions(["a"], make_inputs([with_a_white_box(width, height)], regions.transform))
    np.testing.assert_allclose(found.boxes[0, 0], [0.5, 0, 0.75, 0.5], atol=0.06)
    assert found.mask.tolist() == [[True, False]]
    assert found.class_ids.tolist() == [[1, 0]]
    assert found.scores.tolist() == [[0.5, 0]]


def test_images_that_keep_their_shape_are_shown_one_by_one_without_a_border(
    make_inputs: Callable[..., Inputs],
) -> None:
    regions, find = source(KEEPS_SHAPE)
    regions.regions(["a", "b"], make_inputs([with_a_white_box(64, 32), with_a_white_box(24, 30)], regions.transform))
    assert find.shown == [(1, 20, 40, 3), (1, 30, 24, 3)]


@pytest.mark.parametrize("count", [1, BATCH_SIZE, BATCH_SIZE + 1])
def test_squashed_images_are_shown_in_full_batches(make_inputs: Callable[..., Inputs], count: int) -> None:
    regions, find = source(SQUASHES)
    found = regions.regions([""] * count, make_inputs([with_a_white_box(64, 32)] * count, regions.transform))
    assert find.shown == [(BATCH_SIZE, 16, 24, 3)] * -(-count // BATCH_SIZE)
    assert found.mask[:, 0].all()
    assert found.boxes.shape == (count, 2, 4)


def test_the_settings_choose_among_the_boxes(make_inputs: Callable[..., Inputs]) -> None:
    regions, _ = source(SQUASHES, region_min_score=0.6)
    inputs = make_inputs([with_a_white_box(64, 32)], regions.transform)
    assert not regions.regions(["a"], inputs).mask.any()


def test_inputs_without_the_detector_s_pixels_are_refused(make_inputs: Callable[..., Inputs]) -> None:
    regions, _ = source(SQUASHES)
    with pytest.raises(ValueError, match=r"^The inputs of 1 images were not prepared for mine$"):
        regions.regions(["a"], make_inputs([with_a_white_box(64, 32)]))


def test_the_identity_names_all_that_the_boxes_depend_on() -> None:
    identity = source(SQUASHES)[0].identity()
    assert set(identity) == {
        *("detector", "weight_digest", "image", "normalisation", "count", "overlap", "min_score"),
    }
    assert identity != source(SQUASHES)[0].identity()  # other random weights


def test_a_detector_that_fails_is_refused_with_its_reason() -> None:
    def fail(_: torch.Tensor) -> list[Candidates]:
        raise RuntimeError("no\nsuch size")

    with pytest.raises(UsageError) as caught:
        DetectedRegions(Detector("mine", torch.nn.Linear(2, 2), fail, SQUASHES, {}), ExtractionSettings(), CPU)
    assert str(caught.value) == (
        "mine finds no boxes in images of 24 x 16 pixels: RuntimeError: no such size. Change "
        "features.region_image_size (null: what the detector was trained with), or features.regions"
    )


def test_a_full_memory_is_no_fault_of_the_settings() -> None:
    def fail(_: torch.Tensor) -> list[Candidates]:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        DetectedRegions(Detector("mine", torch.nn.Linear(2, 2), fail, SQUASHES, {}), ExtractionSettings(), CPU)


def test_candidates_are_arrays_of_the_stored_types() -> None:
    found = candidates(torch.zeros(2, 4).half(), torch.ones(2).double(), torch.ones(2, dtype=torch.int32))
    assert found.scores is not None
    assert found.class_ids is not None
    assert [array.dtype for array in (found.boxes, found.scores, found.class_ids)] == ["float32", "float32", "int64"]
