"""Detectors from transformers: DETR, Conditional and Deformable DETR, RT-DETR, D-FINE, RF-DETR, YOLOS and the like."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection, PreTrainedConfig

from feature_extraction.errors import InputDataError, UsageError
from feature_extraction.quiet_transformers import quiet
from feature_extraction.regions.detectors import (
    Detector,
    WholeImage,
    candidates,
)
from feature_extraction.regions.regions import Candidates
from feature_extraction.settings import ExtractionSettings
from feature_extraction.weights import weights_file, weights_of_another_network


def hugging_face_detector(name: str, settings: ExtractionSettings) -> Detector:
    """A detector by hub id or local folder, with its own preprocessing and post-processing.

    Raises:
        UsageError: it has no image size of its own, and the settings give none.
        InputDataError: the detector or its preprocessing cannot be had.
        IncompatibleError: the weights are of another network.
    """
    # A local folder may move; the digest of its weights says what it is.
    known = f"hf/{Path(name).name}" if Path(name).is_dir() else f"hf/{name}"
    file = (
        None
        if settings.region_weights is None
        else weights_file(settings.region_weights, setting="features.region_weights")
    )
    try:
        with quiet():
            config = AutoConfig.from_pretrained(name)
            network, report = _load(name, config, file)
            # Pillow's processor gives the same numbers on every machine; only its values are used here.
            processor: Any = AutoImageProcessor.from_pretrained(name, backend="pil")  # type: ignore[no-untyped-call]
    except Exception as error:  # the hub's failures have no common type
        raise InputDataError(
            f"hf/{name} could not be had: {type(error).__name__}: {' '.join(str(error).split())[:500]}. Give "
            "features.regions the id of an object detector on the Hugging Face hub, or a folder with config.json, "
            "model.safetensors and preprocessor_config.json"
        ) from error
    missing, others = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    if missing or others:  # they would stay random
        fault = f"missing {missing}, of other shapes {others}"
        raise weights_of_another_network(fault, network=known, source=file or name, setting="features.regions")
    scale = processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    return Detector(
        name=known,
        network=network,
        find=_Find(network, processor, mean=np.array(mean) / scale, std=np.array(std) / scale),
        transform=_transform(config, processor, settings, known),
        normalisation={"scale": scale, "mean": list(mean), "std": list(std)},
    )


class _Find:
    """What a network finds in pictures, by its own processor's reading of its output."""

    def __init__(self, network: nn.Module, processor: Any, *, mean: np.ndarray, std: np.ndarray) -> None:  # noqa: ANN401
        self._network, self._post_process = network, processor.post_process_object_detection
        self._mean, self._std = (torch.from_numpy(one).float().view(1, 3, 1, 1) for one in (mean, std))
        # Pairs of a query and a class, where the best are taken of them all; otherwise there is one for each query.
        self._takes_best = "top_k" in inspect.signature(self._post_process).parameters

    def __call__(self, pictures: UInt8[Tensor, "B rows columns 3"]) -> list[Candidates]:
        pixels = pictures.permute(0, 3, 1, 2).float()
        output = self._network((pixels - self._mean.to(pixels)) / self._std.to(pixels))
        options = {"top_k": output.logits.shape[1]} if self._takes_best else {}
        # Without sizes of the images: boxes as fractions.
        return [
            candidates(found["boxes"], found["scores"], found["labels"])
            for found in self._post_process(output, threshold=0.0, **options)
        ]


def _load(name: str, config: PreTrainedConfig, file: Path | None) -> tuple[nn.Module, dict[str, Any]]:
    options: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    if file is None:
        network, report = AutoModelForObjectDetection.from_pretrained(name, use_safetensors=True, **options)
    else:
        architecture = type(AutoModelForObjectDetection.from_config(config))  # type: ignore[no-untyped-call]
        network, report = architecture.from_pretrained(None, state_dict=load_file(file), **options)
    return network, report


def _transform(config: PreTrainedConfig, processor: Any, settings: ExtractionSettings, name: str) -> WholeImage:  # noqa: ANN401
    interpolation = Image.Resampling(processor.resample).name.lower()
    size, given = processor.size, settings.region_image_size
    if processor.do_resize and size.height and size.width:
        return WholeImage(given or size.height, given or size.width, interpolation)
    if given is None and processor.do_resize and size.shortest_edge and size.longest_edge:
        shortest, longest = size.shortest_edge, size.longest_edge
    elif given is None and processor.do_resize and size.max_height and size.max_width:
        shortest = longest = min(size.max_height, size.max_width)
    elif given is None:
        raise UsageError(
            f"The preprocessing of {name} names no image size. Set features.region_image_size to the longer side in "
            "pixels that the detector was trained with"
        )
    else:
        shortest = longest = given
    # YOLOS sees whole patches only, so its own preprocessing cuts the sides down to multiples of them.
    multiple = config.patch_size if config.model_type == "yolos" else 1
    return WholeImage(longest, longest, interpolation, shortest, multiple)
