"""The fixed batches of a store's shards, decoded and resized in worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from feature_extraction.images import ImageFile, ImageRejected, decode_image
from feature_extraction.store_layout import Rejected
from feature_extraction.store_writer import StoreWriter
from feature_extraction.tower import Preprocessing


class DecodedBatch(NamedTuple):
    """The usable images of one batch, and the others."""

    shard: int
    last_of_shard: bool
    images: list[ImageFile]
    pixels: UInt8[Tensor, "B size size 3"]
    rejected: list[Rejected]


class _Batches(Dataset[DecodedBatch]):
    """The batches of the missing shards; an item does not depend on what else is missing, or on who decodes it."""

    def __init__(self, images: Sequence[ImageFile], writer: StoreWriter, size: int, pixels: Preprocessing) -> None:
        self._images, self._preprocessing = images, pixels
        self._batches = [
            (number, rows[start : start + size], start + size >= len(rows))
            for number in writer.missing
            for rows in [writer.rows(number)]
            for start in range(0, len(rows), size)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> DecodedBatch:
        shard, rows, last = self._batches[index]
        side = self._preprocessing.image_size
        pixels = np.empty((len(rows), side, side, 3), dtype=np.uint8)
        images: list[ImageFile] = []
        rejected: list[Rejected] = []
        for image in self._images[rows.start : rows.stop]:
            try:
                pixels[len(images)] = self._preprocessing.resize(decode_image(image.path))
            except ImageRejected as error:
                rejected.append(Rejected(image.image_id, str(image.path), str(error)))
            else:
                images.append(image)
        return DecodedBatch(shard, last, images, torch.from_numpy(pixels[: len(images)]), rejected)


def decoded_batches(
    images: Sequence[ImageFile], writer: StoreWriter, *, batch_size: int, workers: int, preprocessing: Preprocessing
) -> Iterator[DecodedBatch]:
    """The batches of all missing shards, in order; with ``workers`` 0 decoded in this process.

    Raises:
        MemoryError: the system killed a worker.
    """
    batches = _Batches(images, writer, batch_size, preprocessing)
    loader: DataLoader[DecodedBatch] = DataLoader(
        batches,
        batch_size=None,
        num_workers=min(workers, len(batches)),
        worker_init_fn=_leave_signals_to_the_main_process,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise MemoryError(
            f"A decoding process was killed, as systems do when memory runs out ({' '.join(str(error).split())}). "
            "The finished shards stay: run the same command again with a lower features.workers"
        ) from error


def _leave_signals_to_the_main_process(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
