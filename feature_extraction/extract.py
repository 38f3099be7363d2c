"""Images → backbone → store, shard by shard, so that a stopped run goes on and ends in the same bytes."""

from __future__ import annotations

import errno
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from feature_extraction.backbones import Backbone, build_backbone
from feature_extraction.batches import DecodedBatch, decoded_batches, plan_batches
from feature_extraction.errors import DiskFullError, InputDataError, Interrupted
from feature_extraction.image_sources import list_images
from feature_extraction.images import ImageFile
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store_layout import Manifest, Rejected, StoredImages, plan
from feature_extraction.store_writer import StoreWriter

TOLERATED = 10  # rejected images that never stop a run, unless none is to be tolerated

MOST_LANES = 8  # batches encoded beside each other on a CPU; each needs memory for its feature maps


class Extraction(NamedTuple):
    """What a run found and did."""

    images: int  # asked for
    extracted: int  # by this run
    rejected: int  # in the whole store
    seconds: float


class Plan(NamedTuple):
    """What a run would do."""

    images: Sequence[ImageFile]
    backbone: Backbone
    manifest: Manifest

    @property
    def bytes(self) -> int:
        """The estimated size of the finished store."""
        return len(self.images) * (self.manifest.bytes_per_image + 100)  # with a line of the index


def to_stderr(line: str) -> None:
    """Write one line for the user; standard output is left to results."""
    sys.stderr.write(line + "\n")


def plan_extraction(source: Path, settings: ExtractionSettings) -> Plan:
    """List the images and build the backbone; writes nothing."""
    images = list_images(source)
    backbone = build_backbone(settings)
    ids = [image.image_id for image in images]
    from_where = [str(source.absolute())]
    manifest = plan(ids, settings, backbone.identity(), more=backbone.more_fields, source=from_where)
    return Plan(images, backbone, manifest)


def extract_features(
    source: Path,
    output: Path,
    settings: ExtractionSettings,
    *,
    max_rejected_fraction: float = 0.001,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = to_stderr,
) -> Extraction:
    """Extract the images of a folder or list into a store, going on where a former run stopped.

    Args:
        source: see ``list_images``.
        output: the store's folder.
        settings: the backbone and what is kept of it.
        max_rejected_fraction: of all images, 0 to 1. More unusable images than this (and than TOLERATED) stop the run;
            0 tolerates none.
        stop: asked after every batch; when it says True, the current shard is dropped and the run ends.
        say: takes one line for the user.

    Raises:
        InputDataError: no images, ids that occur twice, or too many unusable images.
        IncompatibleError: the store holds other features.
        DiskFullError: no space, before or while writing; finished shards stay.
        Interrupted: ``stop`` said so.
    """
    planned = plan_extraction(source, settings)
    return run_plan(planned, output, max_rejected_fraction=max_rejected_fraction, stop=stop, say=say)


def run_plan(
    planned: Plan, output: Path, *, max_rejected_fraction: float, stop: Callable[[], bool], say: Callable[[str], None]
) -> Extraction:
    """Do what ``plan_extraction`` found; see ``extract_features``."""
    images, backbone, manifest = planned
    started = time.monotonic()
    _refuse_full_disk(output, planned.bytes)
    writer = StoreWriter(output, manifest)
    missing = writer.missing
    if writer.resumed and missing:
        say(f"Resuming: {manifest.shards - len(missing)}/{manifest.shards} shards done")

    allowed = max(TOLERATED, int(max_rejected_fraction * len(images))) if max_rejected_fraction > 0 else 0
    wanted = sum(len(writer.rows(number)) for number in missing)
    parts: list[_Encoded] = []
    batches = plan_batches(images, writer, backbone.settings.batch_size)
    decoded = decoded_batches(batches, backbone.preparation, workers=backbone.settings.workers)
    encoded = _encoded(decoded, backbone)
    with closing(decoded), closing(encoded), Progress(total=wanted, shards=len(missing), say=say) as progress:
        for part in encoded:
            if stop():
                raise Interrupted(
                    f"{manifest.shards - len(writer.missing)}/{manifest.shards} shards of {output} are done. "
                    "The same command goes on"
                )
            parts.append(part)
            progress.images_done(len(part.ids) + len(part.rejected), rejected=len(part.rejected))
            if part.last_of_shard:
                _write(writer, parts)
                parts = []
                progress.shard_done()
                _refuse_too_many_rejected(writer, allowed)
    _refuse_too_many_rejected(writer, allowed)
    writer.finish()
    return Extraction(len(images), wanted, len(writer.rejected), time.monotonic() - started)


