from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from feature_extraction.backbones import Backbone, build_backbone
from feature_extraction.errors import InputDataError, UsageError
from feature_extraction.images.decoding import ImageRejected
from feature_extraction.images.inputs import Inputs
from feature_extraction.regions.regions import Regions
from feature_extraction.settings import ExtractionSettings
from feature_extraction.towers.build import build_tower
from feature_extraction.towers.cells import cell_boxes

RANDOM = np.random.default_rng(0)
PICTURES = [RANDOM.integers(0, 256, (20 + row, 30, 3), dtype=np.uint8) for row in range(5)]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vit_settings(tmp_path_factory: pytest.TempPathFactory) -> ExtractionSettings:
    """A vision transformer of two by two patches of width 64."""
    torch.manual_seed(1)
    weights = tmp_path_factory.mktemp("vit") / "model.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), weights)
    return ExtractionSettings("timm/test_vit", weights=str(weights), image_size=32, batch_size=3, workers=0)


class FixedRegions:
    """The left half and a corner of every image, of two classes; a third box is missing."""

    transform = None
    fields = ("class_ids", "scores")

    def regions(self, image_ids: Sequence[str], inputs: Inputs) -> Regions:
        count = len(image_ids)
        boxes = np.array([[0, 0, 0.5, 1], [0.75, 0.75, 1, 1], [0, 0, 0, 0]], np.float32)
        return Regions(
            boxes=np.repeat(boxes[None], count, axis=0),
            mask=np.repeat(np.array([[True, True, False]]), count, axis=0),
            scores=np.repeat(np.array([[0.9, 0.5, 0]], np.float32), count, axis=0),
            class_ids=np.repeat(np.array([[7, 3, 0]]), count, axis=0),
        )

    def refuse_missing(self, image_ids: Sequence[str]) -> None:
        if "lost" in image_ids:
            raise InputDataError("the file lists no boxes of 'lost'")

    def identity(self) -> dict[str, Any]:
        return {"from": "a test"}


def with_regions(settings: ExtractionSettings) -> Backbone:
    settings = replace(settings, region_count=3)
    return Backbone(tower=build_tower(settings), settings=settings, device=CPU, regions=FixedRegions())


def test_images_without_regions_are_found_before_a_long_run(tiny_settings: ExtractionSettings) -> None:
    with_regions(tiny_settings).refuse_missing_regions(["a", "b"])
    with pytest.raises(InputDataError, match=r"lists no boxes of 'lost'"):
        with_regions(tiny_settings).refuse_missing_regions(["a", "lost"])
    build_backbone(tiny_settings).refuse_missing_regions(["lost"])


# --- what is kept of a feature map


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_grid_pools_the_feature_map(tiny_settings: ExtractionSettings, pooling: str) -> None:
    whole = build_backbone(replace(tiny_settings, grid=None)).encode(PICTURES)["features"]
    pooled = build_backbone(replace(tiny_settings, grid=3, pooling=pooling)).encode(PICTURES)["features"]
    pool = {"avg": functional.adaptive_avg_pool2d, "max": functional.adaptive_max_pool2d}[pooling]
    feature_map = torch.from_numpy(whole.astype(np.float32)).transpose(1, 2).unflatten(2, (4, 4))
    expected = pool(feature_map, 3).flatten(2).transpose(1, 2).numpy()
    assert np.allclose(pooled, expected, atol=2e-3, rtol=2e-3)


def test_every_field_has_a_row_for_each_image(tiny_settings: ExtractionSettings) -> None:
    found = build_backbone(tiny_settings).encode(PICTURES)
    assert {name: (str(array.dtype), array.shape) for name, array in found.items()} == {
        "features": ("float16", (5, 4, 32)),
        "boxes": ("float32", (5, 4, 4)),
        "image_size": ("int64", (5, 2)),
    }
    assert np.array_equal(found["boxes"], np.repeat(cell_boxes(rows=2, columns=2)[None], 5, axis=0))
    assert found["image_size"].tolist() == [[20 + row, 30] for row in range(5)]


