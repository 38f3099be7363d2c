"""Images → backbone → store, shard by shard, so that a stopped run goes on and ends in the same bytes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from feature_extraction.backbones import Backbone, build_backbone
from feature_extraction.disk import refuse_full_disk
from feature_extraction.errors import UsageError
from feature_extraction.images.batches import Batch, DecodedBatch, decoded_batches, shard_batches
from feature_extraction.images.decoding import ImageFile
from feature_extraction.images.sources import list_images
from feature_extraction.progress import Progress, to_stderr
from feature_extraction.self_test import self_test
from feature_extraction.settings import ExtractionSettings
from feature_extraction.shard_work import Say, Stop, Tolerance, stop_here, write_shards
from feature_extraction.store.layout import MANIFEST, Manifest, Rejected, StoredImages, plan
from feature_extraction.store.writer import StoreWriter

# Batches encoded beside each other. Each needs memory for its feature maps; on a GPU the second one's copies to and
# from the device overlap with the first one's arithmetic.
MOST_LANES, GPU_LANES = 8, 2


class Extraction(NamedTuple):
    """What a run found and did."""

    images: int  # asked for
    extracted: int  # by this process
    rejected: int  # in the finished shards of the store
    unfinished: int  # shards that other jobs are still to write
    seconds: float


class Plan(NamedTuple):
    """What a run would do."""

    images: Sequence[ImageFile]
    backbone: Backbone
    manifest: Manifest


@dataclass(frozen=True)
class Part:
    """Which shards are this process's: every ``count``-th, from ``index`` on.

    With ``strict`` it writes no others. Without, it begins with its own and then helps with what nobody is at.
    """

    index: int = 0
    count: int = 1
    strict: bool = False

    def of(self, shards: int) -> list[int]:
        """The numbers of the shards, in the order in which this process takes them."""
        mine = list(range(self.index, shards, self.count))
        return mine if self.strict else mine + sorted(set(range(shards)) - set(mine))

    @classmethod
    def named(cls, text: str) -> Part:
        """The part that ``i/n`` names, i counted from 0.

        Raises:
            UsageError: it names none.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UsageError(
                f"--shard is {text!r}; it is i/n with i from 0 to n - 1, as in --shard 0/4 for the first of four jobs"
            )
        return cls(int(index), int(count), strict=True)

    @classmethod
    def of_launcher(cls) -> Part:
        """The part of a process that torchrun or accelerate launched, or everything."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def plan_extraction(
    source: Path | str,
    settings: ExtractionSettings,
    *,
    image_column: str | None = None,
    id_column: str | None = None,
) -> Plan:
    """List the images and build the backbone; writes nothing."""
    images = list_images(source, image_column=image_column, id_column=id_column)
    backbone = build_backbone(settings, _device())
    # As options of the command line, so that a repair finds the images again.
    where = ["--images", str(source.absolute()) if isinstance(source, Path) else source]
    where += [] if image_column is None else ["--image-column", image_column]
    where += [] if id_column is None else ["--id-column", id_column]
    ids = [image.image_id for image in images]
    backbone.refuse_missing_regions(ids)
    manifest = plan(ids, settings, backbone.identity(), more=backbone.more_fields, source=where)
    return Plan(images, backbone, manifest)


def extract_features(
    source: Path | str,
    output: Path,
    settings: ExtractionSettings,
    *,
    max_rejected_fraction: float = 0.001,
    stop: Stop = lambda: False,
    say: Say = to_stderr,
) -> Extraction:
    """Extract images into a store, going on where a former run stopped, beside any other process on the same store.

    Args:
        source: see ``list_images``.
        output: the store's folder.
        settings: the backbone and what is kept of it.
        max_rejected_fraction: of all images, 0 to 1. More unusable images than this (and than TOLERATED) stop the run,
            and so do IN_A_ROW of them one after the other; 0 tolerates none, 1 any number.
        stop: asked after every batch; when it says True, the open shards are dropped and the run ends.
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
    planned: Plan,
    output: Path,
    *,
    part: Part | None = None,
    max_rejected_fraction: float,
    stop: Stop,
    say: Say,
) -> Extraction:
    """Do what ``plan_extraction`` found, or this process's part of it; see ``extract_features``."""
    mine = (part or Part.of_launcher()).of(planned.manifest.shards)
    check_space(planned, output)
    if not (output / MANIFEST).exists():  # hours of work may follow, with a backbone that nobody has tried
        say(f"Trying {planned.backbone.settings.backbone} on a few pictures")
        self_test(planned.backbone)
    started = time.monotonic()
    advice = "Mend them and run the same command with --retry-rejected, remove them and extract into a new folder"
    tolerance = Tolerance(images=planned.manifest.images, fraction=max_rejected_fraction, advice=advice)
    with StoreWriter(output, planned.manifest) as writer:

        def write_unclaimed(progress: Progress) -> int:
            return _write_unclaimed(planned, writer, mine, tolerance, progress, stop)

        done = write_shards(writer, mine, write_unclaimed, stop=stop, say=say)
        seconds = time.monotonic() - started
        return Extraction(len(planned.images), done.images, len(writer.rejected), done.unfinished, seconds)


