"""Features of another tool → store, shard by shard, so that a stopped run goes on and ends in the same bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from feature_extraction.cells import cell_boxes
from feature_extraction.errors import InputDataError, Interrupted
from feature_extraction.interchange.disk import refuse_full_disk
from feature_extraction.interchange.image_arrays import Look, Unusable
from feature_extraction.interchange.shape import ImportSettings, check_settings, choose_shape
from feature_extraction.interchange.sources import Sources, Stop, guess_format, open_source
from feature_extraction.progress import Progress, to_stderr
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store_layout import LAYOUT_VERSION, Manifest, Rejected, StoredImages, more_fields, plan
from feature_extraction.store_writer import StoreWriter

TOLERATED = 10  # unusable images that never stop a run, unless none is to be tolerated; as in an extraction
POLL = 1.0  # seconds between looks at shards that other processes are writing

Say = Callable[[str], None]


class ImportPlan(NamedTuple):
    """What an import would do."""

    sources: Sources
    manifest: Manifest
    boxes: str  # regions, cells or zeros
    rejected: Mapping[str, Rejected]  # by image id: what cannot be used, as far as known without reading it
    allowed: int  # unusable images

    @property
    def bytes(self) -> int:
        """The estimated size of the finished store."""
        return self.manifest.images * (self.manifest.bytes_per_image + 100)  # with a line of the index


class Imported(NamedTuple):
    """What an import found and did."""

    images: int
    imported: int  # by this process
    rejected: int  # in the whole store
    seconds: float


def import_features(
    paths: Sequence[Path],
    output: Path,
    settings: ImportSettings,
    *,
    stop: Stop = lambda: False,
    say: Say = to_stderr,
) -> Imported:
    """Bring the features in files or folders into a store, going on where a former run stopped.

    Features stay as they are to the last bit, unless ``settings.dtype`` says otherwise. Boxes become fractions of width
    and height. Images with fewer visual tokens than others are filled up with zeros and masked.

    Args:
        paths: see ``sources.FORMATS``.
        output: the store's folder.
        settings: what to make of the features.
        stop: asked before every image; when it says True, the open shard is dropped and the run ends.
        say: takes one line for the user.

    Raises:
        UsageError: settings that do not fit the features.
        InputDataError: no features, ids that occur twice, or too many unusable images.
        IncompatibleError: the store holds other features.
        DiskFullError: no space, before or while writing; finished shards stay.
        Interrupted: ``stop`` said so.
    """
    return run_import(plan_import(paths, settings, stop=stop, say=say), output, stop=stop, say=say)


def plan_import(
    paths: Sequence[Path], settings: ImportSettings, *, stop: Stop = lambda: False, say: Say = to_stderr
) -> ImportPlan:
    """List the images and choose the shape of the store; writes nothing."""
    check_settings(settings)
    formats = [settings.format or guess_format(path) for path in paths]
    parts = []
    for path, format_name in zip(paths, formats, strict=True):
        say(f"Listing the images of {path} ({format_name})")
        parts.append(open_source(path, format_name, stop))
    sources = Sources(parts)
    shape = choose_shape(sources, settings)
    rejected, fewer = {}, False  # fewer visual tokens than the store has
    for image_id in sources.ids:
        look = sources.look(image_id)
        reason = shape.oddity(look)
        if reason is not None:
            rejected[image_id] = _rejected(sources, image_id, reason)
        elif isinstance(look, Look):
            fewer = fewer or look.tokens < shape.tokens
    fraction = settings.max_rejected_fraction
    allowed = max(TOLERATED, int(fraction * len(sources.ids))) if fraction > 0 else 0
    _refuse_too_many(list(rejected.values()), len(sources.ids), allowed)
    manifest = plan(
        sources.ids,
        ExtractionSettings(backbone=f"imported/{settings.name}", shard_size=settings.shard_size),
        {
            # No digest of the files: those of other images, made by the same network, must have the same identity.
            "backbone": f"imported/{settings.name}",
            "boxes": shape.boxes,
            "visual_tokens": shape.tokens,
            "feature_width": shape.width,
            "dtype": shape.dtype,
            "layout_version": LAYOUT_VERSION,
        },
        more=more_fields((shape.fields - {"boxes"}) | ({"mask"} if fewer else set()), shape.tokens),
        source=_as_options(paths, settings),
    )
    return ImportPlan(sources, manifest, shape.boxes, rejected, allowed)


def run_import(planned: ImportPlan, output: Path, *, stop: Stop = lambda: False, say: Say = to_stderr) -> Imported:
    """Do what ``plan_import`` found; see ``import_features``."""
    started = time.monotonic()
    manifest = planned.manifest
    there = sum(file.stat().st_size for file in output.glob("*")) if output.is_dir() else 0
    refuse_full_disk(output, planned.bytes - there, advice="halve float32 features by --dtype float16")
    imported = 0
    with StoreWriter(output, manifest) as writer:
        missing = writer.missing
        if writer.resumed and missing:
            say(f"Resuming: {manifest.shards - len(missing)}/{manifest.shards} shards done")
        total = sum(len(writer.rows(number)) for number in missing)
        with Progress(images=total, shards=len(missing), say=say) as progress:
            while True:
                while (number := writer.claim(range(manifest.shards))) is not None:
                    imported += _import_shard(planned, writer, number, progress, stop)
                if not writer.missing:
                    break
                progress.wait(writer.others())
                _sleep(POLL, writer, stop)
        writer.finish()
        return Imported(manifest.images, imported, len(writer.rejected), time.monotonic() - started)


def _import_shard(planned: ImportPlan, writer: StoreWriter, number: int, progress: Progress, stop: Stop) -> int:
    """Write a shard, and give back how many images it is about."""
    rows = writer.rows(number)
    ids = planned.sources.ids[rows.start : rows.stop]
    arrays = {name: np.zeros((len(ids), *field.shape), field.dtype) for name, field in writer.manifest.fields.items()}
    good: list[str] = []
    rejected: list[Rejected] = []
    for image_id in ids:
        if stop():
            raise Interrupted(_how_far(writer))
        entry = planned.rejected.get(image_id)
        if entry is None:
            try:
                _read_into(arrays, len(good), planned, image_id)
                good.append(image_id)
            except Unusable as reason:
                entry = _rejected(planned.sources, image_id, str(reason))
        if entry is not None:
            rejected.append(entry)
            _refuse_too_many([*writer.rejected, *rejected], writer.manifest.images, planned.allowed)
        progress.images_done(1, rejected=int(entry is not None))
    writer.write(number, good, {name: array[: len(good)] for name, array in arrays.items()}, rejected)
    progress.shards_left(writer.missing, writer.rows)
    return len(ids)


def _read_into(arrays: StoredImages, row: int, planned: ImportPlan, image_id: str) -> None:
    """Bring an image into a row of a shard's arrays, which is zero until then.

    Raises:
        Unusable: see ``Sources.read``; or its features are too large for float16.
    """
    found = planned.sources.read(image_id)
    count = len(found["features"])
    dtype = arrays["features"].dtype
    with np.errstate(over="ignore"):
        features = found["features"].astype(dtype, copy=False)
    if not np.isfinite(features).all():
        raise Unusable(f"features reach {np.abs(found['features']).max():.4g}, too large for {dtype}")
    if planned.boxes == "cells":
        side = math.isqrt(count)
        found["boxes"] = cell_boxes(rows=side, columns=side)
    if "mask" in arrays:
        found.setdefault("mask", np.ones(count, np.bool_))
    for name in arrays.keys() & found.keys():
        array = features if name == "features" else found[name]
        arrays[name][row] = array if name == "image_size" else 0
        if name != "image_size":
            arrays[name][row, :count] = array


def _rejected(sources: Sources, image_id: str, reason: str) -> Rejected:
    place = sources.place(image_id)
    return Rejected(image_id, place, f"{place}: {reason}")


def _refuse_too_many(rejected: Sequence[Rejected], images: int, allowed: int) -> None:
    if len(rejected) > min(allowed, images - 1):
        first = "; ".join(entry.reason for entry in rejected[:3])
        raise InputDataError(
            f"{len(rejected)} of {images:,} images cannot be used; at most {allowed} may be so, and not all. The "
            f"first: {first}. Get their features anew, or leave them out by a higher --max-rejected-fraction"
        )


def _sleep(seconds: float, writer: StoreWriter, stop: Stop) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if stop():
            raise Interrupted(_how_far(writer))
        time.sleep(0.05)


def _how_far(writer: StoreWriter) -> str:
    shards = writer.manifest.shards
    return f"{shards - len(writer.missing)}/{shards} shards of {writer.path} are done. The same command goes on"


def _as_options(paths: Sequence[Path], settings: ImportSettings) -> list[str]:
    """The options of the command line that make the same store again, so that a repair finds the features."""
    given = {name: value for name, value in settings._asdict().items() if value is not None}
    options = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return ["--source", *(str(path.absolute()) for path in paths), *options]
