"""The format of a feature store on disk: its files and their records.

::

    manifest.json              what is extracted, how, and from which images; written first
    shard-00000.safetensors    features [n V D], boxes [n V 4] and whatever else the manifest's fields name, of n images
    index.jsonl                a line for each shard: image ids, SHA-256, size and rejected images; written at the end
    rejected.jsonl             all rejected images, for the user; written last

While it is written, a store also has these, which the last step removes:

::

    shard-00000.json           the shard's line of the index; written once the shard's file is safe
    shard-00000.claim          who is at work on the shard
    *.partial                  half-written files

No two processes write to the same file. A shard counts once its record, or its line in the index, stands. Whatever else
a stopped process leaves is ignored by readers and written anew by the next run. Manifest, records and index lines carry
a digest of themselves. This file imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float16, Float32

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
    def estimated_bytes(self) -> int:
        """About the size of the finished store."""
        return self.images * (self.bytes_per_image + 100)  # with a line of the index

    @property
    def identity_digest(self) -> str:
        """SHA-256 of the identity, for artefacts that depend on the features."""
        return digest(self.identity)


def more_fields(names: Iterable[str], visual_tokens: int) -> dict[str, Field]:
    """The fields of these names, of MORE_FIELDS, in a store of so many visual tokens per image."""
    chosen = {name: MORE_FIELDS[name] for name in sorted(names)}
    return {
        name: Field(dtype, tuple(visual_tokens if axis == "V" else int(axis) for axis in shape))
        for name, (dtype, shape) in chosen.items()
    }


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


def record_name(number: int) -> str:
    """The file with the line of the index that a shard will get, in a store that is being written."""
    return f"shard-{number:05d}.json"


def claim_name(number: int) -> str:
    """The file of the process that is at work on a shard."""
    return f"shard-{number:05d}.claim"


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


def read_index(store: Path) -> dict[str, Shard]:
    """The shards of the index by file; none where there is no index yet.

    Raises:
        DamagedError: a line is not what was written.
    """
    shards, damaged_lines = parse_index(index_bytes(store))
    if damaged_lines:
        raise damaged_line(damaged_lines[0]).error(store)
    return shards


def index_bytes(store: Path) -> bytes:
    """The contents of the index; nothing where there is none yet."""
    try:
        return (store / INDEX).read_bytes()
    except FileNotFoundError:
        return b""


def parse_index(data: bytes) -> tuple[dict[str, Shard], list[int]]:
    """The shards of an index by file, and the numbers of the lines that are not what was written, from 1."""
    shards, damaged_lines = {}, []
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        record = unseal(line)
        if record is None:
            damaged_lines.append(number)
        else:
            shards[record["file"]] = Shard.from_record(record)
    return shards, damaged_lines


def index_lines(shards: Iterable[Shard]) -> bytes:
    """The contents of the index."""
    return b"".join(seal(shard.record()) for shard in shards)


def rejected_lines(shards: Iterable[Shard]) -> bytes:
    """The contents of the list of rejected images, one JSON object a line."""
    return b"".join(json.dumps(entry.record()).encode() + b"\n" for shard in shards for entry in shard.rejected)


def same_images(manifest: Manifest, shards: Iterable[Shard]) -> bool:
    """Whether these shards, and what was rejected from them, are the images of the manifest, each of them once."""
    listed = [image_id for shard in shards for image_id in (*shard.ids, *(one.image_id for one in shard.rejected))]
    return digest(sorted(listed)) == manifest.image_ids_digest


def contents_digest(manifest: Manifest, shards: Sequence[Shard]) -> str:
    """SHA-256 over the identity and all shards in their order: equal for equal contents, wherever they came from."""
    return digest([manifest.identity_digest, [shard.sha256 for shard in shards]])


def unfinished(store: Path, done: int, shards: int) -> InputDataError:
    """The failure for a store that is not ready to be read."""
    return InputDataError(
        f"The feature store {store} is not finished: {done} of {shards} shards are done. "
        f"To go on, run again: python -m dept_vl.extract --images DIR --output {store}"
    )


class Fault(NamedTuple):
    """A file of a store that is not what was written."""

    file: str  # in the store's folder
    expected: str
    got: str

    def error(self, store: Path) -> DamagedError:
        """The failure to raise, with its repair."""
        return DamagedError(
            f"{store / self.file} is damaged: expected {self.expected}, got {self.got}. "
            f"To write what is damaged anew, run: python -m dept_vl.extract --repair {store}"
        )


def damaged_line(number: int) -> Fault:
    """The fault of a line of the index."""
    return Fault(INDEX, f"line {number} to fit its digest", "other contents")


def other_images(manifest: Manifest) -> Fault:
    """The fault of an index that is not of the manifest's images."""
    return Fault(INDEX, f"the {manifest.images:,} image ids of {MANIFEST}", "others")
