"""A look at some images of a collection before, and of a store after its extraction."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from feature_extraction.batches import Batch, decode_batch
from feature_extraction.extract import Plan
from feature_extraction.images import ImageFile, ImageRejected, decode_image
from feature_extraction.pictures import contact_sheet, draw_boxes
from feature_extraction.store import FeatureStore
from feature_extraction.store_layout import Rejected

BOXES_SHOWN = 36  # in a picture of a preview
SHEET_IMAGES = 12


class Trial(NamedTuple):
    """What happened to some images of a collection, and how fast."""

    images: int
    rejected: list[Rejected]
    decoding_rate: float  # images per second of one decoding process
    encoding_rate: float  # images per second of the backbone and the detector; 0 where no image was usable

    def seconds(self, images: int, workers: int) -> float:
        """How long so many images would take, decoding beside encoding where there are workers."""
        decoding, encoding = images / self.decoding_rate, images / max(self.encoding_rate, 1e-9)
        return max(decoding / workers, encoding) if workers else decoding + encoding


def try_out(planned: Plan, batches: int = 2) -> Trial:
    """Decode and encode so many batches of images from all over the collection; writes nothing."""
    backbone, size = planned.backbone, planned.backbone.settings.batch_size
    chosen = spread(planned.images, batches * size)
    started = time.perf_counter()
    decoded = [
        decode_batch(Batch(0, False, chosen[at : at + size]), backbone.preparation)
        for at in range(0, len(chosen), size)
    ]
    decoding = time.perf_counter() - started
    usable = [(batch.images, batch.inputs) for batch in decoded if batch.inputs is not None]
    for images, inputs in usable[:1]:  # the first pass is slower than all others
        backbone.encode_inputs([image.image_id for image in images], inputs)
    started = time.perf_counter()
    for images, inputs in usable:
        backbone.encode_inputs([image.image_id for image in images], inputs)
    encoding = time.perf_counter() - started
    return Trial(
        images=len(chosen),
        rejected=[entry for batch in decoded for entry in batch.rejected],
        decoding_rate=len(chosen) / decoding,
        encoding_rate=sum(len(images) for images, _ in usable) / encoding if usable else 0.0,
    )


def spread(images: Sequence[ImageFile], count: int) -> list[ImageFile]:
    """At most so many of the images, at equal distances."""
    rows = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    return [images[row] for row in np.unique(rows)]
