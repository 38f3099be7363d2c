"""Store → VL-T5's HDF5 file, so that others can use our features.

VL-T5 wants float32 features, boxes in pixels, and the same number of visual tokens for all images: its ``--n_boxes``.
It knows no mask. Masked visual tokens are written as the store holds them, zeros where an image has fewer regions, and
a ``mask`` beside them, which VL-T5 does not read. What the store does not know of ids and scores is written as zeros.
"""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from feature_extraction.disk import refuse_full_disk
from feature_extraction.durable import PARTIAL_SUFFIX, remove, sync_directory
from feature_extraction.errors import DiskFullError, InputDataError, Interrupted
from feature_extraction.interchange.image_arrays import VL_T5_NAMES
from feature_extraction.interchange.vl_t5 import DATASETS
from feature_extraction.progress import Progress, to_stderr
from feature_extraction.shard_work import Say, Stop
from feature_extraction.store.layout import MORE_FIELDS
from feature_extraction.store.reader import FeatureStore

OVERHEAD = 4096  # bytes per image of HDF5's own, more than ever seen


class Exported(NamedTuple):
    """What an export wrote."""

    images: int
    masked: int  # images with visual tokens that show nothing
    seconds: float


def check_export(store: FeatureStore, file: Path) -> int:
    """The bytes that the file will take, if the store can be exported at all.

    Raises:
        InputDataError: the file exists, there is no folder for it, boxes cannot be told in pixels, or HDF5 cannot hold
            an image id.
        DiskFullError: there is no space.
    """
    if file.exists():
        raise InputDataError(f"{file} exists. Give a new file as --output, or delete this one")
    if not file.parent.is_dir():
        raise InputDataError(f"{file.parent} is no folder. Make it, or give another --output")
    if len(store) and "image_size" not in store.record(store.ids[0]):
        raise InputDataError(
            f"{store.path} does not know how large its images are, so that boxes cannot be told in pixels, as VL-T5 "
            "wants them. Extract the images again: python -m dept_vl.extract --images DIR --output STORE"
        )
    _refuse_names(store.ids)
    numbers = store.visual_tokens * (store.feature_width + 4 + 2 * len(VL_T5_NAMES))  # of four bytes
    size = len(store) * (4 * numbers + OVERHEAD)
    refuse_full_disk(file, size, advice="export a store of fewer images")
    return size


def export_vl_t5(
    store: FeatureStore,
    file: Path,
    *,
    stop: Stop = lambda: False,
    say: Say = to_stderr,
) -> Exported:
    """Write the features of a store as VL-T5 reads them. The store is verified, since HDF5 keeps no digests.

    The file appears when it is whole.

    Raises:
        InputDataError, DiskFullError: see ``check_export``; or the disk fills up while writing.
        DamagedError: the store is not what was written.
        Interrupted: ``stop`` said so; there is no file.
    """
    started = time.monotonic()
    check_export(store, file)
    say(f"Verifying {store.path}")
    store.verify()
    partial = file.with_name(file.name + PARTIAL_SUFFIX)
    try:
        with _Disk(partial, "w+b") as disk:
            masked = _write(store, disk, stop, say)
            os.fsync(disk.fileno())
        if disk.error is not None:
            raise disk.error
        os.replace(partial, file)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            error.errno, f"Disk full writing {file}. Nothing is left of it: free some space and run the same command"
        ) from error
    finally:
        remove(partial)
    sync_directory(file.parent)
    return Exported(len(store), masked, time.monotonic() - started)


class _Disk(io.FileIO):
    """A file whose first failure is kept, and what would follow goes nowhere.

    HDF5 cannot close a file that it could not write: it ends the whole process.
    """

    error: OSError | None = None

    def write(self, data: object, /) -> int:
        rest = memoryview(data).cast("B")  # type: ignore[arg-type]  # a buffer of whatever kind h5py has
        size = len(rest)
        try:
            while rest and self.error is None:
                rest = rest[os.write(self.fileno(), rest) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None, /) -> int:
        if self.error is None:
            try:
                return super().truncate(size)
            except OSError as error:
                self.error = error
        return size or 0


def _write(store: FeatureStore, disk: _Disk, stop: Stop, say: Say) -> int:
    """Write all groups, and give back how many images have masked visual tokens."""
    ids, block = store.ids, store.settings.shard_size
    blocks = range(0, len(ids), block)
    masked = 0
    with h5py.File(disk, "w") as hdf5, Progress(images=len(ids), shards=len(blocks), say=say) as progress:
        for start in blocks:
            for image_id in ids[start : start + block]:
                if stop():
                    raise Interrupted("The export was not finished, and nothing is left of it. Run the same command")
                if disk.error is not None:
                    return masked
                arrays = _arrays(store.record(image_id), store.visual_tokens)
                group = hdf5.create_group(image_id)
                for name, array in arrays.items():
                    group.create_dataset(name, data=array)
                masked += "mask" in arrays and not arrays["mask"].all()
                progress.images_done(1, rejected=0)
            progress.shards_left(blocks[blocks.index(start) + 1 :], lambda at: ids[at : at + block])
    return masked


def _arrays(record: Mapping[str, np.ndarray], tokens: int) -> dict[str, np.ndarray]:
    """An image as VL-T5 names it; whole numbers of 64 bits and floating point of 32."""
    height, width = record["image_size"]
    boxes = record["boxes"].astype(np.float64) * np.array([width, height, width, height])
    arrays = {
        "features": record["features"].astype(np.float32, copy=False),
        "boxes": boxes.astype(np.float32),
        "img_w": np.asarray(width),
        "img_h": np.asarray(height),
    }
    for theirs, ours in VL_T5_NAMES.items():
        arrays[theirs] = record.get(ours, np.zeros(tokens, MORE_FIELDS[ours][0]))
    if "mask" in record:
        arrays["mask"] = record["mask"]
    return arrays


def _refuse_names(ids: Iterable[str]) -> None:
    refused = [f"{image_id!r} ({reason})" for image_id in ids if (reason := _why_no_name(image_id)) is not None]
    if refused:
        raise InputDataError(
            f"{len(refused)} image ids cannot be names in an HDF5 file: {'; '.join(refused[:5])}. Rename these images "
            "or leave them out, and extract again"
        )


def _why_no_name(image_id: str) -> str | None:
    """Why HDF5 cannot hold an image id, in which slashes lead into groups within groups."""
    first, *others = image_id.split("/")
    if "\0" in image_id:
        return "a zero character ends names there"
    if any("\ud800" <= character <= "\udfff" for character in image_id):
        return "half a character, a lone surrogate, has no place there"
    if {"", "."} & {first, *others}:
        return "nothing, or a single dot, between slashes is left out there"
    if set(DATASETS) & set(others):
        return "this name after a slash is that of an array there"
    return None
