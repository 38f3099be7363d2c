"""Images → backbone → store, shard by shard, so that a stopped run goes on and ends in the same bytes."""

from __future__ import annotations

import errno
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float16
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from feature_extraction.backbones import Backbone, Preprocessing, build_backbone
from feature_extraction.errors import DiskFullError, InputDataError, Interrupted
from feature_extraction.images import ImageFile, ImageRejected, decode_image, list_images
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store import MANIFEST, REJECTED, Manifest, Rejected, StoreWriter, plan

TOLERATED = 10  # rejected images that never stop a run, unless none is to be tolerated


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
        tokens, width = self.manifest.visual_tokens, self.manifest.feature_width
        per_image = tokens * (2 * width + 4 * 4) + 100  # float16 features, float32 boxes, a line of the index
        return len(self.images) * per_image


class DecodedBatch(NamedTuple):
    """One batch of a shard, as a decoding process hands it over."""

    shard: int
    images: list[ImageFile]
    pixels: torch.Tensor  # uint8 [n size size 3]
    rejected: list[Rejected]
    last: bool  # of its shard


def to_stderr(line: str) -> None:
    """Write one line for the user; standard output is left to results."""
    sys.stderr.write(line + "\n")


def plan_extraction(source: Path, settings: ExtractionSettings) -> Plan:
    """List the images and build the backbone; writes nothing."""
    images = list_images(source)
    backbone = build_backbone(settings)
    return Plan(images, backbone, plan(images, settings, backbone.identity()))


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
    settings = backbone.settings
    started = time.monotonic()
    finished_before = (output / MANIFEST).exists()
    writer = StoreWriter(output, manifest)
    missing = writer.missing
    done = manifest.shards - len(missing)
    if finished_before and missing:
        say(f"Resuming: {done}/{manifest.shards} shards done")
    _refuse_full_disk(output, planned.bytes * len(missing) // manifest.shards)

    wanted = sum(len(_rows(number, manifest)) for number in missing)
    allowed = _allowed_rejections(manifest.images, max_rejected_fraction)
    with Progress(total=wanted, say=say) as progress:
        features: list[Float16[np.ndarray, "B V D"]] = []
        ids: list[str] = []
        rejected: list[Rejected] = []
        for batch in _decoded(images, missing, manifest, settings, backbone.preprocessing):
            if stop():
                done = manifest.shards - len(writer.missing)
                raise Interrupted(f"{done}/{manifest.shards} shards of {output} are done. The same command goes on")
            tokens = backbone.encode_pixels(batch.pixels)
            finite = np.isfinite(tokens).all(axis=(1, 2))
            features.append(tokens[finite])
            ids += [image.image_id for image, good in zip(batch.images, finite, strict=True) if good]
            rejected += batch.rejected
            rejected += [_not_finite(image) for image, good in zip(batch.images, finite, strict=True) if not good]
            progress.advance(len(batch.images) + len(batch.rejected), rejected=len(writer.rejected) + len(rejected))
            if not batch.last:
                continue
            boxes = np.broadcast_to(backbone.boxes, (len(ids), *backbone.boxes.shape))
            writer.write(batch.shard, ids, np.concatenate(features), np.ascontiguousarray(boxes), rejected)
            progress.shard_done(manifest.shards - len(writer.missing), manifest.shards)
            features, ids, rejected = [], [], []
            if len(writer.rejected) > allowed:
                writer.list_rejected()
                raise InputDataError(_too_many_rejected(writer, allowed, manifest.images))
    writer.finish()
    return Extraction(manifest.images, wanted, len(writer.rejected), time.monotonic() - started)


class Progress:
    """Images per second, time left and rejected images: a bar on a terminal, else a line for each shard."""

    def __init__(self, *, total: int, say: Callable[[str], None]) -> None:
        self._total, self._say = total, say
        self._bar = tqdm(total=total, unit=" images", file=sys.stderr, disable=not sys.stderr.isatty() or not total)
        self._done, self._rejected, self._started = 0, 0, time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def advance(self, images: int, *, rejected: int) -> None:
        """Count images that are done, and the rejected ones of the whole store."""
        self._done, self._rejected = self._done + images, rejected
        self._bar.set_postfix_str(f"{rejected} rejected", refresh=False)
        self._bar.update(images)

    def shard_done(self, done: int, shards: int) -> None:
        """Report a shard that is safely on disk."""
        if self._bar.disable:
            rate = self._done / max(time.monotonic() - self._started, 1e-9)
            left = (self._total - self._done) / rate
            self._say(
                f"shard {done}/{shards}: {self._done:,} of {self._total:,} images, {rate:,.0f} images/s, "
                f"{tqdm.format_interval(left)} left, {self._rejected} rejected"
            )


class _Batches(Dataset[DecodedBatch]):
    """Decodes one fixed batch per item; what a batch holds does not depend on what is done already."""

    def __init__(
        self, images: Sequence[ImageFile], shards: Sequence[int], manifest: Manifest, size: int, pixels: Preprocessing
    ) -> None:
        self._images, self._preprocessing = images, pixels
        self._slices = [
            (shard, rows[at : at + size], at + size >= len(rows))
            for shard in shards
            for rows in [_rows(shard, manifest)]
            for at in range(0, len(rows), size)
        ]

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, index: int) -> DecodedBatch:
        shard, rows, last = self._slices[index]
        side = self._preprocessing.image_size
        pixels = np.zeros((len(rows), side, side, 3), dtype=np.uint8)
        images: list[ImageFile] = []
        rejected: list[Rejected] = []
        for row in rows:
            image = self._images[row]
            try:
                pixels[len(images)] = self._preprocessing.resize(decode_image(image.path))
            except ImageRejected as error:
                rejected.append(Rejected(image.image_id, str(image.path), str(error)))
            else:
                images.append(image)
        return DecodedBatch(shard, images, torch.from_numpy(pixels[: len(images)]), rejected, last)


