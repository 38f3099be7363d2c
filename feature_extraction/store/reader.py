"""Reading a feature store: visual tokens by image id, from files that are checked. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from feature_extraction.errors import InputDataError
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store.layout import (
    Fault,
    Manifest,
    Rejected,
    Shard,
    StoredImage,
    StoredImages,
    other_images,
    read_index,
    read_manifest,
    same_images,
    shard_name,
    unfinished,
)
from feature_extraction.store.records import FinishedShards
from feature_extraction.store.shards import map_shard, shard_fault, size_fault

__all__ = ["FeatureStore", "Rejected", "StoredImage"]

_MAPPED_SHARDS = 256  # at once in a process; each holds a file descriptor


class FeatureStore:
    """Visual tokens by image id. Shards are mapped when first read, by each process for itself."""

    def __init__(self, path: Path, manifest: Manifest, shards: Sequence[Shard]) -> None:
        self.path = path
        self._manifest = manifest
        self._shards = shards
        self._places = {
            image_id: (number, row) for number, shard in enumerate(shards) for row, image_id in enumerate(shard.ids)
        }
        self._mapped: dict[int, StoredImages] = {}
        self._masked = "mask" in manifest.fields
        self._no_mask = np.ones(manifest.visual_tokens, dtype=bool)

    @classmethod
    def open(cls, path: Path | str) -> FeatureStore:
        """Open a finished store. The manifest, the index and all sizes are checked; ``verify`` reads the contents.

        Raises:
            InputDataError: no store, or an unfinished one.
            IncompatibleError: a layout that this version does not read.
            DamagedError: a damaged manifest or index, or a shard that is missing or of another size.
        """
        path = Path(path)
        manifest = read_manifest(path)
        index = read_index(path)
        names = [shard_name(number) for number in range(manifest.shards)]
        if any(name not in index for name in names):
            raise unfinished(path, len(FinishedShards(path, manifest.shards).read()), manifest.shards)
        shards = [index[name] for name in names]
        for shard in shards:
            _refuse(path, size_fault(path, shard))
        _refuse(path, None if same_images(manifest, shards) else other_images(manifest))
        return cls(path, manifest, shards)

    def read(self, image_id: str) -> StoredImage:
        """The visual tokens of an image and their boxes, as copies.

        Raises:
            InputDataError: the store has none for this image.
            DamagedError: the shard is not the one that the index tells of.
        """
        number, row = self._place(image_id)
        shard = self._mapped.get(number) or self._map(number)
        mask = shard["mask"][row].copy() if self._masked else self._no_mask
        return StoredImage(shard["features"][row].copy(), shard["boxes"][row].copy(), mask)

    def record(self, image_id: str) -> dict[str, np.ndarray]:
        """Everything that the store holds for an image, by field, as copies; see MORE_FIELDS.

        Raises:
            InputDataError, DamagedError: as ``read``.
        """
        number, row = self._place(image_id)
        return {name: array[row].copy() for name, array in (self._mapped.get(number) or self._map(number)).items()}

    def verify(self) -> None:
        """Read the whole store and compare every shard with the index; ``care.check`` finds all faults.

        Raises:
            DamagedError: names the first damaged shard, and its repair.
        """
        for number, shard in enumerate(self._shards):
            _refuse(self.path, shard_fault(self.path, self._manifest, number, shard))

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __reduce__(self) -> tuple[Any, ...]:
        return FeatureStore.open, (self.path,)  # another process maps the files for itself

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}: {len(self):,} images, {self.visual_tokens} x {self.feature_width})"

    @property
    def ids(self) -> tuple[str, ...]:
        """All image ids, sorted."""
        return tuple(self._places)

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

    def _place(self, image_id: str) -> tuple[int, int]:
        place = self._places.get(image_id)
        if place is None:
            raise InputDataError(self._why_missing(image_id))
        return place

    def _map(self, number: int) -> StoredImages:
        if len(self._mapped) >= _MAPPED_SHARDS:
            del self._mapped[next(iter(self._mapped))]
        shard = self._shards[number]
        self._mapped[number] = mapped = map_shard(self.path / shard.file, self._manifest, number, shard.ids)
        return mapped

    def _why_missing(self, image_id: str) -> str:
        reason = next((entry.reason for entry in self.rejected if entry.image_id == image_id), None)
        if reason is not None:
            return (
                f"No features for image {image_id!r} in {self.path}: the extraction rejected it. {reason}. "
                "Mend the file and extract into a new folder, or leave this image out"
            )
        return (
            f"No features for image {image_id!r} in {self.path} ({len(self):,} images). "
            f"Run: python -m dept_vl.extract --images DIR --output STORE, on a DIR with this image"
        )


def _refuse(store: Path, fault: Fault | None) -> None:
    if fault is not None:
        raise fault.error(store)
