"""Writing a feature store, shard by shard, so that it can be stopped anywhere and gone on with. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from feature_extraction.differences import refuse_differences
from feature_extraction.durable import PARTIAL_SUFFIX, append_durably, write_durably
from feature_extraction.errors import InputDataError
from feature_extraction.store_layout import (
    INDEX,
    MANIFEST,
    REJECTED,
    Manifest,
    Rejected,
    Shard,
    StoredImages,
    has_its_size,
    read_index,
    read_manifest,
    seal,
    shard_bytes,
    shard_name,
)


class StoreWriter:
    """A store that is being written; made again on the same folder, it goes on after the finished shards."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Create the store, or open it to go on; shards whose file is missing or of another size count as unwritten.

        Raises:
            InputDataError: the folder holds something else.
            IncompatibleError: the store is of other images or another identity.
            DamagedError: its manifest is not what was written.
        """
        self.path = path
        self.manifest = manifest
        self.resumed = (path / MANIFEST).exists()
        if self.resumed:
            refuse_differences(
                _flat(read_manifest(path)),
                _flat(manifest),
                what=f"{path} holds other features than this command would write (expected: the store's)",
                advice="Give a new folder as --output, or the images and settings of the store",
            )
        else:
            self._create()
        for left_over in path.glob(f"*{PARTIAL_SUFFIX}"):
            left_over.unlink()
        found = read_index(path, tolerant=True)
        shards = {number: found.get(shard_name(number)) for number in range(manifest.shards)}
        self._shards = {number: shard for number, shard in shards.items() if shard and has_its_size(path, shard)}
        self._rewrite(INDEX, self._index())

    @property
    def missing(self) -> list[int]:
        """The shards still to be written."""
        return [number for number in range(self.manifest.shards) if number not in self._shards]

    @property
    def rejected(self) -> list[Rejected]:
        """The rejected images of the finished shards."""
        return [entry for _, shard in sorted(self._shards.items()) for entry in shard.rejected]

    def rows(self, number: int) -> range:
        """The places of a shard's images in the sorted list of all images."""
        size = self.manifest.shard_size
        return range(number * size, min((number + 1) * size, self.manifest.images))

    def write(self, number: int, ids: Sequence[str], images: StoredImages, rejected: Sequence[Rejected]) -> None:
        """Commit a shard: first its file, then its line in the index.

        Raises:
            DiskFullError: no space is left; the finished shards stay.
        """
        data = shard_bytes(self.manifest, number, ids, images)
        name = shard_name(number)
        shard = Shard(name, tuple(ids), write_durably(self.path / name, data), len(data), tuple(rejected))
        append_durably(self.path / INDEX, seal(shard.record()))
        self._shards[number] = shard

    def finish(self) -> None:
        """Bring the index into the order of the shards, and list the rejected images."""
        self._rewrite(INDEX, self._index())
        self.list_rejected()

    def list_rejected(self) -> Path:
        """Write the list of the images rejected so far, one JSON object a line."""
        lines = [json.dumps(entry.record()).encode() + b"\n" for entry in self.rejected]
        self._rewrite(REJECTED, b"".join(lines))
        return self.path / REJECTED

    def _create(self) -> None:
        strange = [found.name for found in _entries(self.path) if not found.name.endswith(PARTIAL_SUFFIX)]
        if strange:
            raise InputDataError(
                f"{self.path} is no feature store and not empty: it has no {MANIFEST}, but {strange[0]}. "
                "Give a new folder as --output"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_durably(self.path / MANIFEST, seal(asdict(self.manifest), indent=1))

    def _index(self) -> bytes:
        return b"".join(seal(shard.record()) for _, shard in sorted(self._shards.items()))

    def _rewrite(self, name: str, data: bytes) -> None:
        path = self.path / name
        if not path.exists() or path.read_bytes() != data:
            write_durably(path, data)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise InputDataError(f"{folder} is a file, not a folder. Give a new folder as --output") from None


def _flat(manifest: Manifest) -> dict[str, Any]:
    whole = asdict(manifest)
    # Only the identity counts: a moved folder or weights file, or other workers, change nothing.
    del whole["settings"], whole["source"]
    return {**whole.pop("identity"), **whole}