@pytest.mark.parametrize("grid", [None, 1])
def test_the_class_token_comes_first_and_stands_for_the_whole_image(
    vit_settings: ExtractionSettings, grid: int | None
) -> None:
    plain = build_backbone(replace(vit_settings, grid=grid))
    backbone = build_backbone(replace(vit_settings, grid=grid, class_token=True, resize="pad"))
    assert backbone.visual_tokens == plain.visual_tokens + 1
    wide = np.full((8, 16, 3), 90, np.uint8)
    found = backbone.encode([wide])
    assert found["boxes"][0, 0].tolist() == [0, 0, 1, 1]
    assert found["mask"][0, 0]
    squashed = build_backbone(replace(vit_settings, grid=grid, class_token=True)).encode(PICTURES)
    assert np.array_equal(squashed["features"][:, 1:], plain.encode(PICTURES)["features"])
    assert not np.array_equal(squashed["features"][:, 0], squashed["features"][:, 1])


def test_padding_is_masked_and_crops_have_their_place_in_the_image(vit_settings: ExtractionSettings) -> None:
    wide = np.full((8, 32, 3), 90, np.uint8)
    found = build_backbone(replace(vit_settings, resize="pad")).encode([wide])
    # The lower half of the square is border, as is half of the upper cells; each of these is half as high.
    assert found["mask"].tolist() == [[True, True, False, False]]
    assert found["boxes"][0, :2].tolist() == [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]
    found = build_backbone(replace(vit_settings, resize="crop")).encode([wide])
    assert found["boxes"][0, 0].tolist() == [0.375, 0, 0.5, 0.5]
    assert "mask" not in found


# --- regions


def test_regions_take_the_place_of_the_grid(tiny_settings: ExtractionSettings) -> None:
    backbone = with_regions(tiny_settings)
    found = backbone.encode(PICTURES[:3])
    shapes = {name: array.shape for name, array in found.items()}
    assert shapes == {
        "features": (3, 3, 32),
        "boxes": (3, 3, 4),
        "image_size": (3, 2),
        "mask": (3, 3),
        "class_ids": (3, 3),
        "scores": (3, 3),
    }
    assert found["mask"][0].tolist() == [True, True, False]
    assert not found["features"][:, 2].any()  # beyond the last region
    cells = build_backbone(replace(tiny_settings, grid=None)).encode(PICTURES[:3])["features"]
    left = cells.reshape(3, 4, 4, 32)[:, :, :2].astype(np.float32)
    # RoIAlign interpolates, so its mean of the left half reaches a little into the right.
    assert np.abs(found["features"][:, 0] - left.mean(axis=(1, 2))).max() < np.abs(left).max() / 4
    assert backbone.identity()["regions"] == {"from": "a test"}
    assert (backbone.identity()["grid"], backbone.identity()["pooling"]) == (None, None)


def test_a_region_that_the_crop_left_out_is_masked(tiny_settings: ExtractionSettings) -> None:
    wide = np.full((8, 64, 3), 90, np.uint8)
    found = with_regions(replace(tiny_settings, resize="crop")).encode([wide])
    assert found["mask"].tolist() == [[True, False, False]]
    assert not found["features"][0, 1].any()


def test_for_a_trial_the_same_tower_gives_its_cells_in_small_batches(tiny_settings: ExtractionSettings) -> None:
    backbone = with_regions(tiny_settings)
    before = backbone.encode(PICTURES)
    cells, grid = backbone.for_trial(1), build_backbone(replace(tiny_settings, batch_size=1))
    assert cells.settings.batch_size == 1
    assert cells.more_fields == grid.more_fields
    assert np.array_equal(cells.encode(PICTURES)["features"], grid.encode(PICTURES)["features"])
    after = backbone.encode(PICTURES)  # unchanged
    assert backbone.visual_tokens == 3
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_boxes_come_from_what_the_settings_name(tmp_path: Path, tiny_settings: ExtractionSettings) -> None:
    (tmp_path / "boxes.json").write_text('{"a": [[0, 0, 15, 20]]}')
    Image.fromarray(PICTURES[0]).save(tmp_path / "a.png")
    settings = replace(tiny_settings, regions=str(tmp_path / "boxes.json"), region_count=2)
    found = build_backbone(settings).encode_file(tmp_path / "a.png")
    assert found.boxes.tolist() == [[0, 0, 0.5, 1], [0, 0, 0, 0]]
    assert found.mask.tolist() == [True, False]


