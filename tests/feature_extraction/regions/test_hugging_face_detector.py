from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForObjectDetection
from transformers.utils import logging

from feature_extraction.backbones import build_backbone
from feature_extraction.errors import IncompatibleError, InputDataError, UsageError
from feature_extraction.images.inputs import Inputs
from feature_extraction.regions.detectors import DetectedRegions, WholeImage
from feature_extraction.regions.hugging_face_detector import hugging_face_detector
from feature_extraction.regions.regions import Candidates, Choice, choose, padded
from feature_extraction.settings import ExtractionSettings

CPU = torch.device("cpu")
FAMILIES = ("detr", "conditional_detr", "rt_detr", "rt_detr_v2", "yolos")
MakeInputs = Callable[..., Inputs]
Pictures = list[np.ndarray[Any, Any]]


def build(folder: Path, **settings: Any) -> DetectedRegions:
    chosen = ExtractionSettings(regions=f"hf/{folder}", **settings)
    return DetectedRegions(hugging_face_detector(str(folder), chosen), chosen, CPU)


@pytest.fixture
def copied(tiny_detectors: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A tiny detector's folder with another preprocessing."""

    def copy(name: str, **preprocessing: object) -> Path:
        folder = Path(shutil.copytree(tiny_detectors[name], tmp_path / name))
        file = folder / "preprocessor_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **preprocessing}))
        return folder

    return copy


@pytest.mark.parametrize("name", FAMILIES)
def test_the_boxes_are_those_of_the_library_s_own_pipeline(
    tiny_detectors: dict[str, Path], make_inputs: MakeInputs, pictures: Pictures, name: str
) -> None:
    folder, count = tiny_detectors[name], 60
    regions = build(folder, region_count=count, region_overlap=1.0)
    found = regions.regions([""] * len(pictures), make_inputs(pictures, regions.transform))

    processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil")
    network = AutoModelForObjectDetection.from_pretrained(folder).eval()
    options = {"top_k": 12} if name == "conditional_detr" else {}
    for row, picture in enumerate(pictures):
        with torch.no_grad():
            output = network(**processor(images=picture, return_tensors="pt"))
        height, width = picture.shape[:2]
        (theirs,) = processor.post_process_object_detection(output, 0.0, [(height, width)], **options)
        boxes = (theirs["boxes"] / torch.tensor([width, height, width, height])).numpy()
        expected = padded(
            [choose(Candidates(boxes, theirs["scores"].numpy(), theirs["labels"].numpy()), Choice(count, 1.0, 0.0))],
            count,
        )
        assert 1 < expected.mask.sum() == found.mask[row].sum()
        np.testing.assert_allclose(found.scores[row], expected.scores[0], atol=1e-5)
        # Near-equal scores may change places: compared in the order of their boxes.
        ours, others = (np.lexsort(boxes.round(3).T) for boxes in (found.boxes[row], expected.boxes[0]))
        np.testing.assert_allclose(found.boxes[row][ours], expected.boxes[0][others], atol=1e-4)
        assert sorted(found.class_ids[row]) == sorted(expected.class_ids[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_regions_of_an_image_alone_are_bit_equal_to_those_among_others(
    tiny_detectors: dict[str, Path], make_inputs: MakeInputs, pictures: Pictures, name: str
) -> None:
    regions = build(tiny_detectors[name], region_count=6)
    together = regions.regions([""] * len(pictures), make_inputs(pictures, regions.transform))
    assert ((together.boxes >= 0) & (together.boxes <= 1)).all()
    assert together.mask[:, 0].all()
    assert (together.boxes[~together.mask] == 0).all()
    for row, picture in enumerate(pictures):
        alone = regions.regions([""], make_inputs([picture], regions.transform))
        for ours, theirs in zip(alone, together, strict=True):
            assert np.array_equal(ours[0], theirs[row])


def test_the_boxes_depend_on_the_picture(
    tiny_detectors: dict[str, Path], make_inputs: MakeInputs, pictures: Pictures
) -> None:
    for name in FAMILIES:
        regions = build(tiny_detectors[name], region_count=6)
        shown = [pictures[0], 255 - pictures[0]]
        found = regions.regions([""] * 2, make_inputs(shown, regions.transform))
        assert not np.array_equal(found.scores[0], found.scores[1]), name


# --- preprocessing


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("detr", None, WholeImage(80, 80, "bilinear", 48)),
        ("detr", 64, WholeImage(64, 64, "bilinear", 64)),
        ("yolos", None, WholeImage(80, 80, "bilinear", 48, 16)),
        ("rt_detr", None, WholeImage(64, 64, "bilinear")),
        ("rt_detr", 96, WholeImage(96, 96, "bilinear")),
    ],
)
def test_the_image_size_is_the_detector_s_own_or_the_given(
    tiny_detectors: dict[str, Path], name: str, given: int | None, expected: WholeImage
) -> None:
    regions = build(tiny_detectors[name], region_image_size=given)
    assert regions.transform == expected


def test_a_largest_height_and_width_bound_both_sides(copied: Callable[..., Path]) -> None:
    folder = copied("detr", size={"max_height": 70, "max_width": 60}, resample=3)
    assert build(folder).transform == WholeImage(60, 60, "bicubic", 60)


@pytest.mark.parametrize("changes", [{"do_resize": False}, {"size": {"longest_edge": 64}}])
def test_a_detector_without_an_image_size_needs_one(copied: Callable[..., Path], changes: dict[str, Any]) -> None:
    folder = copied("detr", **changes)
    expected = (
        "The preprocessing of hf/detr names no image size. Set features.region_image_size to the longer side in pixels "
        "that the detector was trained with"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(expected)}$"):
        build(folder)
    assert build(folder, region_image_size=48).transform == WholeImage(48, 48, "bilinear", 48)


@pytest.mark.parametrize(
    ("changes", "normalisation"),
    [
        ({}, {"scale": 1 / 255, "mean": [0, 0, 0], "std": [1, 1, 1]}),
        ({"do_rescale": False}, {"scale": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1]}),
        (
            {"do_normalize": True, "image_mean": [0.5, 0.25, 0], "image_std": [0.5, 1, 2]},
            {"scale": 1 / 255, "mean": [0.5, 0.25, 0], "std": [0.5, 1, 2]},
        ),
    ],
)
def test_pixels_are_normalised_as_the_preprocessing_says(
    copied: Callable[..., Path], make_inputs: MakeInputs, changes: dict[str, Any], normalisation: dict[str, Any]
) -> None:
    folder = copied("rt_detr", **changes)
    regions = build(folder)
    assert regions.identity()["normalisation"] == normalisation
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    shown: list[torch.Tensor] = []
    regions._detector.network.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    regions.regions([""], make_inputs([picture], regions.transform))
    processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil")
    expected = processor(images=picture, return_tensors="pt")["pixel_values"][0].float()
    torch.testing.assert_close(shown[0][0], expected, rtol=1e-6, atol=2e-6)


