from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feature_extraction.images.decoding import Decoding, ImageFile, ImageRejected
from feature_extraction.images.inputs import Inputs, Preparation
from feature_extraction.images.preprocessing import Preprocessing

HALF = (0.5, 0.5, 0.5)
BACKBONE = Preprocessing(8, "bicubic", HALF, HALF, resize="crop")
DETECTOR = Preprocessing(12, "bilinear", HALF, HALF, resize="pad")
PICTURE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def test_the_inputs_of_an_image_are_what_the_transforms_make_and_its_size() -> None:
    inputs = Preparation(BACKBONE, DETECTOR).of_image(PICTURE)
    pixels, view = BACKBONE.apply(PICTURE)
    region_pixels, region_view = DETECTOR.apply(PICTURE)
    assert inputs.region_pixels is not None
    assert inputs.region_views is not None
    assert np.array_equal(inputs.pixels, pixels[None])
    assert np.array_equal(inputs.region_pixels, region_pixels[None])
    assert inputs.views.tolist() == [pytest.approx(view)]
    assert inputs.region_views.tolist() == [pytest.approx(region_view)]
    assert inputs.sizes.tolist() == [[4, 6]]


def test_without_a_detector_there_are_no_inputs_of_it() -> None:
    inputs = Preparation(BACKBONE).of_image(PICTURE)
    assert (inputs.region_pixels, inputs.region_views) == (None, None)


def test_a_file_is_decoded_by_the_rules(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(tmp_path / "a.png", exif=exif)
    image = ImageFile("a", tmp_path / "a.png")
    assert Preparation(BACKBONE).of_file(image).sizes.tolist() == [[6, 4]]
    assert Preparation(BACKBONE, rules=Decoding(exif=False)).of_file(image.path).sizes.tolist() == [[4, 6]]
    with pytest.raises(ImageRejected, match=r"features\.max_pixels is 23"):
        Preparation(BACKBONE, rules=Decoding(max_pixels=23)).of_file(image)


@pytest.mark.parametrize("detector", [None, DETECTOR])
def test_joined_inputs_come_apart_again(detector: Preprocessing | None) -> None:
    preparation = Preparation(BACKBONE, detector)
    each = [preparation.of_image(np.roll(PICTURE, turn, axis=0)) for turn in range(3)]
    joined = Inputs.joined(each)
    assert joined.pixels.shape == (3, 8, 8, 3)
    for row, one in enumerate(each):
        for name, array in joined.part(slice(row, row + 1)).arrays().items():
            expected = one.arrays()[name]
            assert (array is None) == (expected is None) == (detector is None and name.startswith("region"))
            assert array is None or np.array_equal(array, expected)


def test_a_preparation_can_be_sent_to_another_process() -> None:
    preparation = Preparation(BACKBONE, DETECTOR, Decoding(tiff=True))
    assert pickle.loads(pickle.dumps(preparation)) == preparation


def test_inputs_cannot_be_changed() -> None:
    inputs = Preparation(BACKBONE).of_image(PICTURE)
    with pytest.raises(AttributeError):
        inputs.pixels = PICTURE[None]  # type: ignore[misc]
    assert replace(inputs, views=inputs.views * 2).views.max() == 2 * inputs.views.max()
