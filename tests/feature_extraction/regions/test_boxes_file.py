from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_extraction.backbones import build_backbone
from feature_extraction.errors import InputDataError
from feature_extraction.images.inputs import Inputs
from feature_extraction.regions.boxes_file import BoxesFile
from feature_extraction.regions.regions import Regions
from feature_extraction.settings import ExtractionSettings

SETTINGS = ExtractionSettings(region_count=3)
MakeInputs = Callable[..., Inputs]


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., BoxesFile]:
    def make(content: object, settings: ExtractionSettings = SETTINGS, name: str = "boxes.json") -> BoxesFile:
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return BoxesFile(path, settings)

    return make


def picture(*, width: int, height: int) -> np.ndarray[Any, Any]:
    return np.zeros((height, width, 3), np.uint8)


def one(file: BoxesFile, image_id: str, inputs: Inputs) -> Regions:
    return file.regions([image_id], inputs)


def test_pixels_are_measured_in_the_image_itself(make_file: Callable[..., BoxesFile], make_inputs: MakeInputs) -> None:
    file = make_file({"wide": [[8, 4, 32, 10]], "high": [[8, 4, 32, 10]]})
    inputs = make_inputs([picture(width=40, height=20), picture(width=20, height=40)])
    regions = file.regions(["wide", "high"], inputs)
    expected = np.array([[0.2, 0.2, 0.8, 0.5], [0.4, 0.1, 1, 0.25]], np.float32)  # cut at the edge of the second
    assert regions.boxes[:, 0].tolist() == expected.tolist()
    assert regions.mask.tolist() == [[True, False, False]] * 2
    assert file.fields == ()
    assert file.transform is None


def test_fractions_are_taken_as_they_are(make_file: Callable[..., BoxesFile], make_inputs: MakeInputs) -> None:
    file = make_file({"units": "fraction", "a": [[0.25, 0.5, 0.75, 1.0], [0, 0, 1.25, 1]]})
    regions = one(file, "a", make_inputs([picture(width=40, height=20)]))
    assert regions.boxes[0].tolist() == [[0.25, 0.5, 0.75, 1.0], [0, 0, 1, 1], [0, 0, 0, 0]]


def test_boxes_of_a_scaled_image_are_measured_in_the_original(
    make_file: Callable[..., BoxesFile], make_inputs: MakeInputs
) -> None:
    file = make_file([{"image_id": "a", "boxes": [[64, 48, 320, 480]], "width": 640, "height": 480}])
    for width, height in ((640, 480), (320, 240), (333, 250), (1280, 960)):
        regions = one(file, "a", make_inputs([picture(width=width, height=height)]))
        assert regions.boxes[0, 0].tolist() == np.array([0.1, 0.1, 0.5, 1.0], np.float32).tolist()


def test_boxes_of_an_image_of_another_shape_are_refused(
    make_file: Callable[..., BoxesFile], make_inputs: MakeInputs
) -> None:
    file = make_file([{"image_id": "a", "boxes": [[64, 48, 320, 480]], "width": 640, "height": 480}])
    with pytest.raises(InputDataError) as caught:
        one(file, "a", make_inputs([picture(width=48, height=64)]))
    assert str(caught.value) == (
        f"The boxes of image 'a' in {file._path} were measured in 640 x 480 pixels, but the image has 48 x 64, another "
        "shape. Make them from the same image; if they were made from photos that were not turned upright, set "
        "features.exif=false"
    )


def test_the_best_scored_are_chosen_by_the_settings(
    make_file: Callable[..., BoxesFile], make_inputs: MakeInputs
) -> None:
    boxes = [[0, 0, 10, 10], [0, 0, 10, 11], [20, 0, 40, 20], [0, 10, 20, 20], [1, 1, 2, 2]]
    record = {"boxes": boxes, "scores": [0.25, 0.5, 0.75, 0.125, 1.0], "class_ids": [1, 2, 3, 4, 5]}
    settings = replace(SETTINGS, region_min_score=0.25, region_overlap=0.5, region_count=4)
    file = make_file({"a": record, "none": []}, settings)
    inputs = make_inputs([picture(width=40, height=20)] * 2)
    regions = file.regions(["a", "none"], inputs)
    assert regions.class_ids.tolist() == [[5, 3, 2, 0], [0] * 4]
    assert regions.scores.tolist() == [[1.0, 0.75, 0.5, 0], [0] * 4]
    assert regions.mask.tolist() == [[True, True, True, False], [False] * 4]
    assert file.fields == ("class_ids", "scores")


@pytest.mark.parametrize("image_id", ["7", "000000000007", "COCO_train2014_000000000007", "COCO_test2015_000000000007"])
def test_a_number_stands_for_coco_s_file_names(
    make_file: Callable[..., BoxesFile], make_inputs: MakeInputs, image_id: str
) -> None:
    file = make_file([{"image_id": 7, "bbox": [4, 2, 20, 10], "category_id": 3, "score": 0.5}])
    regions = one(file, image_id, make_inputs([picture(width=40, height=20)]))
    assert regions.boxes[0, 0].tolist() == np.array([0.1, 0.1, 0.6, 0.6], np.float32).tolist()


