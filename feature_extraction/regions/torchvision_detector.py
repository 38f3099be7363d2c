"""Detectors from torchvision: Faster R-CNN, RetinaNet, FCOS, SSD and SSDlite; the masks of Mask R-CNN are not used."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
import torchvision
from huggingface_hub import is_offline_mode
from jaxtyping import UInt8
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import detection, get_model, get_model_weights, list_models

from feature_extraction.errors import InputDataError, UsageError
from feature_extraction.regions.detectors import (
    Detector,
    WholeImage,
    candidates,
)
from feature_extraction.regions.regions import Candidates
from feature_extraction.settings import ExtractionSettings
from feature_extraction.weights import weights_file, weights_of_another_network


def torchvision_detector(name: str, settings: ExtractionSettings) -> Detector:
    """A detector by torchvision's name, with its best published weights (COCO, class ids 1 to 90) or given ones.

    Its own limits on the score and the number of boxes make way for those of the settings.

    Raises:
        UsageError: torchvision has no such detector.
        InputDataError: the published weights cannot be had.
        IncompatibleError: ``settings.region_weights`` are of another network.
    """
    names = list_models(module=detection)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3)
        hint = f"Did you mean {' or '.join(f'torchvision/{match}' for match in close)}?" if close else ""
        raise UsageError(
            f"features.regions is torchvision/{name}, but torchvision {torchvision.__version__} has no such detector: "
            f"it has {', '.join(names)}. {hint}".rstrip()
        )
    network: Any = get_model(name, weights=None, weights_backbone=None)
    weights, source = _weights(name, settings)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise weights_of_another_network(
            str(error), network=f"torchvision/{name}", source=source, setting="features.regions"
        ) from error
    boxes = getattr(network, "roi_heads", network)  # which holds the limits depends on the architecture
    boxes.score_thresh = settings.region_min_score
    boxes.detections_per_img = max(boxes.detections_per_img, settings.region_count)
    own, given = network.transform, settings.region_image_size
    if own.fixed_size is not None:
        own.fixed_size = own.fixed_size if given is None else (given, given)
        transform = WholeImage(own.fixed_size[1], own.fixed_size[0], "bilinear")
    else:
        transform = WholeImage(
            given or own.max_size, given or own.max_size, "bilinear", shortest=given or own.min_size[-1]
        )
    return Detector(
        name=f"torchvision/{name}",
        network=network,
        find=_Find(network),
        transform=transform,
        normalisation={"scale": 1 / 255, "mean": list(own.image_mean), "std": list(own.image_std)},
    )


class _Find:
    """What a network finds in pictures that have their size already."""

    def __init__(self, network: Any) -> None:  # noqa: ANN401 - torchvision's detectors share attributes that no class declares
        self._network = network

    def __call__(self, pictures: UInt8[Tensor, "B rows columns 3"]) -> list[Candidates]:
        rows, columns = pictures.shape[1:3]
        # The network's own resizing is to leave the pictures as they are.
        self._network.transform.min_size, self._network.transform.max_size = (min(rows, columns),), max(rows, columns)
        images = list(pictures.permute(0, 3, 1, 2).float() / 255)
        sides = torch.tensor([columns, rows, columns, rows], device=pictures.device)
        return [candidates(found["boxes"] / sides, found["scores"], found["labels"]) for found in self._network(images)]


def _weights(name: str, settings: ExtractionSettings) -> tuple[dict[str, Tensor], str]:
    """The weights, and where they come from."""
    if settings.region_weights is not None:
        file = weights_file(settings.region_weights, setting="features.region_weights")
        return load_file(file), str(file)
    best: Any = get_model_weights(name).DEFAULT
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(best.url).name)
    try:
        if is_offline_mode() and not cached.is_file():  # torchvision knows no such mode
            raise ConnectionError("HF_HUB_OFFLINE is set")
        return best.get_state_dict(progress=False, check_hash=True, weights_only=True), best.url
    except Exception as error:  # failures of the network, the disk and the hash have no common type
        raise InputDataError(
            f"The weights of torchvision/{name} could not be had from {best.url}: {type(error).__name__}: {error}. "
            f"Check the connection, put the file into {cached.parent}, or give a safetensors file "
            "of the weights in features.region_weights"
        ) from error
