"""The file of a shard: arrays of all its images, and a label that says which shard it is. Imports no torch."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from feature_extraction.durable import sha256_of_file
from feature_extraction.store.layout import Fault, Manifest, Shard, StoredImages, digest, shard_name

_SAFETENSORS = {"bool": "BOOL", "float16": "F16", "float32": "F32", "int64": "I64"}


def shard_bytes(manifest: Manifest, number: int, ids: Sequence[str], images: StoredImages) -> bytes:
    """A shard as a safetensors file, which also says what it is, so that it cannot pass for another.

    Raises:
        ValueError: the arrays are not those of the manifest's fields.
    """
    for name, (dtype, shape) in _arrays(manifest, len(ids)).items():
        found = images.get(name)
        if found is None or found.dtype != dtype or found.shape != shape:
            got = "nothing" if found is None else f"{found.dtype} {found.shape}"
            raise ValueError(f"Field {name!r} of {shard_name(number)} must be {dtype} {shape}, got {got}")
    arrays = {name: np.ascontiguousarray(images[name]) for name in manifest.fields}
    # A single key: the order of several would differ from process to process.
    return save(arrays, metadata={"dept_vl": _label(manifest, number, ids)})


def map_shard(path: Path, manifest: Manifest, number: int, ids: Sequence[str]) -> StoredImages:
    """A shard's arrays, mapped into memory and read when they are used.

    Raises:
        DamagedError: the file is another shard, or its header is not what was written.
    """
    places = _read_header(path, manifest, number, ids)
    if isinstance(places, Fault):
        raise places.error(path.parent)
    data = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)  # rows of a plain array are faster
    return {
        name: data[slice(*places[name])].view(dtype).reshape(shape)
        for name, (dtype, shape) in _arrays(manifest, len(ids)).items()
    }


def size_fault(store: Path, shard: Shard) -> Fault | None:
    """What is wrong with the presence and the size of a shard's file; quick."""
    expected = f"{shard.bytes:,} bytes"
    try:
        size = (store / shard.file).stat().st_size
    except FileNotFoundError:
        return Fault(shard.file, expected, "no such file")
    return None if size == shard.bytes else Fault(shard.file, expected, f"{size:,}")


def shard_fault(store: Path, manifest: Manifest | None, number: int, shard: Shard) -> Fault | None:
    """What is wrong with a shard's file, which is read as a whole; without a manifest, as far as one can tell."""
    path = store / shard.file
    fault = size_fault(store, shard)
    if fault is not None:
        return fault
    expected = f"SHA-256 {shard.sha256}"
    try:
        found = sha256_of_file(path)
        if found != shard.sha256:
            return Fault(shard.file, expected, found)
        header = None if manifest is None else _read_header(path, manifest, number, shard.ids)
    except OSError as error:
        return Fault(shard.file, expected, f"a file that cannot be read ({error.strerror})")
    return header if isinstance(header, Fault) else None


def _read_header(path: Path, manifest: Manifest, number: int, ids: Sequence[str]) -> dict[str, tuple[int, int]] | Fault:
    """The first byte of each array in the file, and the one after its last.

    A fault if the arrays are not those of this shard, one after the other, to the end of the file.
    """
    arrays = _arrays(manifest, len(ids))
    expected: dict[str, Any] = {
        name: {"dtype": _SAFETENSORS[str(dtype)], "shape": list(shape)} for name, (dtype, shape) in arrays.items()
    }
    expected["__metadata__"] = {"dept_vl": _label(manifest, number, ids)}
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, size)))
            start = 8 + length
            places = {
                name: (start + index(entry["data_offsets"][0]), start + index(entry.pop("data_offsets")[1]))
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, RecursionError, LookupError, AttributeError, TypeError, struct.error) as error:
            return Fault(path.name, "the header of a shard", f"{type(error).__name__}: {error}")
    if header != expected:
        return Fault(path.name, json.dumps(expected), json.dumps(header))
    if not _tile(places, arrays, start, size):
        return Fault(path.name, f"arrays that fill the bytes {start:,} to {size:,}", json.dumps(places))
    return places


def _arrays(manifest: Manifest, images: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """The type and shape of a shard's arrays."""
    return {name: (np.dtype(field.dtype), (images, *field.shape)) for name, field in manifest.fields.items()}


def _tile(
    places: Mapping[str, tuple[int, int]],
    arrays: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]],
    start: int,
    size: int,
) -> bool:
    """Whether the arrays lie one after the other, each with the bytes that its type and shape want."""
    for name, place in sorted(places.items(), key=lambda entry: entry[1]):
        dtype, shape = arrays[name]
        stop = start + dtype.itemsize * math.prod(shape)
        if place != (start, stop):
            return False
        start = stop
    return start == size


def _label(manifest: Manifest, number: int, ids: Sequence[str]) -> str:
    return json.dumps({"identity": manifest.identity_digest, "shard": number, "ids": digest(list(ids))})
