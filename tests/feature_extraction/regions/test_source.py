from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from feature_extraction.errors import UsageError
from feature_extraction.regions.boxes_file import BoxesFile
from feature_extraction.regions.detectors import DetectedRegions
from feature_extraction.regions.regions import RegionSource
from feature_extraction.regions.source import build_regions
from feature_extraction.settings import ExtractionSettings
from feature_extraction.settings_check import check_settings

CPU = torch.device("cpu")


def build(**settings: object) -> RegionSource | None:
    return build_regions(ExtractionSettings(**settings), CPU)  # type: ignore[arg-type]


def test_settings_without_regions_have_no_source() -> None:
    assert build() is None
    assert build(region_count=0) is None


def test_a_file_of_boxes_is_a_source(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"a": [[1, 2, 3, 4]]}))
    source = build(regions=str(path))
    assert isinstance(source, BoxesFile)
    assert isinstance(source, RegionSource)


def test_a_detector_is_a_source(tiny_detectors: dict[str, Path]) -> None:
    source = build(regions=f"hf/{tiny_detectors['yolos']}")
    assert isinstance(source, DetectedRegions)
    assert isinstance(source, RegionSource)


@pytest.mark.parametrize(
    ("regions", "hint"),
    [
        ("torchvison/ssd300_vgg16", ". Did you mean torchvision/ssd300_vgg16?"),
        ("nonsense", ""),
        ("hf/", ""),
        ("boxes.csv", ""),
    ],
)
def test_another_source_is_refused_with_a_hint(regions: str, hint: str) -> None:
    expected = (
        f"features.regions is {regions!r}; it is hf/<detector id or folder>, torchvision/<detector>, or a .json or "
        f".jsonl file of boxes, as in hf/PekingU/rtdetr_r50vd{hint}"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(expected)}$"):
        build(regions=regions)


def test_settings_of_a_detector_are_refused_for_a_file() -> None:
    with pytest.raises(UsageError) as caught:
        check_settings(ExtractionSettings(regions="b.json", region_weights="w.safetensors", region_image_size=64))
    assert str(caught.value) == (
        "features.region_weights is 'w.safetensors', but features.regions is the file b.json, which needs none: set it "
        "to null; features.region_image_size is 64, but features.regions is the file b.json, which needs none: set it "
        "to null"
    )