def _decoded(
    images: Sequence[ImageFile],
    shards: Sequence[int],
    manifest: Manifest,
    settings: ExtractionSettings,
    preprocessing: Preprocessing,
) -> Iterator[DecodedBatch]:
    batches = _Batches(images, shards, manifest, settings.batch_size, preprocessing)
    workers = min(settings.workers, len(batches))
    loader: DataLoader[DecodedBatch] = DataLoader(
        batches, batch_size=None, num_workers=workers, worker_init_fn=_leave_signals_to_the_main_process
    )
    return iter(loader)


def _leave_signals_to_the_main_process(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _rows(shard: int, manifest: Manifest) -> range:
    return range(shard * manifest.shard_size, min((shard + 1) * manifest.shard_size, manifest.images))


def _not_finite(image: ImageFile) -> Rejected:
    reason = f"{image.path}: its features are not finite numbers in float16 (NaN, or beyond 65,504)"
    return Rejected(image.image_id, str(image.path), reason)


def _allowed_rejections(images: int, fraction: float) -> int:
    return max(TOLERATED, int(images * fraction)) if fraction > 0 else 0


def _too_many_rejected(writer: StoreWriter, allowed: int, images: int) -> str:
    first = "; ".join(entry.reason for entry in writer.rejected[:3])
    return (
        f"{len(writer.rejected)} of {images:,} images cannot be used, more than the {allowed} that are tolerated. "
        f"The first: {first}. All so far are listed in {writer.path / REJECTED}. Mend or remove them and extract into "
        "a new store, or raise --max-rejected-fraction and run the same command again"
    )


def _refuse_full_disk(output: Path, needed: int) -> None:
    free = shutil.disk_usage(output).free
    if free < 1.1 * needed:
        raise DiskFullError(
            errno.ENOSPC,
            f"{output} needs {needed / 1e9:.1f} GB and a tenth more, but only {free / 1e9:.1f} GB are free. Nothing "
            "was extracted: free some space, give another --output, or lower features.grid",
        )