class Progress:
    """Images per second, time left and rejected images: a bar on a terminal, else a line for each shard."""

    def __init__(self, *, total: int, shards: int, say: Callable[[str], None]) -> None:
        self._total, self._shards, self._say = total, shards, say
        self._images_done = self._shards_done = self._rejected = 0
        self._started = time.monotonic()
        on_terminal = sys.stderr.isatty() and total > 0
        self._bar = tqdm(total=total, unit=" images", file=sys.stderr, disable=not on_terminal)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def images_done(self, images: int, *, rejected: int) -> None:
        """Count a batch, and the rejected images in it."""
        self._images_done += images
        self._rejected += rejected
        self._bar.set_postfix_str(f"{self._rejected} rejected", refresh=False)
        self._bar.update(images)

    def shard_done(self) -> None:
        """Count a shard that is safely on disk."""
        self._shards_done += 1
        if self._bar.disable:
            rate = self._images_done / max(time.monotonic() - self._started, 1e-9)
            left = tqdm.format_interval((self._total - self._images_done) / rate)
            self._say(
                f"{self._images_done:,}/{self._total:,} images, {self._shards_done}/{self._shards} shards, "
                f"{rate:,.0f} images/s, {left} left, {self._rejected} rejected"
            )


class _Encoded(NamedTuple):
    """The part of a shard that one batch gave."""

    shard: int
    last_of_shard: bool
    ids: list[str]
    images: StoredImages | None  # None where there are no ids
    rejected: list[Rejected]


def _encoded(decoded: Iterable[DecodedBatch], backbone: Backbone) -> Generator[_Encoded, None, None]:
    """The batches in their order, encoded several at a time on a CPU.

    There, batches beside each other take less time than threads that share a batch and wait for each other at every
    operation: five times less on cores that have other work too.
    """
    threads = torch.get_num_threads()
    lanes = min(threads, MOST_LANES) if backbone.device.type == "cpu" else 1
    with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(threads // lanes,)) as pool:
        try:
            under_way: deque[Future[_Encoded]] = deque()
            for batch in decoded:
                under_way.append(pool.submit(_encode, batch, backbone))
                if len(under_way) > lanes:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            torch.set_num_threads(threads)


def _encode(batch: DecodedBatch, backbone: Backbone) -> _Encoded:
    if batch.inputs is None:
        return _Encoded(batch.shard, batch.last_of_shard, [], None, batch.rejected)
    found = backbone.encode_inputs([image.image_id for image in batch.images], batch.inputs)
    finite = [bool(np.isfinite(features).all()) for features in found["features"]]
    ids = [image.image_id for image, good in zip(batch.images, finite, strict=True) if good]
    not_finite = [
        Rejected(image.image_id, image.name, f"{image.name}: its features are NaN or too large for float16")
        for image, good in zip(batch.images, finite, strict=True)
        if not good
    ]
    images = {name: array[finite] for name, array in found.items()} if ids else None
    return _Encoded(batch.shard, batch.last_of_shard, ids, images, batch.rejected + not_finite)


def _write(writer: StoreWriter, parts: Sequence[_Encoded]) -> None:
    usable = [part.images for part in parts if part.images is not None]
    images = {
        name: np.concatenate([np.empty((0, *field.shape), field.dtype), *(part[name] for part in usable)])
        for name, field in writer.manifest.fields.items()
    }
    ids = [image_id for part in parts for image_id in part.ids]
    rejected = [entry for part in parts for entry in part.rejected]
    writer.write(parts[0].shard, ids, images, rejected)


def _refuse_too_many_rejected(writer: StoreWriter, allowed: int) -> None:
    rejected = writer.rejected
    if len(rejected) > min(allowed, writer.manifest.images - 1):
        first = "; ".join(entry.reason for entry in rejected[:3])
        raise InputDataError(
            f"{len(rejected)} of {writer.manifest.images:,} images cannot be used; at most {allowed} may be so, and "
            f"not all. The first: {first}. All are listed in {writer.list_rejected()}. Mend or remove them and extract "
            "into a new folder, or run the same command with a higher --max-rejected-fraction"
        )


def _refuse_full_disk(output: Path, needed: int) -> None:
    there = sum(file.stat().st_size for file in output.glob("*")) if output.is_dir() else 0
    folder = next(parent for parent in [output, *output.absolute().parents] if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < 1.1 * (needed - there):
        raise DiskFullError(
            errno.ENOSPC,
            f"{output} needs {1.1 * (needed - there) / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free. Nothing was "
            "written: free some space, give another --output, or lower features.grid",
        )
