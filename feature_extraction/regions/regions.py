"""Regions of images: which boxes are kept, and the visual tokens inside them.

After bottom-up attention (Anderson et al. 2018) and VL-T5: the best ``count`` boxes after non-maximum suppression, and
for each the mean of the backbone's feature map inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from torchvision.ops import nms, roi_align

from feature_extraction.images.inputs import Inputs
from feature_extraction.images.preprocessing import Transform
from feature_extraction.settings import ExtractionSettings

ROI_CELLS, ROI_SAMPLES = 7, 2  # RoIAlign: 7 x 7 cells of 2 x 2 samples each, averaged


class Candidates(NamedTuple):
    """The boxes that were found in one image, before any choice; x0, y0, x1, y1 as fractions of width and height."""

    boxes: Float32[np.ndarray, "found 4"]
    scores: Float32[np.ndarray, " found"] | None  # None: the boxes stand in the order of their worth
    class_ids: Int64[np.ndarray, " found"] | None


@dataclass(frozen=True)
class Choice:
    """Which of the boxes that were found are kept."""

    count: int  # at most
    overlap: float  # 0 to 1; of two boxes with more intersection over union, the better scored stays
    min_score: float  # 0 to 1

    @classmethod
    def of(cls, settings: ExtractionSettings) -> Choice:
        """The choice of the settings."""
        return cls(settings.region_count, settings.region_overlap, settings.region_min_score)


class Regions(NamedTuple):
    """The chosen regions of B images. Rows beyond an image's last region are zero and masked."""

    boxes: Float32[np.ndarray, "B V 4"]
    mask: Bool[np.ndarray, "B V"]
    scores: Float32[np.ndarray, "B V"]
    class_ids: Int64[np.ndarray, "B V"]


@runtime_checkable
class RegionSource(Protocol):
    """Where the boxes come from: a detector, or a file."""

    transform: Transform | None  # what a detector wants to see; None: it needs no pixels
    fields: tuple[str, ...]  # what is known of a region besides its box, of ("class_ids", "scores")

    def regions(self, image_ids: Sequence[str], inputs: Inputs) -> Regions:
        """The regions of these images; those of an image do not depend on the others.

        Raises:
            InputDataError: an image has no boxes in the file.
        """

    def refuse_missing(self, image_ids: Sequence[str]) -> None:
        """See that there will be regions of all these images, before a long run.

        Raises:
            InputDataError: a file does not list them all.
        """

    def identity(self) -> dict[str, Any]:
        """Everything that the boxes depend on, as JSON values."""


def choose(found: Candidates, choice: Choice) -> Candidates:
    """The best boxes: empty ones and low scores dropped, then of overlapping ones the better scored kept.

    Boxes are cut at the edges of the image. Those without scores keep their order, and overlapping ones stay.
    """
    boxes = np.clip(found.boxes, 0, 1)
    good = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if found.scores is None:
        rows = np.flatnonzero(good)
    else:
        rows = np.flatnonzero(good & (found.scores >= choice.min_score))
        # Sorted first: of equal scores the earlier box wins, on every device.
        rows = rows[np.argsort(-found.scores[rows], kind="stable")]
        ranks = torch.arange(len(rows), 0, -1, dtype=torch.float32)
        rows = rows[nms(torch.from_numpy(boxes[rows]), ranks, choice.overlap).numpy()]
    rows = rows[: choice.count]
    return Candidates(
        boxes[rows],
        None if found.scores is None else found.scores[rows],
        None if found.class_ids is None else found.class_ids[rows],
    )


def padded(chosen: Sequence[Candidates], count: int) -> Regions:
    """The regions of several images, filled up to ``count`` each."""
    size = len(chosen)
    regions = Regions(
        boxes=np.zeros((size, count, 4), np.float32),
        mask=np.zeros((size, count), np.bool_),
        scores=np.zeros((size, count), np.float32),
        class_ids=np.zeros((size, count), np.int64),
    )
    for row, one in enumerate(chosen):
        found = len(one.boxes)
        regions.boxes[row, :found] = one.boxes
        regions.mask[row, :found] = True
        if one.scores is not None:
            regions.scores[row, :found] = one.scores
        if one.class_ids is not None:
            regions.class_ids[row, :found] = one.class_ids
    return regions


def region_features(
    feature_map: Float[Tensor, "B D rows columns"], boxes: Float[Tensor, "B V 4"]
) -> Float32[Tensor, "B V D"]:
    """The mean of the feature map inside each box, by RoIAlign; boxes are fractions of the map's width and height.

    Boxes without an area, as those beyond an image's last region, give zeros.
    """
    batch, count, _ = boxes.shape
    rows, columns = feature_map.shape[2:]
    # In full precision: half of it would move the boxes by hundredths of a cell.
    boxes = boxes.float()
    scaled = boxes * boxes.new_tensor([columns, rows, columns, rows])
    cells = roi_align(feature_map.float(), list(scaled), ROI_CELLS, sampling_ratio=ROI_SAMPLES, aligned=True)
    means: Tensor = cells.mean(dim=(2, 3)).reshape(batch, count, -1)
    filled = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    return means * filled[..., None]
