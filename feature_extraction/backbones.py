"""Frozen image backbones: pixels in, visual tokens with their boxes out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, Shaped, UInt8
from torch import Tensor
from torch.nn import functional

from feature_extraction.errors import UsageError
from feature_extraction.images import Decoding, decode_image
from feature_extraction.inputs import Inputs, Preparation
from feature_extraction.preprocessing import RESIZES, Preprocessing, boxes_in_image, boxes_on_square
from feature_extraction.regions.regions import RegionSource, region_features
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store_layout import LAYOUT_VERSION, StoredImage, StoredImages, more_fields
from feature_extraction.towers.tower import FeatureMaps, Tower

POOLINGS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "avg": functional.adaptive_avg_pool2d,
    "max": functional.adaptive_max_pool2d,
}


class Backbone:
    """A frozen tower, and what is kept of its feature map.

    Every forward pass has the same shape: smaller batches are filled up with black images. So the visual tokens of
    an image do not depend on the images beside it, to the last bit (same device model, thread count and versions).
    """

    def __init__(
        self, *, tower: Tower, settings: ExtractionSettings, device: torch.device, regions: RegionSource | None = None
    ) -> None:
        """Freeze the tower and find out the shape of its feature map.

        Raises:
            UsageError: the tower cannot give a feature map with these settings.
        """
        self.settings = settings
        rules = Decoding(settings.exif, settings.max_pixels, settings.tiff)
        self.preparation = Preparation(tower.transform, regions.transform if regions else None, rules)
        self.weight_digest = weight_digest(tower.network.state_dict())
        tower.network.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        self.device = device
        self._tower, self._regions = tower, regions
        self.feature_width, rows, columns = self._probe()
        if regions is None and settings.grid is not None and settings.grid > min(rows, columns):
            raise UsageError(
                f"features.grid is {settings.grid}, but the feature map of {settings.backbone} at "
                f"{settings.image_size} pixels is {rows} x {columns}. Lower the grid, raise features.image_size, or "
                "choose an earlier features.layer"
            )
        # On the square that the backbone sees; None for regions, which each image has of its own.
        self.cells = None if regions else cell_boxes(rows=rows, columns=columns, grid=settings.grid)
        self.visual_tokens = settings.region_count if self.cells is None else len(self.cells)
        more = ["image_size"]
        if regions is not None:
            more += ["mask", *regions.fields]
        elif settings.resize == "pad":
            more += ["mask"]
        self.more_fields = more_fields(more, self.visual_tokens)

    def encode(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], image_ids: Sequence[str] = ()) -> StoredImages:
        """What a store holds of decoded images of any size, by field.

        Boxes from a file are looked up by ``image_ids``.
        """
        inputs = Inputs.joined([self.preparation.of_image(image) for image in images])
        ids, size = image_ids or [""] * len(images), self.settings.batch_size
        parts = [
            self.encode_inputs(ids[at : at + size], inputs.part(slice(at, at + size)))
            for at in range(0, len(ids), size)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def encode_file(self, path: Path) -> StoredImage:
        """The visual tokens and boxes of one image file, bit-equal to those in a store of the same identity.

        It costs a whole batch; for many images use ``encode``.

        Raises:
            ImageRejected: the image cannot be used.
        """
        found = self.encode([decode_image(path, self.preparation.rules)], [path.stem])
        mask = found["mask"][0] if "mask" in found else np.ones(self.visual_tokens, dtype=bool)
        return StoredImage(found["features"][0], found["boxes"][0], mask)

    @torch.inference_mode()
    def encode_inputs(self, image_ids: Sequence[str], inputs: Inputs) -> StoredImages:
        """What a store holds of at most ``batch_size`` prepared images, by field."""
        count = len(image_ids)
        cells = self._feature_maps(inputs.pixels).cells
        if self.cells is not None:
            if self.settings.grid is not None:
                cells = POOLINGS[self.settings.pooling](cells, self.settings.grid)
            tokens = cells.flatten(2).transpose(1, 2)
            boxes, mask = boxes_in_image(np.repeat(self.cells[None], count, axis=0), inputs.views[:, None])
            known = {"mask": mask}
        elif self._regions is not None:
            found = self._regions.regions(image_ids, inputs)
            boxes, known = found.boxes, found._asdict()
            on_square = np.zeros((len(cells), self.visual_tokens, 4), np.float32)
            on_square[:count] = boxes_on_square(boxes, inputs.views[:, None])
            tokens = region_features(cells, torch.from_numpy(on_square).to(self.device))
        arrays = {**known, "image_size": inputs.sizes}
        features = np.ascontiguousarray(tokens[:count].half().cpu().numpy())
        return {"features": features, "boxes": boxes, **{name: arrays[name] for name in self.more_fields}}

    def identity(self) -> dict[str, Any]:
        """Everything the features depend on, as JSON values."""
        kind, _, name = self.settings.backbone.partition("/")
        # A local folder may move; the digest of its weights says what it is.
        backbone = f"hf/{Path(name).name}" if kind == "hf" and Path(name).is_dir() else self.settings.backbone
        regions = {"regions": self._regions.identity()} if self._regions else {}
        return {
            "backbone": backbone,
            "weight_digest": self.weight_digest,
            **self._tower.transform.identity(),
            "exif": self.settings.exif,
            "layer": self.settings.layer,
            "grid": self.settings.grid,
            "pooling": None if self.settings.grid is None else self.settings.pooling,
            **regions,
            "visual_tokens": self.visual_tokens,
            "feature_width": self.feature_width,
            "dtype": "float16",
            "batch_size": self.settings.batch_size,
            "layout_version": LAYOUT_VERSION,
        }

    def _feature_maps(self, pixels: Shaped[np.ndarray, "B ..."]) -> FeatureMaps:
        """The feature maps of a whole batch, of which ``pixels`` are the first images."""
        whole = torch.zeros(self.settings.batch_size, *pixels.shape[1:], dtype=torch.from_numpy(pixels[:0]).dtype)
        whole[: len(pixels)] = torch.from_numpy(pixels)
        return self._tower.feature_maps(self._normalised(whole.to(self.device, non_blocking=True)))

    def _normalised(self, pixels: Shaped[Tensor, "B ..."]) -> Shaped[Tensor, "B ..."]:
        transform = self._tower.transform
        if not isinstance(transform, Preprocessing):
            return pixels
        # In units of pixel values, so that there is no division by 255.
        mean = torch.tensor(transform.mean, device=self.device).view(1, 3, 1, 1) * 255
        std = torch.tensor(transform.std, device=self.device).view(1, 3, 1, 1) * 255
        return (pixels.permute(0, 3, 1, 2).float() - mean) / std

    def _probe(self) -> tuple[int, int, int]:
        black, _ = self._tower.transform.apply(np.zeros((8, 8, 3), np.uint8))
        try:
            with torch.inference_mode():
                one = self._normalised(torch.from_numpy(black)[None].to(self.device))
                _, width, rows, columns = self._tower.feature_maps(one).cells.shape
        except (UsageError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # networks refuse sizes and layers in many ways
            raise UsageError(
                f"{self.settings.backbone} gives no feature map with features.image_size={self.settings.image_size} "
                f"and features.layer={self.settings.layer}: {type(error).__name__}: {error}. Change one of the three"
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
        from feature_extraction.towers.timm_tower import bundled_tower

        return bundled_tower(settings)
    if kind == "timm" and name:
        from feature_extraction.towers.timm_tower import timm_tower

        return timm_tower(name, settings)
    if kind == "hf" and name:
        from feature_extraction.towers.hugging_face_tower import hugging_face_tower

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
    if settings.resize not in RESIZES:
        faults.append(f"features.resize is {settings.resize!r}; it is {', '.join(RESIZES)}")
    if settings.pooling not in POOLINGS:
        faults.append(f"features.pooling is {settings.pooling!r}; it is {' or '.join(POOLINGS)}")
    if faults:
        raise UsageError("; ".join(faults))
