"""Inputs of random pictures, and tiny random detectors of every family as local folders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    ConditionalDetrImageProcessorPil,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)
from transformers.utils import logging

from feature_extraction.images.inputs import Inputs, Preparation
from feature_extraction.images.preprocessing import Preprocessing, Transform

FAMILIES = ("detr", "conditional_detr", "rt_detr", "rt_detr_v2", "yolos")
CLASSES, QUERIES = 5, 12
KEPT_SHAPE: dict[str, Any] = {"size": {"shortest_edge": 48, "longest_edge": 80}}
SQUASHED: dict[str, Any] = {"size": {"height": 64, "width": 64}}
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray[Any, Any]]:
    """Pictures of several shapes, wide and high; more than a detector sees together."""
    return [RANDOM.integers(0, 256, (40 + 9 * row, 90 - 7 * row, 3), dtype=np.uint8) for row in range(10)]


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., Inputs]:
    """What a small backbone and a detector see of pictures."""

    def make(pictures: Sequence[np.ndarray[Any, Any]], transform: Transform | None = None) -> Inputs:
        backbone = Preprocessing(8, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        return Inputs.joined([Preparation(backbone, transform).of_image(picture) for picture in pictures])

    return make


@pytest.fixture(scope="session")
def tiny_detectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each of FAMILIES: a random network whose boxes depend on the picture, and its preprocessing."""
    folder = tmp_path_factory.mktemp("detectors")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    paths = {}
    for name in FAMILIES:
        network, processor = _detector(name)
        torch.manual_seed(0)
        for weights in network.parameters():
            if weights.ndim > 1:
                torch.nn.init.normal_(weights, std=0.3)
        paths[name] = folder / name
        network.save_pretrained(paths[name])
        processor.save_pretrained(paths[name])
    logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    return paths


def _detector(name: str) -> tuple[Any, Any]:
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    size = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "num_queries": QUERIES, "num_labels": CLASSES}
    plain = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    shape: dict[str, Any] = {"embedding_size": 8, "depths": [1, 1, 1, 1], "layer_type": "basic"}
    detr: dict[str, Any] = {**heads, **size, **plain}
    if name in ("detr", "conditional_detr"):
        detr["backbone_config"] = ResNetConfig(hidden_sizes=[8, 8, 8, 16], out_features=["stage4"], **shape)
    if name == "detr":
        return DetrForObjectDetection(DetrConfig(**detr)), DetrImageProcessorPil(**KEPT_SHAPE)
    if name == "conditional_detr":
        conditional = ConditionalDetrForObjectDetection(ConditionalDetrConfig(**detr))
        return conditional, ConditionalDetrImageProcessorPil(**KEPT_SHAPE)
    if name == "yolos":
        config = YolosConfig(
            **layers, image_size=[48, 64], patch_size=16, num_detection_tokens=QUERIES, num_labels=CLASSES
        )
        return YolosForObjectDetection(config), YolosImageProcessorPil(**KEPT_SHAPE)
    detr["backbone_config"] = RTDetrResNetConfig(
        hidden_sizes=[8, 8, 16, 16], out_features=["stage2", "stage3", "stage4"], **shape
    )
    detr |= {"encoder_hidden_dim": 16, "encoder_in_channels": [8, 16, 16], "decoder_in_channels": [16, 16, 16]}
    detr |= {"feat_strides": [8, 16, 32], "num_denoising": 0}
    processor = RTDetrImageProcessorPil(**SQUASHED)
    if name == "rt_detr":
        return RTDetrForObjectDetection(RTDetrConfig(**detr)), processor
    return RTDetrV2ForObjectDetection(RTDetrV2Config(**detr)), processor