def check_space(planned: Plan, output: Path) -> None:
    """See that the rest of the store fits on the disk.

    Raises:
        DiskFullError: it does not.
    """
    refuse_full_disk(output, planned.manifest.estimated_bytes, advice="lower features.grid")


def _write_unclaimed(
    planned: Plan,
    writer: StoreWriter,
    mine: Sequence[int],
    tolerance: Tolerance,
    progress: Progress,
    stop: Stop,
) -> int:
    """Write shards until nobody else has left any, and give back how many images they are about."""
    images, backbone, _ = planned
    extracted = 0
    parts: list[_Encoded] = []
    batches = _claimed_batches(images, writer, mine, backbone.settings.batch_size)
    decoded = decoded_batches(batches, backbone.preparation, workers=backbone.settings.workers)
    encoded = _encoded(decoded, backbone)
    with closing(decoded), closing(encoded):
        for part in encoded:
            stop_here(writer, stop)
            parts.append(part)
            tolerance.count(len(part.ids), part.rejected)
            progress.images_done(len(part.ids) + len(part.rejected), rejected=len(part.rejected))
            if part.last_of_shard:
                _write(writer, parts)
                parts = []
                extracted += len(writer.rows(part.shard))
                progress.shards_left(writer.missing, writer.rows)
                tolerance.check_store(writer)
    tolerance.check_store(writer)
    return extracted


def _claimed_batches(
    images: Sequence[ImageFile], writer: StoreWriter, mine: Sequence[int], batch_size: int
) -> Iterator[Batch]:
    """The batches of one shard after the other; a shard is claimed when its first batch is asked for."""
    while (number := writer.claim(mine)) is not None:
        rows = writer.rows(number)
        yield from shard_batches(number, images[rows.start : rows.stop], batch_size)


class _Encoded(NamedTuple):
    """The part of a shard that one batch gave."""

    shard: int
    last_of_shard: bool
    ids: list[str]
    images: StoredImages | None  # None where there are no ids
    rejected: list[Rejected]


def _encoded(decoded: Iterable[DecodedBatch], backbone: Backbone) -> Generator[_Encoded, None, None]:
    """The batches in their order, encoded several at a time.

    On a CPU, batches beside each other take less time than threads that share a batch and wait for each other at every
    operation: five times less on cores that have other work too.
    """
    threads = torch.get_num_threads()
    on_cpu = backbone.device.type == "cpu"
    lanes = min(threads, MOST_LANES) if on_cpu else GPU_LANES
    share = max(1, threads // lanes)
    with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(share,)) as pool:
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


def _device() -> torch.device:
    """The GPU of this process among those of its machine, where there is one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
