from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from feature_extraction.errors import UsageError
from feature_extraction.settings import ExtractionSettings
from feature_extraction.settings_check import check_settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "features.image_size is 0; it must be at least 1"),
        ({"grid": 0, "batch_size": -1}, "features.grid is 0; it must be at least 1; features.batch_size is -1"),
        ({"shard_size": 0}, "features.shard_size is 0; it must be at least 1"),
        ({"workers": -1}, "features.workers is -1; it must be at least 0"),
        ({"max_pixels": 0}, "features.max_pixels is 0; it must be at least 1"),
        ({"region_count": 0}, "features.region_count is 0; it must be at least 1"),
        ({"region_image_size": 0}, "features.region_image_size is 0; it must be at least 1"),
        ({"region_overlap": 1.5}, "features.region_overlap is 1.5; it must be from 0 to 1"),
        ({"region_min_score": -0.1}, "features.region_min_score is -0.1; it must be from 0 to 1"),
        ({"region_min_score": float("nan")}, "features.region_min_score is nan; it must be from 0 to 1"),
        ({"resize": "stretch"}, "features.resize is 'stretch'; it is squash, crop or pad"),
        ({"pooling": "median"}, "features.pooling is 'median'; it is avg or max"),
        ({"precision": "fp64"}, "features.precision is 'fp64'; it is fp32, bf16 or fp16"),
        ({"class_token": True, "regions": "boxes.json"}, "features.regions is 'boxes.json', but with regions every"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as failure:
        check_settings(ExtractionSettings(**changes))
    assert message in str(failure.value)


def test_the_settings_as_they_are_can_be_met() -> None:
    check_settings(ExtractionSettings())


def test_checking_loads_no_torch() -> None:
    code = "import sys; import feature_extraction.settings_check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