# --- what an image's features depend on


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["convolutions", "attention"])
def test_features_do_not_depend_on_the_images_beside(
    tiny_settings: ExtractionSettings, vit_settings: ExtractionSettings, kind: str, precision: str
) -> None:
    settings = {"convolutions": tiny_settings, "attention": vit_settings}[kind]
    backbone = build_backbone(replace(settings, batch_size=3, precision=precision))
    together = backbone.encode(PICTURES)["features"]
    assert np.array_equal(together, np.concatenate([backbone.encode([picture])["features"] for picture in PICTURES]))
    assert np.array_equal(together[::-1], backbone.encode(PICTURES[::-1])["features"])
    assert together.dtype == np.float16


@pytest.mark.parametrize(("precision", "error"), [("bf16", 2**-5), ("fp16", 2**-8)])
def test_lower_precision_rounds_the_same_features(
    vit_settings: ExtractionSettings, precision: str, error: float
) -> None:
    full = build_backbone(vit_settings).encode(PICTURES)["features"].astype(np.float32)
    low = build_backbone(replace(vit_settings, precision=precision)).encode(PICTURES)["features"]
    assert 0 < np.abs(low - full).max() < error * np.abs(full).max()


def test_an_image_file_is_encoded_as_the_picture_in_it(tmp_path: Path, tiny_settings: ExtractionSettings) -> None:
    Image.fromarray(PICTURES[2]).save(tmp_path / "a.png")
    backbone = build_backbone(tiny_settings)
    found = backbone.encode_file(tmp_path / "a.png")
    assert np.array_equal(found.features, backbone.encode(PICTURES)["features"][2])
    assert np.array_equal(found.boxes, cell_boxes(rows=2, columns=2))
    assert found.mask.all()
    with pytest.raises(ImageRejected, match="megapixels"):
        build_backbone(replace(tiny_settings, max_pixels=100)).encode_file(tmp_path / "a.png")


def test_the_backbone_is_frozen(tiny_settings: ExtractionSettings) -> None:
    before = build_backbone(tiny_settings)
    before.encode(PICTURES)
    assert before.weight_digest == build_backbone(tiny_settings).weight_digest


# --- identity


def test_the_identity_says_everything_the_features_depend_on(tiny_settings: ExtractionSettings) -> None:
    backbone = build_backbone(tiny_settings)
    assert backbone.identity() == {
        "backbone": "timm/test_efficientnet",
        "weight_digest": backbone.weight_digest,
        "image_size": 32,
        "resize": "squash",
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "exif": True,
        "layer": 2,
        "grid": 2,
        "pooling": "avg",
        "class_token": False,
        "precision": "fp32",
        "compile": False,
        "visual_tokens": 4,
        "feature_width": 32,
        "dtype": "float16",
        "batch_size": 2,
        "layout_version": 2,
    }
    assert build_backbone(replace(tiny_settings, grid=None, pooling="max")).identity()["pooling"] is None


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"compile": True},
        {"resize": "pad"},
        {"exif": False},
        {"batch_size": 3},
        {"layer": 1},
        {"image_size": 64},
    ],
)
def test_whatever_changes_features_changes_the_identity(
    tiny_settings: ExtractionSettings, changes: dict[str, Any]
) -> None:
    changed = build_backbone(replace(tiny_settings, **changes)).identity()
    assert changed != build_backbone(tiny_settings).identity()
    assert all(changed[name] == value for name, value in changes.items())


def test_speed_and_limits_are_no_part_of_the_identity(tiny_settings: ExtractionSettings) -> None:
    others = replace(tiny_settings, workers=3, shard_size=7, max_pixels=10_000, tiff=True)
    assert build_backbone(others).identity() == build_backbone(tiny_settings).identity()


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"region_overlap": 2.0}, "features.region_overlap is 2.0; it must be from 0 to 1"),
        ({"grid": 5}, "features.grid is 5, but the feature map of timm/test_efficientnet at 32 pixels is 4 x 4"),
        ({"layer": 5}, "gives no feature map with features.image_size=32, features.layer=5 and features.precision=fp"),
        ({"class_token": True}, "features.class_token is true, but timm/test_efficientnet has no class token. Set it"),
        ({"regions": "nothing/here"}, "features.regions is 'nothing/here'"),
    ],
)
def test_impossible_settings_are_refused(
    tiny_settings: ExtractionSettings, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as failure:
        build_backbone(replace(tiny_settings, **changes))
    assert message in str(failure.value)
