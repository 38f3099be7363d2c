"""Frozen image backbones: pixels in, visual tokens with their boxes out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, Float64, UInt8
from torch import Tensor
from torch.nn import functional

from feature_extraction.errors import UsageError
from feature_extraction.images import decode_image
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store_layout import LAYOUT_VERSION, StoredImage
from feature_extraction.tower import Tower

POOLINGS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "avg": functional.adaptive_avg_pool2d,
    "max": functional.adaptive_max_pool2d,
}


class Backbone:
    """A frozen tower, and what is kept of its feature map.

    Every forward pass has the same shape: smaller batches are filled up with black images. So the visual tokens of
    an image do not depend on the images beside it, to the last bit (same device model, thread count and versions).
    """

    def __init__(self, *, tower: Tower, settings: ExtractionSettings, device: torch.device) -> None:
        """Freeze the tower and find out the shape of its feature map.

        Raises:
            UsageError: the tower cannot give a feature map with these settings.
        """
        self.settings = settings
        self.preprocessing = tower.preprocessing
        self.weight_digest = weight_digest(tower.network.state_dict())
        tower.network.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        self._feature_map = tower.feature_map
        self.device = device
        # In units of pixel values, so that there is no division by 255.
        self._mean = torch.tensor(tower.preprocessing.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(tower.preprocessing.std, device=device).view(1, 3, 1, 1) * 255
        self.feature_width, rows, columns = self._probe()
        if settings.grid is not None and settings.grid > min(rows, columns):
            raise UsageError(
                f"features.grid is {settings.grid}, but the feature map of {settings.backbone} at "
                f"{settings.image_size} pixels is {rows} x {columns}. Lower the grid, raise features.image_size, or "
                "choose an earlier features.layer"
            )
        self.boxes = cell_boxes(rows=rows, columns=columns, grid=settings.grid)
        self.visual_tokens = len(self.boxes)

    def encode(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float16[np.ndarray, "B V D"]:
        """The visual tokens of decoded images of any size, exactly as a store holds them."""
        pixels = np.stack([self.preprocessing.resize(image) for image in images])
        size = self.settings.batch_size
        return np.concatenate([self.encode_pixels(pixels[at : at + size]) for at in range(0, len(pixels), size)])

    def encode_file(self, path: Path) -> StoredImage:
        """The visual tokens and boxes of one image file, bit-equal to those in a store of the same identity.

        It costs a whole batch; for many images use ``encode``.

        Raises:
            ImageRejected: the image cannot be used.
        """
        return StoredImage(self.encode([decode_image(path)])[0], self.boxes)

    def encode_pixels(self, pixels: UInt8[np.ndarray, "B size size 3"]) -> Float16[np.ndarray, "B V D"]:
        """The visual tokens of at most ``batch_size`` images that are resized already."""
        whole = torch.zeros(self.settings.batch_size, *pixels.shape[1:], dtype=torch.uint8)
        whole[: len(pixels)] = torch.from_numpy(pixels)
        feature_map = self._map(whole)[: len(pixels)]
        if self.settings.grid is not None:
            feature_map = POOLINGS[self.settings.pooling](feature_map, self.settings.grid)
        return np.ascontiguousarray(feature_map.flatten(2).transpose(1, 2).half().cpu().numpy())

    def identity(self) -> dict[str, Any]:
        """Everything the features depend on, as JSON values."""
        kind, _, name = self.settings.backbone.partition("/")
        # A local folder may move; the digest of its weights says what it is.
        backbone = f"hf/{Path(name).name}" if kind == "hf" and Path(name).is_dir() else self.settings.backbone
        return {
            "backbone": backbone,
            "weight_digest": self.weight_digest,
            "image_size": self.preprocessing.image_size,
            "resize": "squash",
            "interpolation": self.preprocessing.interpolation,
            "mean": list(self.preprocessing.mean),
            "std": list(self.preprocessing.std),
            "layer": self.settings.layer,
            "grid": self.settings.grid,
            "pooling": None if self.settings.grid is None else self.settings.pooling,
            "visual_tokens": self.visual_tokens,
            "feature_width": self.feature_width,
            "dtype": "float16",
            "batch_size": self.settings.batch_size,
            "layout_version": LAYOUT_VERSION,
        }

    @torch.inference_mode()
    def _map(self, pixels: UInt8[Tensor, "B size size 3"]) -> Float[Tensor, "B D rows columns"]:
        images = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
        return self._feature_map((images - self._mean) / self._std)

    def _probe(self) -> tuple[int, int, int]:
        side = self.preprocessing.image_size
        try:
            _, width, rows, columns = self._map(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape
        except (UsageError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # networks refuse sizes and layers in many ways
            raise UsageError(
                f"{self.settings.backbone} gives no feature map with features.image_size={side} and "
                f"features.layer={self.settings.layer}: {type(error).__name__}: {error}. Change one of the three"
            ) from error
        return width, rows, columns


def build_backbone(settings: ExtractionSettings, device: torch.device | None = None) -> Backbone:
    """The frozen backbone of the settings, on the GPU where there is one.

    Raises:
        UsageError: a setting that no backbone, or not this one, can have.
        InputDataError: weights that cannot be had.
        IncompatibleError: weights of another network.
    """
    _check(settings)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Backbone(tower=_build_tower(settings), settings=settings, device=device)


def cell_boxes(*, rows: int, columns: int, grid: int | None = None) -> Float32[np.ndarray, "V 4"]:
    """The boxes of a feature map's cells, row by row: x0, y0, x1, y1 as fractions of width and height.

    With ``grid``, of the cells that adaptive pooling makes; where the sizes do not divide they overlap, as in
    VL-Adapter's 7 x 7 to 6 x 6.
    """
    (top, bottom), (left, right) = (_edges(size, grid or size) for size in (rows, columns))
    row, column = (axis.ravel() for axis in np.indices((len(top), len(left))))
    return np.stack([left[column], top[row], right[column], bottom[row]], axis=1).astype(np.float32)


def weight_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of all tensors, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _build_tower(settings: ExtractionSettings) -> Tower:
    # Each library is loaded only when it is used: they take seconds.
    kind, _, name = settings.backbone.partition("/")
    if kind == "efficientnet_lite0" and not name:
        from feature_extraction.timm_tower import bundled_tower

        return bundled_tower(settings)
    if kind == "timm" and name:
        from feature_extraction.timm_tower import timm_tower

        return timm_tower(name, settings)
    if kind == "hf" and name:
        from feature_extraction.hugging_face_tower import hugging_face_tower

        return hugging_face_tower(name, settings)
    raise UsageError(
        f"features.backbone is {settings.backbone!r}; it is efficientnet_lite0, timm/<model> or "
        "hf/<model id or folder>, as in timm/resnet101_clip.openai"
    )


def _edges(size: int, cells: int) -> tuple[Float64[np.ndarray, " cells"], Float64[np.ndarray, " cells"]]:
    """Where the cells of an adaptive pooling begin and end, as fractions."""
    cell = np.arange(cells)
    return cell * size // cells / size, -(-(cell + 1) * size // cells) / size


def _check(settings: ExtractionSettings) -> None:
    faults = [
        f"features.{name} is {value}; it must be at least {least}"
        for name, least in {"image_size": 1, "grid": 1, "batch_size": 1, "shard_size": 1, "workers": 0}.items()
        if (value := getattr(settings, name)) is not None and value < least
    ]
    if settings.pooling not in POOLINGS:
        faults.append(f"features.pooling is {settings.pooling!r}; it is {' or '.join(POOLINGS)}")
    if faults:
        raise UsageError("; ".join(faults))
