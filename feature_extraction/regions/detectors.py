"""Regions from a detector: what it wants to see of an image, and the boxes that it finds there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from feature_extraction.errors import UsageError
from feature_extraction.images.inputs import Inputs
from feature_extraction.images.preprocessing import Transform, View
from feature_extraction.regions.regions import Candidates, Choice, Regions, choose, padded
from feature_extraction.settings import ExtractionSettings
from feature_extraction.weights import weight_digest

BATCH_SIZE = 8  # pictures of one size that go through a detector together: on a GPU most of the gain, little memory


class WholeImage(NamedTuple):
    """The whole image on a canvas of one size: squashed to it, or with its aspect ratio in the upper left corner.

    The sides of an image that keeps its aspect ratio are rounded as DETR's own preprocessing rounds them.
    """

    height: int  # of the canvas, pixels
    width: int
    interpolation: str  # the name of a filter of Pillow
    shortest: int | None = None  # pixels of the shorter side, unless the longer would leave the canvas; None: squashed
    multiple: int = 1  # of this many pixels are both sides, where the aspect ratio is kept

    def apply(self, image: UInt8[np.ndarray, "rows columns 3"]) -> tuple[UInt8[np.ndarray, "height width 3"], View]:
        """The canvas, and the part of the image that it shows."""
        height, width = self._inner(*image.shape[:2])
        canvas = np.zeros((self.height, self.width, 3), np.uint8)
        filter_ = Image.Resampling[self.interpolation.upper()]
        canvas[:height, :width] = np.array(Image.fromarray(image).resize((width, height), filter_))
        return canvas, View(0.0, 0.0, self.width / width, self.height / height)

    def shown(self, view: Float32[np.ndarray, " 4"]) -> tuple[int, int]:
        """The height and width in pixels of the image on a canvas."""
        return round(self.height / float(view[3])), round(self.width / float(view[2]))

    def identity(self) -> dict[str, Any]:
        """What the canvas depends on."""
        return self._asdict()

    def _inner(self, height: int, width: int) -> tuple[int, int]:
        if self.shortest is None:
            return self.height, self.width
        short, long = sorted((height, width))
        side = min(self.shortest, min(self.height, self.width) * short / long)
        ends = (self._whole(round(side)), self._whole(int(side * long / short)))
        return ends if height < width else (ends[1], ends[0])

    def _whole(self, pixels: int) -> int:
        return max(pixels - pixels % self.multiple, self.multiple)


class Detector(NamedTuple):
    """A detection network, and the boxes that it finds in pictures of one size, as fractions of their sides."""

    name: str
    network: nn.Module
    find: Callable[[UInt8[Tensor, "B rows columns 3"]], list[Candidates]]
    transform: WholeImage
    normalisation: dict[str, Any]  # of the pixels, as JSON values


def candidates(
    boxes: Float[Tensor, "found 4"], scores: Float[Tensor, " found"], labels: Int[Tensor, " found"]
) -> Candidates:
    """What a network found, as arrays."""
    return Candidates(boxes.float().cpu().numpy(), scores.float().cpu().numpy(), labels.long().cpu().numpy())


class DetectedRegions:
    """The regions that a detector finds.

    Images that keep their aspect ratio are shown one by one and without any border, the others in batches that are
    filled up. So the boxes of an image do not depend on the images beside it, and are those that the detector's own
    library finds in it alone.
    """

    fields: tuple[str, ...] = ("class_ids", "scores")

    def __init__(self, detector: Detector, settings: ExtractionSettings, device: torch.device) -> None:
        """Freeze the detector and see that it works.

        Raises:
            UsageError: it finds no boxes at this image size.
        """
        self.transform: Transform | None = detector.transform
        self._detector, self._device = detector, device
        self._choice = Choice.of(settings)
        self._digest = weight_digest(detector.network.state_dict())
        detector.network.eval().requires_grad_(False).to(device)
        self._probe()

    def refuse_missing(self, image_ids: Sequence[str]) -> None:
        """Nothing can be missing: a detector looks at any image."""

    @torch.inference_mode()
    def regions(self, image_ids: Sequence[str], inputs: Inputs) -> Regions:
        """The regions of these images.

        Raises:
            ValueError: the inputs were prepared without ``transform``.
        """
        if inputs.region_pixels is None or inputs.region_views is None:
            raise ValueError(f"The inputs of {len(image_ids)} images were not prepared for {self._detector.name}")
        if self._detector.transform.shortest is None:
            found = self._found_together(inputs.region_pixels)
        else:
            found = [
                self._find(canvas[None, :height, :width])[0]
                for canvas, view in zip(inputs.region_pixels, inputs.region_views, strict=True)
                for height, width in [self._detector.transform.shown(view)]
            ]
        return padded([choose(one, self._choice) for one in found], self._choice.count)

    def identity(self) -> dict[str, Any]:
        """Everything that the boxes depend on."""
        return {
            "detector": self._detector.name,
            "weight_digest": self._digest,
            "image": self._detector.transform.identity(),
            "normalisation": self._detector.normalisation,
            **asdict(self._choice),
        }

    def _found_together(self, pictures: UInt8[np.ndarray, "B height width 3"]) -> list[Candidates]:
        found = []
        for start in range(0, len(pictures), BATCH_SIZE):
            part = pictures[start : start + BATCH_SIZE]
            whole = np.zeros((BATCH_SIZE, *part.shape[1:]), np.uint8)
            whole[: len(part)] = part
            found += self._find(whole)[: len(part)]
        return found

    def _find(self, pictures: UInt8[np.ndarray, "B rows columns 3"]) -> list[Candidates]:
        return self._detector.find(torch.from_numpy(pictures).to(self._device))

    def _probe(self) -> None:
        transform = self._detector.transform
        try:
            with torch.inference_mode():
                canvas, view = transform.apply(np.zeros((8, 8, 3), np.uint8))
                height, width = transform.shown(np.array(view, np.float32))
                self._find(canvas[None, :height, :width])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # networks refuse sizes in many ways
            raise UsageError(
                f"{self._detector.name} finds no boxes in images of {transform.width} x {transform.height} pixels: "
                f"{type(error).__name__}: {' '.join(str(error).split())[:500]}. Change features.region_image_size "
                "(null: what the detector was trained with), or features.regions"
            ) from error
