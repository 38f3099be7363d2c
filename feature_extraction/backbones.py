"""Frozen image backbones: pixels in, visual tokens with their boxes out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor
from torch.nn import functional

from feature_extraction.errors import UsageError
from feature_extraction.images.decoding import Decoding, decode_image
from feature_extraction.images.inputs import Inputs, Preparation
from feature_extraction.images.preprocessing import WHOLE, boxes_in_image, boxes_on_square
from feature_extraction.regions.regions import RegionSource, region_features
from feature_extraction.settings import ExtractionSettings
from feature_extraction.settings_check import check_settings
from feature_extraction.store.layout import LAYOUT_VERSION, StoredImage, StoredImages, more_fields
from feature_extraction.towers.build import build_tower
from feature_extraction.towers.cells import cell_boxes
from feature_extraction.towers.forward_pass import ForwardPass
from feature_extraction.towers.tower import FeatureMaps, Tower
from feature_extraction.weights import weight_digest

POOLINGS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "avg": functional.adaptive_avg_pool2d,
    "max": functional.adaptive_max_pool2d,
}


class Backbone:
    """A frozen tower, and what is kept of its feature map.

    The visual tokens of an image do not depend on the images beside it; see ``ForwardPass``.
    """

    def __init__(
        self, *, tower: Tower, settings: ExtractionSettings, device: torch.device, regions: RegionSource | None = None
    ) -> None:
        """Freeze the tower and find out the shape of its feature map.

        Raises:
            UsageError: the tower cannot give what the settings want.
        """
        self.settings, self.device = settings, device
        rules = Decoding(settings.exif, settings.max_pixels, settings.tiff)
        self.preparation = Preparation(tower.transform, regions.transform if regions else None, rules)
        self.weight_digest = weight_digest(tower.network.state_dict())
        self._tower, self._regions = tower, regions
        self._forward = ForwardPass(tower, settings, device)
        maps = self._forward.probe()
        self.feature_width = maps.cells.shape[1]
        self._refuse_what_is_not_there(maps)
        self._lay_out(maps)

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
        maps = self._forward(inputs.pixels)
        known: dict[str, np.ndarray] = {"image_size": inputs.sizes}
        if self._regions is None:
            tokens = self._tokens(maps)
            boxes, known["mask"] = self._boxes(inputs)
        else:
            found = self._regions.regions(image_ids, inputs)
            boxes, known = found.boxes, known | found._asdict()
            on_square = np.zeros((len(maps.cells), *boxes.shape[1:]), np.float32)
            on_square[:count] = boxes_on_square(boxes, inputs.views[:, None])
            # A region that a crop left out has no area on the square: the backbone saw nothing of it.
            known["mask"] = known["mask"] & (on_square[:count, :, 2:] > on_square[:count, :, :2]).all(axis=-1)
            tokens = region_features(maps.cells, torch.from_numpy(on_square).to(self.device))
        features = tokens[:count].half().contiguous().cpu().numpy()
        return {"features": features, "boxes": boxes, **{name: known[name] for name in self.more_fields}}

    def identity(self) -> dict[str, Any]:
        """Everything the features depend on, as JSON values."""
        settings = self.settings
        kind, _, name = settings.backbone.partition("/")
        # A local folder may move; the digest of its weights says what it is.
        backbone = f"hf/{Path(name).name}" if kind == "hf" and Path(name).is_dir() else settings.backbone
        grid = None if self._regions else settings.grid
        return {
            "backbone": backbone,
            "weight_digest": self.weight_digest,
            **self._tower.transform.identity(),
            "exif": settings.exif,
            "layer": settings.layer,
            "grid": grid,
            "pooling": None if grid is None else settings.pooling,
            "class_token": settings.class_token,
            **({"regions": self._regions.identity()} if self._regions else {}),
            "precision": settings.precision,
            "compile": settings.compile,
            "visual_tokens": self.visual_tokens,
            "feature_width": self.feature_width,
            "dtype": "float16",
            "batch_size": settings.batch_size,
            "layout_version": LAYOUT_VERSION,
        }

    def refuse_missing_regions(self, image_ids: Sequence[str]) -> None:
        """See that there will be regions of all these images, where there are any.

        Raises:
            InputDataError: a file of boxes does not list them all.
        """
        if self._regions is not None:
            self._regions.refuse_missing(image_ids)

    def for_trial(self, batch_size: int) -> Backbone:
        """The same tower on batches of another size, with the cells of its feature map as visual tokens."""
        other = copy.copy(self)
        other.settings = replace(self.settings, batch_size=batch_size)
        other._forward = self._forward.with_batch_size(batch_size)
        if self._regions is not None:
            other._regions = None
            other._lay_out(self._forward.probe())
        return other

    def _refuse_what_is_not_there(self, maps: FeatureMaps) -> None:
        settings, (rows, columns) = self.settings, maps.cells.shape[2:]
        if settings.class_token and maps.class_token is None:
            raise UsageError(
                f"features.class_token is true, but {settings.backbone} has no class token. Set it to false"
            )
        wanted = "regions" if self._regions else "grid" if settings.grid is not None else None
        if wanted is not None and not maps.is_grid:
            raise UsageError(
                f"features.{wanted} needs a feature map, but {settings.backbone} gives {rows} visual tokens in no "
                f"grid. Let its forward give [B D rows columns], or set features.{wanted} to null"
            )
        if wanted == "grid" and settings.grid is not None and settings.grid > min(rows, columns):
            raise UsageError(
                f"features.grid is {settings.grid}, but the feature map of {settings.backbone} at "
                f"{settings.image_size} pixels is {rows} x {columns}. Lower the grid, raise features.image_size, or "
                "choose an earlier features.layer"
            )

    def _lay_out(self, maps: FeatureMaps) -> None:
        """Find out how many visual tokens there are, where they lie, and what else is known of an image."""
        settings, more = self.settings, ["image_size"]
        if self._regions is not None:
            self.visual_tokens = settings.region_count
            more += ["mask", *self._regions.fields]
        else:
            rows, columns = maps.cells.shape[2:]
            # On what the backbone sees, which is not always the whole image.
            self._cells = (
                cell_boxes(rows=rows, columns=columns, grid=settings.grid) if maps.is_grid else self._tower.boxes(rows)
            )
            self.visual_tokens = len(self._cells) + settings.class_token
            more += ["mask"] if settings.resize == "pad" else []
        self.more_fields = more_fields(more, self.visual_tokens)

    def _tokens(self, maps: FeatureMaps) -> Float32[Tensor, "B V D"]:
        cells = maps.cells.float()
        if self.settings.grid is not None:
            cells = POOLINGS[self.settings.pooling](cells, self.settings.grid)
        tokens = cells.flatten(2).transpose(1, 2)
        if self.settings.class_token and maps.class_token is not None:
            tokens = torch.cat([maps.class_token.float()[:, None], tokens], dim=1)
        return tokens

    def _boxes(self, inputs: Inputs) -> tuple[Float32[np.ndarray, "B V 4"], Bool[np.ndarray, "B V"]]:
        """The boxes of the visual tokens in each image, and whether they show anything of it."""
        count = len(inputs.views)
        boxes, mask = boxes_in_image(np.repeat(self._cells[None], count, axis=0), inputs.views[:, None])
        if self.settings.class_token:  # it stands for the whole image
            boxes = np.concatenate([np.full((count, 1, 4), WHOLE, np.float32), boxes], axis=1)
            mask = np.concatenate([np.ones((count, 1), bool), mask], axis=1)
        return boxes, mask


def build_backbone(settings: ExtractionSettings, device: torch.device | None = None) -> Backbone:
    """The frozen backbone of the settings, on the GPU where there is one.

    Raises:
        UsageError: a setting that no backbone, or not this one, can have.
        InputDataError: weights or boxes that cannot be had.
        IncompatibleError: weights of another network.
    """
    check_settings(settings)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    regions = None
    if settings.regions is not None:
        from feature_extraction.regions.source import build_regions

        regions = build_regions(settings, device)
    return Backbone(tower=build_tower(settings), settings=settings, device=device, regions=regions)
