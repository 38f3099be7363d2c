"""A look at some images of a collection before, and of a store after its extraction."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from feature_extraction.durable import write_durably
from feature_extraction.extract import Plan
from feature_extraction.images.batches import Batch, decode_batch
from feature_extraction.images.decoding import Decoding, ImageFile, ImageRejected, decode_image
from feature_extraction.images.pictures import contact_sheet, draw_boxes
from feature_extraction.store.layout import Rejected
from feature_extraction.store.reader import FeatureStore

SHEET_COLUMNS, SHEET_TILE = 4, 240  # pixels; a sheet shows three rows


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


def preview(planned: Plan, folder: Path, count: int) -> Iterator[Path]:
    """Draw the boxes of so many images, from all over the collection, as PNG files; gives each when it is written.

    Raises:
        DiskFullError: no space is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    backbone = planned.backbone
    for number, image in enumerate(spread(planned.images, count), start=1):
        try:
            pixels = decode_image(image, backbone.preparation.rules)
        except ImageRejected:  # a trial or the extraction names it
            continue
        found = backbone.encode([pixels], [image.image_id])
        # Ids are no file names: they may hold anything.
        path = folder / f"preview-{number:03d}.png"
        _save(_drawn(pixels, {name: array[0] for name, array in found.items()}), path)
        yield path


def draw_contact_sheet(store: FeatureStore, images: Sequence[ImageFile], path: Path) -> int:
    """Draw a dozen of a store's images with their boxes on one PNG, and give back how many there are.

    Raises:
        DiskFullError: no space is left.
    """
    exif = bool(store.identity.get("exif", True))
    tiles = []
    for image in spread([image for image in images if image.image_id in store], 3 * SHEET_COLUMNS):
        try:
            pixels = decode_image(image, Decoding(exif=exif, max_pixels=store.settings.max_pixels, tiff=True))
        except ImageRejected:  # it was readable once; the others still tell what is in the store
            continue
        tiles.append((_drawn(pixels, store.record(image.image_id)), image.image_id))
    if tiles:
        _save(contact_sheet(tiles, columns=SHEET_COLUMNS, tile=SHEET_TILE), path)
    return len(tiles)


def _drawn(pixels: UInt8[np.ndarray, "height width 3"], fields: Mapping[str, np.ndarray]) -> Image.Image:
    """An image with the boxes of its visual tokens; those of a detector with class and score."""
    shown = fields.get("mask", np.ones(len(fields["boxes"]), dtype=bool))
    known = [(fields[name], form) for name, form in (("class_ids", "{}"), ("scores", "{:.2f}")) if name in fields]
    labels = [" ".join(form.format(values[row]) for values, form in known) for row in np.flatnonzero(shown)]
    return draw_boxes(pixels, fields["boxes"][shown], labels)


def _save(picture: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_durably(path, buffer.getvalue())
