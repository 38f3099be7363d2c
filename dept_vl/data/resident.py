"""The features of a run's images kept on the device, so that batches carry rows in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dept_vl.command_line import say
from dept_vl.data.dataset import VisualSource
from dept_vl.types import Batch, Example
from feature_extraction.errors import UsageError
from feature_extraction.store.layout import StoredImage

SHARE_OF_FREE_MEMORY = 0.5  # that ``auto`` may take; the rest is for the model and its steps
_IMAGES_AT_ONCE = 512  # in the host's memory on their way: 75 MB of 36 x 2048 in float16
_MEMORY = Path("/proc/meminfo")  # of Linux

Examples = Sequence[tuple[VisualSource | None, Sequence[Example]]]  # of each task, with the store of their images
Images = Mapping[VisualSource, Sequence[str]]  # their ids, in the order of the store's shards


class ImageRows:
    """What stands in for a store whose features are on the device: it reads none, and knows the row of each image."""

    def __init__(self, store: VisualSource, rows: Mapping[str, int]) -> None:
        self.visual_tokens = store.visual_tokens
        self.feature_width = store.feature_width
        self._rows = rows
        self._nothing = StoredImage(
            np.empty((0, store.feature_width), np.float16), np.empty((0, 4), np.float32), np.empty(0, np.bool_)
        )

    def read(self, image_id: str) -> StoredImage:
        """No visual tokens."""
        return self._nothing

    def row(self, image_id: str) -> int:
        """Where the image's features are on the device."""
        return self._rows[image_id]


class ResidentFeatures:
    """The features of images on a device, in the type that the stores hold them in.

    A dataset that reads from ``source(store)`` gives batches with rows. Of these ``fill`` makes, bit for bit, the
    batches that it would have given from the store.
    """

    def __init__(
        self,
        features: Float[Tensor, "images V D"],
        boxes: Float[Tensor, "images V 4"],
        masks: Bool[Tensor, "images V"],
        sources: Mapping[VisualSource, ImageRows],
    ) -> None:
        self._features = features
        self._boxes = boxes
        self._masks = masks
        self._sources = sources

    def source(self, store: VisualSource | None) -> VisualSource | None:
        """What a dataset reads in place of a store; the store itself where none of its images is here."""
        return None if store is None else self._sources.get(store, store)

    def fill(self, batch: Batch) -> Batch:
        """The batch, which is on this device, with the features of its rows; without rows as it is."""
        rows = batch.image_rows
        if rows is None:
            return batch
        return replace(
            batch,
            visual_tokens=self._features[rows].float(),  # of these only: float32 of all would be twice the size
            boxes=self._boxes[rows],
            visual_mask=self._masks[rows],
            image_rows=None,
        )


def load_resident(examples: Examples, device: torch.device, *, setting: str, talks: bool) -> ResidentFeatures | None:
    """The features of all images that some examples use, on the device; None where each batch is to read its own.

    Args:
        setting: ``data.resident_features``. ``auto`` means a GPU of whose free memory they take half at most.
        talks: whether to tell the user.

    Raises:
        UsageError: the setting is ``on``, and they take more than the device has free.
    """
    images = _images(examples)
    if not images or setting == "off" or (setting == "auto" and device.type != "cuda"):
        return None
    count = sum(map(len, images.values()))
    needed = sum(len(ids) * sum(field.nbytes for field in store.read(ids[0])) for store, ids in images.items())
    free = _free_memory(device)
    they = f"The features of {count:,} images take {needed / 1e9:.2f} GB"
    if setting == "auto" and needed > SHARE_OF_FREE_MEMORY * free:
        if talks:
            say(f"{they}, more than half of the {free / 1e9:.2f} GB free on {device}: each batch reads its own")
        return None
    if needed > free:
        raise UsageError(
            f"{they}, but {device} has {free / 1e9:.2f} GB free, and data.resident_features is 'on'. Set "
            "data.resident_features to auto or off, and each batch reads its own, or take a device with more memory"
        )
    if talks:
        say(f"{they}: reading them onto {device}, once for all steps")
    return _load(images, device)


def _images(examples: Examples) -> Images:
    """The images of each store, each once; sorted, as a store's shards are."""
    wanted: dict[VisualSource, set[str]] = {}
    for store, some in examples:
        ids = {image_id for example in some for image_id in example.image_ids}
        if store is not None and ids:
            wanted.setdefault(store, set()).update(ids)
    return {store: sorted(ids) for store, ids in wanted.items()}


def _load(images: Images, device: torch.device) -> ResidentFeatures:
    """Read shard after shard, a few images at a time."""
    store, ids = next(iter(images.items()))
    count = sum(map(len, images.values()))
    arrays = [
        torch.empty((count, *field.shape), dtype=torch.from_numpy(field).dtype, device=device)
        for field in store.read(ids[0])
    ]
    sources, row = {}, 0
    for store, ids in images.items():
        sources[store] = ImageRows(store, dict(zip(ids, range(row, row + len(ids)), strict=True)))
        for first in range(0, len(ids), _IMAGES_AT_ONCE):
            some = [store.read(image_id) for image_id in ids[first : first + _IMAGES_AT_ONCE]]
            for array, fields in zip(arrays, zip(*some, strict=True), strict=True):
                array[row : row + len(some)] = torch.from_numpy(np.stack(fields))
            row += len(some)
    features, boxes, masks = arrays
    return ResidentFeatures(features, boxes, masks, sources)


def _free_memory(device: torch.device) -> float:
    """Bytes that the device has free; without limit where that cannot be told."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if not _MEMORY.exists():
        return float("inf")
    fields = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines())
    return float(fields["MemAvailable"].removesuffix("kB")) * 1024
