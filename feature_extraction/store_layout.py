"""The format of a feature store on disk: its files, their records, and how damage shows.

::

    manifest.json              what is extracted, how, and from which images; written first
    shard-00000.safetensors    features [n V D] float16 and boxes [n V 4] float32 of n images
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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float16, Float32
from safetensors.numpy import save

from feature_extraction.errors import DamagedError, IncompatibleError, InputDataError
from feature_extraction.images import ImageFile
from feature_extraction.settings import ExtractionSettings

LAYOUT_VERSION = 1
MANIFEST, INDEX, REJECTED = "manifest.json", "index.jsonl", "rejected.jsonl"


class StoredImage(NamedTuple):
    """What a store holds for one image; boxes are x0, y0, x1, y1 as fractions of width and height."""

    features: Float16[np.ndarray, "V D"]
    boxes: Float32[np.ndarray, "V 4"]


class StoredImages(NamedTuple):
    """What a shard holds."""

    features: Float16[np.ndarray, "n V D"]
    boxes: Float32[np.ndarray, "n V 4"]


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
    layout_version: int = LAYOUT_VERSION

    @property
    def shards(self) -> int:
        """How many shards the finished store has."""
        return math.ceil(self.images / self.shard_size)

    @property
    def identity_digest(self) -> str:
        """SHA-256 of the identity, for artefacts that depend on the features."""
        return digest(self.identity)


def plan(images: Sequence[ImageFile], settings: ExtractionSettings, identity: dict[str, Any]) -> Manifest:
    """The manifest of the store that these images, settings and backbone will make."""
    return Manifest(
        identity=identity,
        settings=asdict(settings),
        visual_tokens=identity["visual_tokens"],
        feature_width=identity["feature_width"],
        shard_size=settings.shard_size,
        images=len(images),
        image_ids_digest=digest(sorted(image.image_id for image in images)),
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
    """A shard as a safetensors file, which also says what it is, so that it cannot pass for another."""
    # A single key: the order of several would differ from process to process.
    return save(images._asdict(), metadata={"dept_vl": _label(manifest, number, ids)})


def map_shard(path: Path, manifest: Manifest, number: int, ids: Sequence[str]) -> StoredImages:
    """A shard's arrays, mapped into memory and read when they are used.

    Raises:
        DamagedError: the file is another shard, or its header is not what was written.
    """
    images, tokens, width = len(ids), manifest.visual_tokens, manifest.feature_width
    boxes_end = images * tokens * 4 * 4
    features_end = boxes_end + images * tokens * width * 2
    expected = {  # safetensors puts the wider numbers first
        "boxes": {"dtype": "F32", "shape": [images, tokens, 4], "data_offsets": [0, boxes_end]},
        "features": {"dtype": "F16", "shape": [images, tokens, width], "data_offsets": [boxes_end, features_end]},
        "__metadata__": {"dept_vl": _label(manifest, number, ids)},
    }
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        try:
            header = json.loads(file.read(length))
        except (ValueError, OverflowError, MemoryError, RecursionError) as error:
            raise damaged(path, "the header of a shard", f"{type(error).__name__}: {error}") from error
    if header != expected:
        raise damaged(path, json.dumps(expected), json.dumps(header))
    data = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)[8 + length :]  # rows of a plain array are faster
    return StoredImages(
        features=data[boxes_end:features_end].view(np.float16).reshape(images, tokens, width),
        boxes=data[:boxes_end].view(np.float32).reshape(images, tokens, 4),
    )


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
