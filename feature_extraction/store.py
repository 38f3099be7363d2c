"""The feature store: a folder of visual tokens that can be written in pieces, read at random and trusted.

::

    manifest.json              what was extracted, how, and for which images; written first
    shard-00000.safetensors    features [n V D] float16 and boxes [n V 4] float32, for n images
    index.jsonl                one line for each finished shard: its image ids, SHA-256 and rejected images
    rejected.jsonl             all rejected images; written last, for the user

A shard counts once its line is in the index; whatever a stopped process leaves besides is ignored by readers and
written again by the next run. Every JSON record carries a digest of itself. This file imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float16, Float32
from safetensors.numpy import save

from feature_extraction.durable import PARTIAL_SUFFIX, append_durably, sha256_of_file, write_durably
from feature_extraction.errors import DamagedError, IncompatibleError, InputDataError
from feature_extraction.images import ImageFile
from feature_extraction.settings import ExtractionSettings

LAYOUT_VERSION = 1
MANIFEST, INDEX, REJECTED = "manifest.json", "index.jsonl", "rejected.jsonl"
_OPEN_SHARDS = 256  # mapped at once in a process; each holds a file descriptor


class Rejected(NamedTuple):
    """An image without features, and why."""

    image_id: str
    file: str
    reason: str


class StoredImage(NamedTuple):
    """What the store holds for one image. Boxes are x0, y0, x1, y1 as fractions of width and height."""

    features: Float16[np.ndarray, "V D"]
    boxes: Float32[np.ndarray, "V 4"]


@dataclass(frozen=True)
class Shard:
    """One line of the index."""

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
        """The line of the index, before it is sealed."""
        return {
            "file": self.file,
            "ids": list(self.ids),
            "sha256": self.sha256,
            "bytes": self.bytes,
            "rejected": [_rejected_record(entry) for entry in self.rejected],
        }


@dataclass(frozen=True)
class Manifest:
    """What a store is meant to hold."""

    identity: dict[str, Any]  # backbone and preprocessing; equal identities give equal features
    settings: dict[str, Any]
    visual_tokens: int
    feature_width: int
    shard_size: int
    images: int
    image_ids_digest: str
    layout_version: int = LAYOUT_VERSION

    @property
    def shards(self) -> int:
        """The number of shards of the finished store."""
        return math.ceil(self.images / self.shard_size)

    @property
    def identity_digest(self) -> str:
        """SHA-256 of the identity, for artefacts that depend on the features."""
        return digest(self.identity)


class FeatureStore:
    """Visual tokens by image id. Shards are mapped when first read, in each process of its own."""

    def __init__(self, path: Path, manifest: Manifest, shards: Sequence[Shard]) -> None:
        self.path = path
        self._manifest = manifest
        self._shards = shards
        self._rows = {
            image_id: (number, row) for number, shard in enumerate(shards) for row, image_id in enumerate(shard.ids)
        }
        self._mapped: dict[int, StoredImage] = {}

    @classmethod
    def open(cls, path: Path | str) -> FeatureStore:
        """Open a finished store; sizes and the index are checked, contents only by ``verify``.

        Raises:
            InputDataError: no store, or one that is not finished.
            IncompatibleError: a layout that this version does not read.
            DamagedError: a damaged manifest or index, or a shard that is missing or of the wrong size.
        """
        path = Path(path)
        manifest = read_manifest(path)
        finished = {shard.file: shard for shard in read_index(path)}
        names = [shard_name(number) for number in range(manifest.shards)]
        done = sum(name in finished for name in names)
        if done < manifest.shards:
            raise InputDataError(
                f"The feature store {path} is not finished: {done} of {manifest.shards} shards are there. "
                f"To go on, run again: python -m dept_vl.extract --images DIR --output {path}"
            )
        shards = [finished[name] for name in names]
        for shard in shards:
            _check_size(path, shard)
        planned = sorted(image_id for shard in shards for image_id in (*shard.ids, *(r.image_id for r in shard.rejected)))
        if digest(planned) != manifest.image_ids_digest:
            raise DamagedError(
                f"{path / INDEX} does not list the images of {path / MANIFEST}: expected the {manifest.images:,} ids "
                f"with digest {manifest.image_ids_digest[:12]}, got {len(planned):,} with {digest(planned)[:12]}. "
                f"Delete {path / INDEX} and run the extraction again"
            )
        return cls(path, manifest, shards)

    def read(self, image_id: str) -> StoredImage:
        """The visual tokens of one image and their boxes, as copies.

        Raises:
            InputDataError: the store has no features for this image.
            DamagedError: the shard is not the one that the index tells of.
        """
        try:
            number, row = self._rows[image_id]
        except KeyError:
            raise InputDataError(self._missing(image_id)) from None
        shard = self._mapped.get(number)
        if shard is None:
            shard = self._map(number)
        return StoredImage(shard.features[row].copy(), shard.boxes[row].copy())

    def verify(self) -> None:
        """Read every shard and compare its SHA-256 with the index.

        Raises:
            DamagedError: names the damaged shards and how to get them back.
        """
        for shard in self._shards:
            _check_size(self.path, shard)
            found = sha256_of_file(self.path / shard.file)
            if found != shard.sha256:
                raise _damaged(self.path / shard.file, f"SHA-256 {shard.sha256}", found)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureStore.open, (self.path,)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}, {len(self)} images, {self.visual_tokens} x {self.feature_width})"

    @property
    def ids(self) -> tuple[str, ...]:
        """All image ids, sorted."""
        return tuple(self._rows)

    @property
    def visual_tokens(self) -> int:
        """V, visual tokens per image."""
        return self._manifest.visual_tokens

    @property
    def feature_width(self) -> int:
        """D, numbers per visual token."""
        return self._manifest.feature_width

    @property
    def identity(self) -> dict[str, Any]:
        """The backbone and preprocessing that made the features."""
        return self._manifest.identity

    @property
    def identity_digest(self) -> str:
        """SHA-256 of the identity."""
        return self._manifest.identity_digest

    @property
    def settings(self) -> ExtractionSettings:
        """The settings of the extraction."""
        return ExtractionSettings(**self._manifest.settings)

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """The images that could not be used."""
        return tuple(entry for shard in self._shards for entry in shard.rejected)

    def _map(self, number: int) -> StoredImage:
        if len(self._mapped) >= _OPEN_SHARDS:
            del self._mapped[next(iter(self._mapped))]
        shard = self._shards[number]
        manifest = self._manifest
        self._mapped[number] = mapped = _map_shard(
            self.path / shard.file,
            _contents(manifest.identity_digest, number, shard.ids),
            (len(shard.ids), manifest.visual_tokens, manifest.feature_width),
        )
        return mapped

    def _missing(self, image_id: str) -> str:
        for entry in self.rejected:
            if entry.image_id == image_id:
                return (
                    f"Image {image_id!r} was rejected by the extraction of {self.path}: {entry.reason}. "
                    "Leave it out, or mend the file and extract into a new store"
                )
        return (
            f"No features for image {image_id!r} in {self.path} ({len(self):,} images). "
            f"Run: python -m dept_vl.extract --images DIR --output STORE on a DIR that has this image"
        )


class StoreWriter:
    """Writes a store shard by shard; made again for the same store, it goes on after the finished shards."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Create the store, or open it to go on.

        Raises:
            IncompatibleError: the store was made for other images or by another backbone, or of another layout.
            InputDataError: the folder holds something else.
        """
        self.path = path
        self.manifest = manifest
        if (path / MANIFEST).exists():
            _refuse_differences(path, read_manifest(path), manifest)
        else:
            self._create()
        for left_over in path.glob(f"*{PARTIAL_SUFFIX}"):
            left_over.unlink()
        shards = {shard.file: shard for shard in read_index(path, tolerant=True) if _has_size(path, shard)}
        self._shards = {
            number: shards[shard_name(number)] for number in range(manifest.shards) if shard_name(number) in shards
        }
        self._rewrite(INDEX, self._index_lines())

    @property
    def missing(self) -> list[int]:
        """The numbers of the shards still to be written."""
        return [number for number in range(self.manifest.shards) if number not in self._shards]

    @property
    def rejected(self) -> list[Rejected]:
        """The images rejected so far, in the order of the shards."""
        return [entry for _, shard in sorted(self._shards.items()) for entry in shard.rejected]

    def write(
        self,
        number: int,
        ids: Sequence[str],
        features: Float16[np.ndarray, "n V D"],
        boxes: Float32[np.ndarray, "n V 4"],
        rejected: Sequence[Rejected],
    ) -> None:
        """Commit one shard: first its file, then its line in the index.

        Raises:
            DiskFullError: no space is left; all finished shards stay.
        """
        # One key only: the order of several would not be the same in every process.
        metadata = {"dept_vl": _contents(self.manifest.identity_digest, number, ids)}
        data = save({"features": features, "boxes": boxes}, metadata)
        name = shard_name(number)
        sha256 = write_durably(self.path / name, data)
        shard = Shard(name, tuple(ids), sha256, len(data), tuple(rejected))
        append_durably(self.path / INDEX, seal(shard.record()))
        self._shards[number] = shard

    def finish(self) -> None:
        """Bring the index into the order of the shards and list the rejected images."""
        self._rewrite(INDEX, self._index_lines())
        self.list_rejected()

    def list_rejected(self) -> None:
        """Write ``rejected.jsonl`` as far as it is known."""
        lines = (json.dumps(_rejected_record(entry)).encode() + b"\n" for entry in self.rejected)
        self._rewrite(REJECTED, b"".join(lines))

    def _create(self) -> None:
        if self.path.exists() and any(not found.name.endswith(PARTIAL_SUFFIX) for found in self.path.iterdir()):
            raise InputDataError(
                f"{self.path} is not empty and has no {MANIFEST}, so it is no feature store. "
                "Give a new folder, or delete this one"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_durably(self.path / MANIFEST, seal(asdict(self.manifest), indent=1))

    def _index_lines(self) -> bytes:
        return b"".join(seal(shard.record()) for _, shard in sorted(self._shards.items()))

    def _rewrite(self, name: str, data: bytes) -> None:
        path = self.path / name
        if not path.exists() or path.read_bytes() != data:
            write_durably(path, data)


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:05d}.safetensors"


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


def digest(value: object) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def seal(record: dict[str, Any], indent: int | None = None) -> bytes:
    """A JSON record with its own digest, and a line end."""
    return json.dumps({**record, "digest": digest(record)}, indent=indent).encode() + b"\n"


def unseal(text: bytes) -> dict[str, Any] | None:
    """The record that was sealed, or None when it is not what was written."""
    try:
        record = json.loads(text)
        found = record.pop("digest")
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    return record if text.endswith(b"\n") and found == digest(record) else None


def read_manifest(path: Path) -> Manifest:
    """The manifest of a store, finished or not.

    Raises:
        InputDataError: there is none.
        IncompatibleError: it is of a layout that this version does not know.
        DamagedError: it is not what was written.
    """
    try:
        text = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputDataError(
            f"{path} is no feature store: it has no {MANIFEST}. "
            f"Make one with: python -m dept_vl.extract --images DIR --output {path}"
        ) from None
    record = unseal(text)
    if record is None:
        raise DamagedError(
            f"{path / MANIFEST} is damaged: its digest does not fit its contents. "
            "Restore it from a copy, or delete the folder and extract again"
        )
    if record["layout_version"] != LAYOUT_VERSION:
        raise IncompatibleError(
            f"{path} has store layout {record['layout_version']}; this version reads {LAYOUT_VERSION}. "
            "Install the version of dept_vl that wrote it, or extract again"
        )
    return Manifest(**record)


def read_index(path: Path, *, tolerant: bool = False) -> list[Shard]:
    """The finished shards. A last line without an end is left from a stopped process and ignored.

    Raises:
        DamagedError: another line is not what was written; ``tolerant`` ignores it as well.
    """
    if not (path / INDEX).exists():
        return []
    shards = []
    for number, line in enumerate((path / INDEX).read_bytes().splitlines(keepends=True), start=1):
        record = unseal(line)
        if record is not None:
            shards.append(Shard.from_record(record))
        elif line.endswith(b"\n") and not tolerant:
            raise DamagedError(
                f"{path / INDEX}: line {number} is damaged, its digest does not fit its contents. "
                "Run the extraction again: it writes this shard anew"
            )
    return shards


def _contents(identity_digest: str, number: int, ids: Sequence[str]) -> str:
    return json.dumps({"identity": identity_digest, "shard": number, "ids": digest(list(ids))})


def _map_shard(path: Path, contents: str, shape: tuple[int, int, int]) -> StoredImage:
    images, tokens, width = shape
    expected: dict[str, dict[str, Any]] = {
        "features": {"dtype": "F16", "shape": [images, tokens, width]},
        "boxes": {"dtype": "F32", "shape": [images, tokens, 4]},
    }
    with path.open("rb") as file:
        (header_length,) = struct.unpack("<Q", file.read(8))
        try:
            header = json.loads(file.read(header_length))
            found = header["__metadata__"]["dept_vl"]
            starts = {name: header[name].pop("data_offsets")[0] for name in expected}
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise _damaged(path, "a safetensors header", f"{type(error).__name__}: {error}") from error
    del header["__metadata__"]
    if found != contents or header != expected:
        raise _damaged(path, f"{contents} {expected}", f"{found} {header}")
    whole = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)  # plain arrays are sliced faster

    def array(name: str, dtype: type[np.generic]) -> np.ndarray[Any, Any]:
        start = 8 + header_length + starts[name]
        length = math.prod(expected[name]["shape"]) * np.dtype(dtype).itemsize
        return whole[start : start + length].view(dtype).reshape(expected[name]["shape"])

    return StoredImage(array("features", np.float16), array("boxes", np.float32))


def _has_size(path: Path, shard: Shard) -> bool:
    try:
        return (path / shard.file).stat().st_size == shard.bytes
    except FileNotFoundError:
        return False


def _check_size(path: Path, shard: Shard) -> None:
    if not _has_size(path, shard):
        file = path / shard.file
        found = f"{file.stat().st_size:,} bytes" if file.exists() else "no such file"
        raise _damaged(file, f"{shard.bytes:,} bytes", found)


def _damaged(file: Path, expected: str, got: str) -> DamagedError:
    return DamagedError(
        f"{file} is damaged: expected {expected}, got {got}. "
        f"Delete this file and run the extraction again: python -m dept_vl.extract --images DIR --output {file.parent}"
    )


def _refuse_differences(path: Path, stored: Manifest, wanted: Manifest) -> None:
    def flat(manifest: Manifest) -> dict[str, Any]:
        fields = {key: value for key, value in asdict(manifest).items() if key not in ("identity", "settings")}
        return {**manifest.identity, **fields}

    store, run = flat(stored), flat(wanted)
    differences = [
        f"  {key:18} {store.get(key)!s:24} {run.get(key)!s}"
        for key in {**store, **run}
        if store.get(key) != run.get(key)
    ]
    if differences:
        table = "\n".join([f"  {'field':18} {'expected (store)':24} got (this command)", *differences])
        raise IncompatibleError(
            f"{path} holds other features than this command would write:\n{table}\n"
            "Give another --output, or use the settings and images of the store"
        )


def _rejected_record(entry: Rejected) -> dict[str, str]:
    return {"id": entry.image_id, "file": entry.file, "reason": entry.reason}
