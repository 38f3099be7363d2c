"""Features of another tool → store, shard by shard, so that a stopped run goes on and ends in the same bytes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from feature_extraction.disk import refuse_full_disk
from feature_extraction.interchange.image_arrays import Look, Unusable
from feature_extraction.interchange.shape import ImportSettings, check_settings, choose_shape
from feature_extraction.interchange.sources import Sources, guess_format, open_source
from feature_extraction.progress import Progress, to_stderr
from feature_extraction.settings import ExtractionSettings
from feature_extraction.shard_work import Say, Stop, Tolerance, stop_here, write_shards
from feature_extraction.store.layout import LAYOUT_VERSION, Manifest, Rejected, StoredImages, more_fields, plan
from feature_extraction.store.writer import StoreWriter
from feature_extraction.towers.cells import cell_boxes


class ImportPlan(NamedTuple):
    """What an import would do."""

    sources: Sources
    manifest: Manifest
    boxes: str  # regions, cells or zeros
    rejected: Mapping[str, Rejected]  # by image id: what cannot be used, as far as known without reading it
    max_rejected_fraction: float  # of all images


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
    _tolerance(len(sources.ids), settings.max_rejected_fraction).check(list(rejected.values()))
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
    return ImportPlan(sources, manifest, shape.boxes, rejected, settings.max_rejected_fraction)


def run_import(planned: ImportPlan, output: Path, *, stop: Stop = lambda: False, say: Say = to_stderr) -> Imported:
    """Do what ``plan_import`` found; see ``import_features``."""
    started = time.monotonic()
    manifest = planned.manifest
    refuse_full_disk(output, planned.manifest.estimated_bytes, advice="halve float32 features by --dtype float16")
    tolerance = _tolerance(manifest.images, planned.max_rejected_fraction)
    shards = range(manifest.shards)
    with StoreWriter(output, manifest) as writer:

        def write_unclaimed(progress: Progress) -> int:
            images = 0
            while (number := writer.claim(shards)) is not None:
                images += _write_shard(planned, writer, number, tolerance, progress, stop)
            return images

        done = write_shards(writer, shards, write_unclaimed, stop=stop, say=say)
        return Imported(manifest.images, done.images, len(writer.rejected), time.monotonic() - started)


def _write_shard(
    planned: ImportPlan, writer: StoreWriter, number: int, tolerance: Tolerance, progress: Progress, stop: Stop
) -> int:
    """Read the images of a shard and write it, and give back how many images it is about."""
    rows = writer.rows(number)
    ids = planned.sources.ids[rows.start : rows.stop]
    arrays = {name: np.zeros((len(ids), *field.shape), field.dtype) for name, field in writer.manifest.fields.items()}
    good: list[str] = []
    rejected: list[Rejected] = []
    for image_id in ids:
        stop_here(writer, stop)
        entry = planned.rejected.get(image_id)
        if entry is None:
            try:
                _read_into(arrays, len(good), planned, image_id)
                good.append(image_id)
            except Unusable as reason:
                entry = _rejected(planned.sources, image_id, str(reason))
        if entry is not None:
            rejected.append(entry)
            tolerance.check([*writer.rejected, *rejected])
        tolerance.count(int(entry is None), [] if entry is None else [entry])
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
    features, dtype = found["features"], arrays["features"].dtype
    count = len(features)
    if features.dtype != dtype:
        with np.errstate(over="ignore"):  # what is too large becomes infinite
            found["features"] = features.astype(dtype)
        if not np.isfinite(found["features"]).all():
            raise Unusable(f"features reach {np.abs(features).max():.4g}, too large for {dtype}")
    if planned.boxes == "cells":
        found["boxes"] = cell_boxes(rows=math.isqrt(count), columns=math.isqrt(count))
    if "mask" in arrays:
        found.setdefault("mask", np.ones(count, np.bool_))
    for name in arrays.keys() & found.keys():
        rows = slice(None) if name == "image_size" else slice(count)
        arrays[name][row, rows] = found[name]


def _rejected(sources: Sources, image_id: str, reason: str) -> Rejected:
    place = sources.place(image_id)
    return Rejected(image_id, place, f"{place}: {reason}")


def _tolerance(images: int, fraction: float) -> Tolerance:
    advice = "Get their features anew and run the same command with --retry-rejected, leave them out of the source"
    return Tolerance(images=images, fraction=fraction, advice=advice)


def _as_options(paths: Sequence[Path], settings: ImportSettings) -> list[str]:
    """The options of the command line that make the same store again, so that a repair finds the features."""
    given = {name: value for name, value in settings._asdict().items() if value is not None}
    options = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return ["--source", *(str(path.absolute()) for path in paths), *options]