@pytest.mark.parametrize("image_id", ["photo7", "photo_7", "COCO_7_8", "07b", "COCO__7"])
def test_a_number_stands_for_no_other_names(
    make_file: Callable[..., BoxesFile], make_inputs: MakeInputs, image_id: str
) -> None:
    file = make_file([{"image_id": 7, "bbox": [4, 2, 20, 10], "category_id": 3, "score": 0.5}])
    with pytest.raises(InputDataError, match="lists no boxes of 1 of 1 images"):
        one(file, image_id, make_inputs([picture(width=40, height=20)]))


def test_a_text_stands_for_itself_only(make_file: Callable[..., BoxesFile]) -> None:
    file = make_file({"7": [[1, 2, 3, 4]]})
    file.refuse_missing(["7"])
    with pytest.raises(InputDataError):
        file.refuse_missing(["007"])


def test_images_that_are_not_listed_are_named(make_file: Callable[..., BoxesFile], make_inputs: MakeInputs) -> None:
    file = make_file({"a": [[1, 2, 3, 4]], "b": []})
    ids = ["a", *(f"x{number}" for number in range(7))]
    with pytest.raises(InputDataError) as caught:
        file.regions(ids, make_inputs([picture(width=4, height=4)] * 8))
    assert str(caught.value) == (
        f"{file._path} lists no boxes of 7 of 8 images: 'x0', 'x1', 'x2', 'x3', 'x4', .... It lists 2 images, such as "
        "'a'. An id is the name of the image file without its suffix. Add the images to the file, with an empty list "
        "where there is nothing"
    )


def test_a_missing_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "boxes_train.json").write_text("{}")
    path = tmp_path / "boxes_trian.json"
    with pytest.raises(InputDataError) as caught:
        BoxesFile(path, SETTINGS)
    assert str(caught.value) == (
        f"features.regions is {path}, but there is no such file. Did you mean {tmp_path / 'boxes_train.json'}?"
    )
    with pytest.raises(InputDataError, match=r"no such file\. Check the path$"):
        BoxesFile(tmp_path / "other" / "x.json", SETTINGS)


def test_files_of_one_detector_share_an_identity_and_others_have_the_digest_of_their_bytes(
    make_file: Callable[..., BoxesFile], tmp_path: Path
) -> None:
    choice = {"count": 3, "overlap": 0.7, "min_score": 0.0}
    train = make_file({"detector": "mine", "a": [[1, 2, 3, 4]]}, name="train.json")
    test = make_file({"detector": "mine", "b": [[1, 2, 3, 5]]}, name="test.json")
    assert train.identity() == test.identity() == {"boxes_of": "mine", **choice}
    nameless = make_file({"a": [[1, 2, 3, 4]]}, name="plain.json")
    digest = hashlib.sha256((tmp_path / "plain.json").read_bytes()).hexdigest()
    assert nameless.identity() == {"boxes_sha256": digest, **choice}


def test_a_backbone_gives_the_features_inside_the_boxes_of_a_file(
    make_file: Callable[..., BoxesFile], tiny_settings: ExtractionSettings, pictures: list[np.ndarray[Any, Any]]
) -> None:
    whole = {"boxes": [[0, 0, 1, 1], [0, 0, 0.5, 0.5]], "scores": [0.5, 0.25]}
    content = {"units": "fraction", "detector": "mine", "images": {"0": whole, "1": [], "2": whole}}
    make_file(content, name="backbone.json")
    path = make_file(content)._path
    settings = replace(tiny_settings, grid=None, regions=str(path), region_count=3, image_size=64)
    backbone = build_backbone(settings)
    found = backbone.encode(pictures[:3], ["0", "1", "2"])
    assert found["features"].shape == (3, 3, backbone.feature_width)
    assert found["boxes"].tolist() == [[*whole["boxes"], [0] * 4], [[0] * 4] * 3, [*whole["boxes"], [0] * 4]]
    assert found["mask"].tolist() == [[True, True, False], [False] * 3, [True, True, False]]
    assert found["scores"].tolist() == [[0.5, 0.25, 0], [0] * 3, [0.5, 0.25, 0]]
    assert set(found) == {"features", "boxes", "mask", "scores", "image_size"}
    assert (found["features"][~found["mask"]] == 0).all()
    assert (found["features"][found["mask"]] != 0).any()
    alone = backbone.encode([pictures[2]], ["2"])
    assert all(np.array_equal(alone[name][0], found[name][2]) for name in found)
    # The first region shows the whole image: about the mean of all cells.
    cells = build_backbone(replace(settings, regions=None)).encode(pictures[:1])["features"][0]
    assert np.corrcoef(found["features"][0, 0], cells.mean(axis=0))[0, 1] > 0.9
    assert backbone.identity()["regions"]["boxes_of"] == "mine"
