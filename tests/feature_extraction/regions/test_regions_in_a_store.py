"""From image files by way of a detector, or a file of boxes, to a store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feature_extraction import FeatureStore, extract_features
from feature_extraction.errors import InputDataError, Interrupted
from feature_extraction.settings import ExtractionSettings

SIZES = ((20, 24), (24, 20), (16, 16), (30, 12), (12, 30), (22, 22), (18, 26))  # height and width in pixels
MOST = 5  # regions in an image


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photo_{number}.png")
    return folder


@pytest.fixture(scope="module")
def boxes_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photo n has n boxes: one of its left edge, ever wider, and worse scored the wider it is."""
    images = [
        {
            "image_id": f"photo_{number}",
            "boxes": [[0, 0, (column + 1) * 2, height] for column in range(number)],
            "scores": [1 / (column + 1) for column in range(number)],
            "class_ids": [10 + column for column in range(number)],
        }
        for number, (height, _) in enumerate(SIZES)
    ]
    path = tmp_path_factory.mktemp("boxes") / "boxes.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in images))
    return path


def quiet(line: str) -> None:
    """Nobody reads it."""


def extracted(photos: Path, output: Path, settings: ExtractionSettings) -> FeatureStore:
    extract_features(photos, output, settings, say=quiet)
    store = FeatureStore.open(output)
    store.verify()
    return store


def test_a_file_of_boxes_becomes_masked_regions(
    photos: Path, boxes_file: Path, tmp_path: Path, tiny_settings: ExtractionSettings
) -> None:
    settings = replace(tiny_settings, regions=str(boxes_file), region_count=MOST, region_overlap=1.0, grid=None)
    store = extracted(photos, tmp_path / "store", settings)
    assert store.visual_tokens == MOST
    for number, (height, width) in enumerate(SIZES):
        found = store.record(f"photo_{number}")
        regions = min(number, MOST)
        assert found["mask"].tolist() == [True] * regions + [False] * (MOST - regions)
        assert found["class_ids"][:regions].tolist() == [10 + column for column in range(regions)]
        wanted = [[0, 0, min((column + 1) * 2 / width, 1), 1] for column in range(regions)]
        assert found["boxes"][:regions].tolist() == [pytest.approx(box) for box in wanted]
        assert found["image_size"].tolist() == [height, width]
        assert np.isfinite(found["features"]).all()
        assert store.read(f"photo_{number}").mask.sum() == regions


@pytest.mark.parametrize("detector", ["detr", "rt_detr_v2"])
def test_a_detector_s_regions_do_not_depend_on_stops_workers_and_neighbours(
    photos: Path,
    tmp_path: Path,
    tiny_settings: ExtractionSettings,
    tiny_detectors: dict[str, Path],
    contents: Callable[[Path], dict[str, bytes]],
    detector: str,
) -> None:
    settings = replace(tiny_settings, regions=f"hf/{tiny_detectors[detector]}", region_count=MOST, grid=None)
    store = extracted(photos, tmp_path / "whole", settings)
    assert {"mask", "class_ids", "scores"} <= store.record("photo_0").keys()
    assert any(store.read(image_id).mask.any() for image_id in store)

    asked = iter([False, False, False, True])
    with pytest.raises(Interrupted):
        extract_features(photos, tmp_path / "again", settings, stop=lambda: next(asked), say=quiet)
    extract_features(photos, tmp_path / "again", replace(settings, workers=2), say=quiet)
    assert contents(tmp_path / "again").keys() == contents(tmp_path / "whole").keys()
    again = FeatureStore.open(tmp_path / "again")
    (tmp_path / "list.txt").write_text(f"{photos / 'photo_6.png'}\n{photos / 'photo_1.png'}\n")
    few = extracted(tmp_path / "list.txt", tmp_path / "few", settings)
    for other in (again, few):
        for image_id in other:
            for name, array in store.record(image_id).items():
                assert np.array_equal(array, other.record(image_id)[name]), (image_id, name)


def test_an_image_without_boxes_in_the_file_is_told_before_anything_is_written(
    photos: Path, boxes_file: Path, tmp_path: Path, tiny_settings: ExtractionSettings
) -> None:
    some = tmp_path / "some.jsonl"
    some.write_text("".join(boxes_file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputDataError, match=r"some\.jsonl lists no boxes of 1 of 7 images: 'photo_6'"):
        extract_features(photos, tmp_path / "store", replace(tiny_settings, regions=str(some)), say=quiet)
    assert not (tmp_path / "store").exists()