# --- weights


def test_given_weights_take_the_place_of_the_folder_s(tiny_detectors: dict[str, Path], tmp_path: Path) -> None:
    folder = tiny_detectors["detr"]
    weights = {name: tensor * 2 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, tmp_path / "other.safetensors")
    digest = build(folder).identity()["weight_digest"]
    other = build(folder, region_weights=str(tmp_path / "other.safetensors")).identity()["weight_digest"]
    assert other != digest
    assert build(folder, region_weights=str(folder)).identity()["weight_digest"] == digest


def test_a_folder_s_identity_is_its_name_and_the_digest_of_its_weights(
    tiny_detectors: dict[str, Path], tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(tiny_detectors["yolos"], tmp_path / "yolos"))
    identity = build(moved).identity()
    assert identity == build(tiny_detectors["yolos"]).identity()
    assert identity["detector"] == "hf/yolos"
    assert json.loads(json.dumps(identity)) == identity


@pytest.mark.parametrize("given", [True, False])
def test_weights_that_lack_some_are_refused(
    tiny_detectors: dict[str, Path], copied: Callable[..., Path], tmp_path: Path, given: bool
) -> None:
    weights = load_file(tiny_detectors["detr"] / "model.safetensors")
    name = "class_labels_classifier.bias"
    lacking = {key: tensor for key, tensor in weights.items() if key != name}
    if given:
        file = tmp_path / "lacking.safetensors"
        save_file(lacking, file)
        folder, settings, source = tiny_detectors["detr"], {"region_weights": str(file)}, file
    else:
        folder = copied("detr")
        save_file(lacking, folder / "model.safetensors", {"format": "pt"})
        settings, source = {}, folder
    expected = f"The weights in {source} do not fit hf/detr: missing ['{name}'], of other shapes []. Give"
    with pytest.raises(IncompatibleError, match=f"^{re.escape(expected)}"):
        build(folder, **settings)


def test_a_detector_that_cannot_be_had_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputDataError) as caught:
        build(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"hf/{tmp_path} could not be had: ")
    assert text.endswith(
        ". Give features.regions the id of an object detector on the Hugging Face hub, or a folder with config.json, "
        "model.safetensors and preprocessor_config.json"
    )


def test_a_network_that_detects_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(InputDataError, match="could not be had: ValueError: Unrecognized configuration class"):
        build(tmp_path)


def test_an_image_size_that_the_network_refuses_is_told(tiny_detectors: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"^hf/yolos finds no boxes in images of 8 x 8 pixels: "):
        build(tiny_detectors["yolos"], region_image_size=8)


def test_the_library_s_own_verbosity_comes_back(tiny_detectors: dict[str, Path]) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    build(tiny_detectors["yolos"])
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_backbone_gives_the_features_inside_the_boxes_of_a_detector(
    tiny_detectors: dict[str, Path], tiny_settings: ExtractionSettings, make_inputs: MakeInputs, pictures: Pictures
) -> None:
    folder, settings = tiny_detectors["detr"], {"region_count": 4, "region_overlap": 0.9}
    backbone = build_backbone(replace(tiny_settings, grid=None, regions=f"hf/{folder}", **settings))
    regions = build(folder, **settings)
    expected = regions.regions([""] * 3, make_inputs(pictures[:3], regions.transform))
    found = backbone.encode(pictures[:3])
    assert found["features"].shape == (3, 4, backbone.feature_width)
    assert set(found) == {"features", "boxes", "mask", "class_ids", "scores", "image_size"}
    for name, values in expected._asdict().items():
        assert np.array_equal(found[name], values), name
    assert (found["features"][~found["mask"]] == 0).all()
    assert backbone.identity()["regions"] == regions.identity()


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAMILIES)
def test_a_gpu_finds_what_the_cpu_finds(
    tiny_detectors: dict[str, Path], make_inputs: MakeInputs, pictures: Pictures, name: str
) -> None:
    folder = str(tiny_detectors[name])
    settings = ExtractionSettings(region_count=6, region_overlap=1.0)
    on_gpu = DetectedRegions(hugging_face_detector(folder, settings), settings, torch.device("cuda"))
    on_cpu = DetectedRegions(hugging_face_detector(folder, settings), settings, CPU)
    inputs = make_inputs(pictures, on_cpu.transform)
    ours, theirs = (one.regions([""] * len(pictures), inputs) for one in (on_gpu, on_cpu))
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-2)
