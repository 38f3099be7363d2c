from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models import get_model, get_model_weights

from feature_extraction.errors import IncompatibleError, InputDataError, UsageError
from feature_extraction.images.inputs import Inputs
from feature_extraction.regions.detectors import DetectedRegions, WholeImage
from feature_extraction.regions.torchvision_detector import torchvision_detector
from feature_extraction.settings import ExtractionSettings

CPU = torch.device("cpu")
SQUASHES, KEEPS_SHAPE = "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"
MakeInputs = Callable[..., Inputs]
Pictures = list[np.ndarray[Any, Any]]


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    """Random networks whose boxes depend on the picture."""
    built = {}
    for name in (SQUASHES, KEEPS_SHAPE):
        torch.manual_seed(0)
        built[name] = get_model(name, weights=None, weights_backbone=None).eval()
        for weights in built[name].parameters():
            if weights.ndim == 4:
                torch.nn.init.kaiming_normal_(weights)
        getattr(built[name], "roi_heads", built[name]).score_thresh = 0.0
    return built


@pytest.fixture(scope="module")
def files(networks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("torchvision")
    paths = {name: folder / f"{name}.safetensors" for name in networks}
    for name, network in networks.items():
        save_file(network.state_dict(), paths[name])
    return paths


def build(name: str, **settings: Any) -> DetectedRegions:
    chosen = ExtractionSettings(regions=f"torchvision/{name}", **settings)
    return DetectedRegions(torchvision_detector(name, chosen), chosen, CPU)


@pytest.mark.parametrize("name", [SQUASHES, KEEPS_SHAPE])
def test_the_boxes_are_those_of_the_network_itself(
    networks: dict[str, Any], files: dict[str, Path], make_inputs: MakeInputs, name: str
) -> None:
    size = (320, 320) if name == SQUASHES else (320, 400)  # what the network does not resize
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    with torch.no_grad():
        (theirs,) = networks[name]([torch.from_numpy(picture).permute(2, 0, 1) / 255])
    # The network keeps overlapping boxes of several classes: of these the settings keep the best only.
    regions = build(name, region_weights=str(files[name]), region_count=300, region_overlap=1.0)
    found = regions.regions([""], make_inputs([picture], regions.transform))
    height, width = size
    boxes = (theirs["boxes"] / torch.tensor([width, height, width, height])).numpy()
    assert len(boxes) > 0
    for box, score, label in zip(boxes, theirs["scores"].numpy(), theirs["labels"].numpy(), strict=True):
        if (box[2:] <= box[:2]).any():
            continue
        same = np.isclose(found.boxes[0], box, atol=1e-5).all(axis=1) & np.isclose(found.scores[0], score, atol=1e-5)
        assert label in found.class_ids[0][same]


@pytest.mark.parametrize("name", [SQUASHES, KEEPS_SHAPE])
def test_the_regions_of_an_image_alone_are_bit_equal_to_those_among_others(
    files: dict[str, Path], make_inputs: MakeInputs, pictures: Pictures, name: str
) -> None:
    regions = build(name, region_weights=str(files[name]), region_image_size=64)
    shown = pictures[:3]
    together = regions.regions([""] * 3, make_inputs(shown, regions.transform))
    assert ((together.boxes >= 0) & (together.boxes <= 1)).all()
    assert together.mask[:, 0].all()
    assert (together.class_ids[together.mask] > 0).all()  # 0 is the background
    for row, picture in enumerate(shown):
        alone = regions.regions([""], make_inputs([picture], regions.transform))
        for ours, theirs in zip(alone, together, strict=True):
            assert np.array_equal(ours[0], theirs[row])


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        (SQUASHES, None, WholeImage(320, 320, "bilinear")),
        (SQUASHES, 64, WholeImage(64, 64, "bilinear")),
        (KEEPS_SHAPE, None, WholeImage(640, 640, "bilinear", 320)),
        (KEEPS_SHAPE, 96, WholeImage(96, 96, "bilinear", 96)),
    ],
)
def test_the_image_size_is_the_detector_s_own_or_the_given(
    files: dict[str, Path], name: str, given: int | None, expected: WholeImage
) -> None:
    settings = ExtractionSettings(region_weights=str(files[name]), region_image_size=given)
    assert torchvision_detector(name, settings).transform == expected


def test_the_settings_decide_on_scores_and_numbers(files: dict[str, Path]) -> None:
    for name in (SQUASHES, KEEPS_SHAPE):
        settings = ExtractionSettings(region_weights=str(files[name]), region_min_score=0.25, region_count=500)
        network: Any = torchvision_detector(name, settings).network
        limits = getattr(network, "roi_heads", network)
        assert (limits.score_thresh, limits.detections_per_img) == (0.25, 500)


def test_the_identity_names_detector_and_weights(files: dict[str, Path]) -> None:
    identity = build(SQUASHES, region_weights=str(files[SQUASHES])).identity()
    assert identity["detector"] == f"torchvision/{SQUASHES}"
    assert identity["normalisation"] == {"scale": 1 / 255, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert len(identity["weight_digest"]) == 64


def test_an_unknown_detector_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        build("fasterrcnn_resnet50")
    text = str(caught.value)
    start = (
        f"features.regions is torchvision/fasterrcnn_resnet50, but torchvision {torchvision.__version__} has no such"
    )
    assert text.startswith(f"{start} detector: it has fasterrcnn_mobilenet_v3_large_320_fpn, ")
    assert "Did you mean torchvision/fasterrcnn_resnet50_fpn or " in text


def test_weights_of_another_detector_are_refused(files: dict[str, Path]) -> None:
    with pytest.raises(
        IncompatibleError, match=rf"do not fit torchvision/{SQUASHES}: Error\(s\) in loading state_dict"
    ):
        build(SQUASHES, region_weights=str(files[KEEPS_SHAPE]))


def test_published_weights_are_read_without_running_code(
    networks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def get_state_dict(_: Any, **options: Any) -> dict[str, torch.Tensor]:
        asked.append(options)
        weights: dict[str, torch.Tensor] = networks[SQUASHES].state_dict()
        return weights

    monkeypatch.setattr(get_model_weights(SQUASHES), "get_state_dict", get_state_dict)
    monkeypatch.setattr("feature_extraction.regions.torchvision_detector.is_offline_mode", lambda: False)
    build(SQUASHES, region_image_size=64)
    assert asked == [{"progress": False, "check_hash": True, "weights_only": True}]


def test_weights_that_cannot_be_had_are_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_state_dict(_: Any, **options: Any) -> dict[str, torch.Tensor]:
        raise URLError("no route")

    monkeypatch.setattr(get_model_weights(SQUASHES), "get_state_dict", get_state_dict)
    monkeypatch.setattr("feature_extraction.regions.torchvision_detector.is_offline_mode", lambda: False)
    with pytest.raises(InputDataError) as caught:
        build(SQUASHES)
    url = get_model_weights(SQUASHES).DEFAULT.url
    assert str(caught.value) == (
        f"The weights of torchvision/{SQUASHES} could not be had from {url}: URLError: <urlopen error no route>. Check "
        f"the connection, put the file into {torch.hub.get_dir()}/checkpoints, or give a safetensors file of the "
        "weights in features.region_weights"
    )


def test_nothing_is_downloaded_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        InputDataError, match=r"could not be had from .*: ConnectionError: HF_HUB_OFFLINE is set\. Check"
    ):
        build(SQUASHES)
