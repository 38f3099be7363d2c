from __future__ import annotations

import pytest

from feature_extraction.errors import UsageError
from feature_extraction.settings import ExtractionSettings
from feature_extraction.towers.build import build_tower


@pytest.mark.parametrize("name", ["resnet", "timm/", "hf/", "timm", "efficientnet_lite0/x"])
def test_a_name_of_no_known_kind_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"features\.backbone is '{name}'; it is efficientnet_lite0, .*<function> of"):
        build_tower(ExtractionSettings(name))


def test_no_image_can_be_encoded_with_features_of_another_tool() -> None:
    with pytest.raises(UsageError, match=r"'imported/obj36': .* came from another tool, .* Import the features of the"):
        build_tower(ExtractionSettings("imported/obj36"))
