"""Every YAML file of configs/features names a network that is there, and says what that gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
import yaml

from feature_extraction.settings import ExtractionSettings
from feature_extraction.settings_check import check_settings
from feature_extraction.store.layout import MORE_FIELDS
from feature_extraction.towers.build import BUNDLED
from feature_extraction.towers.cells import cell_boxes
from feature_extraction.towers.timm_tower import _network, _refuse_other_activation, _tower

FOLDER = Path(__file__).parents[3] / "configs" / "features"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SAID = re.compile(r"^# (?P<tokens>\d+) visual tokens of width (?P<width>\d+); (?P<bytes>[\d,]+) bytes an image", re.M)


class Recipe(NamedTuple):
    """A YAML file."""

    settings: ExtractionSettings
    in_timm: str
    tokens: int
    width: int
    bytes: int


def recipe(name: str) -> Recipe:
    text = (FOLDER / f"{name}.yaml").read_text()
    settings = ExtractionSettings(**yaml.safe_load(text)["features"])
    said = SAID.search(text)
    assert said is not None, f"{name}.yaml does not say what it gives"
    in_timm = BUNDLED.get(settings.backbone, settings.backbone.removeprefix("timm/"))
    return Recipe(settings, in_timm, int(said["tokens"]), int(said["width"]), int(said["bytes"].replace(",", "")))


@pytest.mark.parametrize("name", RECIPES)
def test_the_network_is_known_to_timm_with_its_weights_and_computes_as_they_were_trained(name: str) -> None:
    settings, in_timm, *_ = recipe(name)
    check_settings(settings)
    _refuse_other_activation(in_timm)
    assert settings.backbone in BUNDLED or in_timm in timm.list_models(pretrained=True)


@pytest.mark.parametrize("name", RECIPES)
def test_it_gives_as_many_visual_tokens_of_the_width_and_size_as_it_says(name: str) -> None:
    settings, in_timm, tokens, width, size = recipe(name)
    with torch.device("meta"), torch.inference_mode():  # shapes without numbers: no memory, no time
        network = _network(in_timm, settings, pretrained=False).eval()
        maps = _tower(network, settings).feature_maps(torch.zeros(1, 3, settings.image_size, settings.image_size))
    _, found_width, rows, columns = maps.cells.shape
    found = len(cell_boxes(rows=rows, columns=columns, grid=settings.grid)) + settings.class_token
    found = found if settings.regions is None else settings.region_count
    assert (found, found_width) == (tokens, width)

    more = ["image_size"] + ([] if settings.regions is None else ["mask", "class_ids", "scores"])
    per_image = found * (2 * found_width + 4 * 4)
    for kind, shape in (MORE_FIELDS[field] for field in more):
        per_image += np.dtype(kind).itemsize * (found if shape == ("V",) else 2)
    assert per_image == size


def test_the_families_that_people_ask_for_are_there() -> None:
    assert {"clip_rn50", "clip_rn101", "clip_rn50x4", "clip_vit_b32", "clip_vit_b16", "clip_vit_l14"} <= set(RECIPES)
    assert {"siglip_b16", "siglip2_b16", "dinov2_b14", "dinov3_b16", "swin_base"} <= set(RECIPES)
    assert {"convnext_tiny", "convnext_base", "efficientnet_lite0", "efficientnet_lite2"} <= set(RECIPES)
