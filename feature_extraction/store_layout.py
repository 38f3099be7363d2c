"""The format of a feature store on disk: its files, their records, and how damage shows.

::

    manifest.json              what is extracted, how, and from which images; written first
    shard-00000.safetensors    features [n V D], boxes [n V 4] and whatever else the manifest's fields name, of n images
    index.jsonl                a line for each finished shard: image ids, SHA-256, size and rejected images
    rejected.jsonl             all rejected images, for the user; written last

A shard counts once its line stands in the index. Whatever else a stopped process leaves is ignored by readers and
written anew by the next run. Manifest and index lines carry a digest of themselves. This file imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float16, Float32
from safetensors.numpy import save

from feature_extraction.errors import DamagedError, IncompatibleError, InputDataError
from feature_extraction.settings import ExtractionSettings

LAYOUT_VERSION = 2
MANIFEST, INDEX, REJECTED = "manifest.json", "index.jsonl", "rejected.jsonl"

# Fields that a store may hold besides features and boxes. V stands for its visual tokens.
MORE_FIELDS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "mask": ("bool", ("V",)),  # True at visual tokens that show something; without it, all do
    "image_size": ("int64", (2,)),  # height and width in pixels, upright
    "class_ids": ("int64", ("V",)),  # of a detector, in its own numbering
    "scores": ("float32", ("V",)),  # of the classes
    "attribute_ids": ("int64", ("V",)),
    "attribute_scores": ("float32", ("V",)),
}
_SAFETENSORS = {"bool": "BOOL", "float16": "F16", "float32": "F32", "int64": "I64"}


def more_fields(names: Iterable[str], visual_tokens: int) -> dict[str, Field]:
    """The fields of these names, of MORE_FIELDS, in a store of so many visual tokens per image."""
    chosen = {name: MORE_FIELDS[name] for name in sorted(names)}
    return {
        name: Field(dtype, tuple(visual_tokens if axis == "V" else int(axis) for axis in shape))
        for name, (dtype, shape) in chosen.items()
    }


class StoredImage(NamedTuple):
    """What a model reads of one image; boxes are x0, y0, x1, y1 as fractions of width and height."""

    features: Float16[np.ndarray, "V D"] | Float32[np.ndarray, "V D"]
    boxes: Float32[np.ndarray, "V 4"]
    mask: Bool[np.ndarray, " V"]  # True at visual tokens that show something of the image


class Field(NamedTuple):
    """A kind of number that a store holds for each image."""

    dtype: str  # numpy's name
    shape: tuple[int, ...]  # of one image


StoredImages = Mapping[str, np.ndarray]  # what a shard holds: an array for each field, its first axis the images


class Rejected(NamedTuple):
    """An image without features, and why."""

    image_id: str
    file: str
    reason: str

    def record(self) -> dict[str, str]:
        """The image as a JSON value."""
        return {"id": self.image_id, "file": self.file, "reason": self.reason}


@dataclass(frozen=True)
class Shard:
    """A line of the index."""

    file: str
    ids: tuple[str, ...]  # of its rows
    sha256: str
    bytes: int
    rejected: tuple[Rejected, ...]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Shard:
        """The shard that a line of the index tells of."""
        rejected = tuple(Rejected(entry["id"], entry["file"], entry["reason"]) for entry in record["rejected"])
        return cls(record["file"], tuple(record["ids"]), record["sha256"], record["bytes"], rejected)

    def record(self) -> dict[str, Any]:
        """The line as a JSON value."""
        return {**vars(self), "rejected": [entry.record() for entry in self.rejected]}


@dataclass(frozen=True)
class Manifest:
    """What a store is to hold."""

    identity: dict[str, Any]  # backbone and preprocessing: equal identities mean equal features
    settings: dict[str, Any]
    visual_tokens: int
    feature_width: int
    shard_size: int
    images: int
    image_ids_digest: str
    source: tuple[str, ...]  # where the images, or the features of another tool, came from
    fields: dict[str, Field]
    layout_version: int = LAYOUT_VERSION

    @property
    def shards(self) -> int:
        """How many shards the finished store has."""
        return math.ceil(self.images / self.shard_size)

    @property
    def bytes_per_image(self) -> int:
        """What an image takes on disk, without its line in the index."""
        return sum(np.dtype(field.dtype).itemsize * math.prod(field.shape) for field in self.fields.values())

    @property
    def identity_digest(self) -> str:
        """SHA-256 of the identity, for artefacts that depend on the features."""
        return digest(self.identity)


def plan(
    image_ids: Sequence[str],
    settings: ExtractionSettings,
    identity: dict[str, Any],
    *,
    more: Mapping[str, Field] | None = None,
    source: Sequence[str] = (),
) -> Manifest:
    """The manifest of the store that these images, settings and backbone will make.

    ``identity`` names ``visual_tokens``, ``feature_width`` and ``dtype``; ``more`` are fields besides features and
    boxes, of the names and types in MORE_FIELDS.
    """
    tokens, width = identity["visual_tokens"], identity["feature_width"]
    fields = {
        "features": Field(identity["dtype"], (tokens, width)),
        "boxes": Field("float32", (tokens, 4)),
        **(more or {}),
    }
    return Manifest(
        identity=identity,
        settings=asdict(settings),
        visual_tokens=tokens,
        feature_width=width,
        shard_size=settings.shard_size,
        images=len(image_ids),
        image_ids_digest=digest(sorted(image_ids)),
        source=tuple(source),
        fields=fields,
    )


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:05d}.safetensors"


def digest(value: object) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def seal(record: Mapping[str, Any], indent: int | None = None) -> bytes:
    """A record as JSON with its own digest, and a line end."""
    return json.dumps({**record, "digest": digest(record)}, indent=indent).encode() + b"\n"


def unseal(text: bytes) -> dict[str, Any] | None:
    """The record that was sealed, or None if this is not what was written."""
    try:
        record: dict[str, Any] = json.loads(text)
        expected = record.pop("digest")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None
    return record if text.endswith(b"\n") and digest(record) == expected else None


def read_manifest(store: Path) -> Manifest:
    """The manifest of a store, finished or not.

    Raises:
        InputDataError: there is none.
        IncompatibleError: its layout is not of this version.
        DamagedError: it is not what was written.
    """
    try:
        text = (store / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputDataError(
            f"{store} is no feature store: it has no {MANIFEST}. "
            f"Make one with: python -m dept_vl.extract --images DIR --output {store}"
        ) from None
    record = unseal(text)
    if record is None:
        raise DamagedError(
            f"{store / MANIFEST} is damaged: expected contents that fit its digest, got others. "
            "Restore it from a copy, or delete the folder and extract again"
        )
    if record["layout_version"] != LAYOUT_VERSION:
        raise IncompatibleError(
            f"{store} has store layout {record['layout_version']}; this version reads layout {LAYOUT_VERSION}. "
            "Use the version of dept_vl that wrote it, or extract again"
        )
    record["source"] = tuple(record["source"])
    record["fields"] = {name: Field(dtype, tuple(shape)) for name, (dtype, shape) in record["fields"].items()}
    return Manifest(**record)


def read_index(store: Path, *, tolerant: bool = False) -> dict[str, Shard]:
    """The finished shards by file. A last line without an end is left from a stopped process, and ignored.

    Raises:
        DamagedError: another line is not what was written; ``tolerant`` ignores it as well.
    """
    path = store / INDEX
    shards = {}
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else (), start=1):
        record = unseal(line)
        if record is not None:
            shards[record["file"]] = Shard.from_record(record)
        elif line.endswith(b"\n") and not tolerant:
            raise DamagedError(
                f"{path} is damaged: expected line {number} to fit its digest, got other contents. To write this "
                f"shard anew, run the extraction again: python -m dept_vl.extract --images DIR --output {store}"
            )
    return shards


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
    arrays = _arrays(manifest, len(ids))
    expected = {
        name: {"dtype": _SAFETENSORS[str(dtype)], "shape": list(shape)} for name, (dtype, shape) in arrays.items()
    }
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        try:
            header = json.loads(file.read(length))
            label = header.pop("__metadata__")
            places = {name: tuple(entry.pop("data_offsets")) for name, entry in header.items()}
        except (ValueError, OverflowError, MemoryError, RecursionError, KeyError, AttributeError, TypeError) as error:
            raise damaged(path, "the header of a shard", f"{type(error).__name__}: {error}") from error
    if header != expected or label != {"dept_vl": _label(manifest, number, ids)} or not _tile(places, arrays):
        found = {**header, "__metadata__": label, "data_offsets": places}
        raise damaged(path, json.dumps(expected), json.dumps(found))
    data = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)[8 + length :]  # rows of a plain array are faster
    return {name: data[slice(*places[name])].view(dtype).reshape(shape) for name, (dtype, shape) in arrays.items()}


def _arrays(manifest: Manifest, images: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """The type and shape of a shard's arrays."""
    return {name: (np.dtype(field.dtype), (images, *field.shape)) for name, field in manifest.fields.items()}


def _tile(places: Mapping[str, tuple[int, int]], arrays: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> bool:
    """Whether the arrays lie one after the other, each with the bytes that its type and shape want."""
    end = 0
    for name, (start, stop) in sorted(places.items(), key=lambda entry: entry[1]):
        dtype, shape = arrays[name]
        if start != end or stop - start != dtype.itemsize * math.prod(shape):
            return False
        end = stop
    return True


def has_its_size(store: Path, shard: Shard) -> bool:
    """Whether the shard's file is there, with as many bytes as were written."""
    try:
        return (store / shard.file).stat().st_size == shard.bytes
    except FileNotFoundError:
        return False


def damaged(file: Path, expected: str, got: str) -> DamagedError:
    """The failure for a shard, with its repair."""
    return DamagedError(
        f"{file} is damaged: expected {expected}, got {got}. To write it anew, delete this file and run the "
        f"extraction again: python -m dept_vl.extract --images DIR --output {file.parent}"
    )


def _label(manifest: Manifest, number: int, ids: Sequence[str]) -> str:
    return json.dumps({"identity": manifest.identity_digest, "shard": number, "ids": digest(list(ids))})
