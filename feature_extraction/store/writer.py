"""Writing a feature store, shard by shard, by one process or many, each of which can be stopped anywhere.

Each shard is two files: its arrays, and then a record of them. The last step gathers the records in the index.
Imports no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from feature_extraction.differences import refuse_differences
from feature_extraction.durable import PARTIAL_SUFFIX, remove, write_durably
from feature_extraction.errors import InputDataError
from feature_extraction.store.claims import EXPIRY, HEARTBEAT, Claims
from feature_extraction.store.layout import (
    INDEX,
    MANIFEST,
    REJECTED,
    Manifest,
    Rejected,
    Shard,
    StoredImages,
    index_lines,
    other_images,
    read_manifest,
    record_name,
    rejected_lines,
    same_images,
    seal,
    shard_name,
    unfinished,
)
from feature_extraction.store.records import FinishedShards
from feature_extraction.store.shards import shard_bytes

_WORKING_FILE = re.compile(r"shard-\d+\.(json|claim)")


class StoreWriter:
    """A store that is being written, perhaps by other processes too; made again on its folder, it goes on.

    Leaving its ``with`` block gives back its claims. Who works alone may write without claims and without the block.
    """

    def __init__(self, path: Path, manifest: Manifest, *, heartbeat: float = HEARTBEAT, expiry: float = EXPIRY) -> None:
        """Create the store, or open it to go on; ``heartbeat`` and ``expiry`` are those of ``Claims``, in seconds.

        Raises:
            InputDataError: the folder holds something else.
            IncompatibleError: the store is of other images or another identity.
            DamagedError: its manifest is not what was written.
        """
        self.path = path
        self.manifest = manifest
        self.resumed = (path / MANIFEST).exists()
        self._claims = Claims(path, heartbeat=heartbeat, expiry=expiry)
        if not self.resumed:
            self._create()
        refuse_another_store(path, manifest)
        self._finished = FinishedShards(path, manifest.shards)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._claims.close()

    @property
    def missing(self) -> list[int]:
        """The shards that nobody has finished yet, read anew from disk.

        Shards whose file is missing or of another size count as not finished.
        """
        finished = self._finished.read()
        return [number for number in range(self.manifest.shards) if number not in finished]

    @property
    def rejected(self) -> list[Rejected]:
        """The rejected images of all finished shards."""
        return [entry for shard in self._finished.read().values() for entry in shard.rejected]

    def rows(self, number: int) -> range:
        """The places of a shard's images in the sorted list of all images."""
        size = self.manifest.shard_size
        return range(number * size, min((number + 1) * size, self.manifest.images))

    def claim(self, numbers: Sequence[int]) -> int | None:
        """The first of these shards that is neither finished nor claimed, from now on claimed by this writer.

        None if there is no such shard: then all are finished, or claimed by processes that may be alive.

        Raises:
            DiskFullError: there is no space for the claim.
        """
        finished = self._finished.read()
        for number in numbers:
            if number in finished or not self._claims.take(number):
                continue
            finished = self._finished.read()  # another process may have finished it just before it was claimed here
            if number not in finished:
                return number
            self._claims.give_back(number)
        return None

    def others(self) -> list[str]:
        """Who else is at work, such as "shard 7: node3, process 4411"."""
        return [str(claim) for claim in self._claims.others()]

    def write(self, number: int, ids: Sequence[str], images: StoredImages, rejected: Sequence[Rejected]) -> None:
        """Commit a shard, first its file and then its record, and give back its claim.

        Nothing happens if another process has finished it meanwhile: its bytes are the same.

        Raises:
            DiskFullError: no space is left; the finished shards stay.
            IncompatibleError: the folder has become the store of something else.
        """
        data = shard_bytes(self.manifest, number, ids, images)
        refuse_another_store(self.path, self.manifest)
        if number not in self._finished.read():
            self._commit(number, data, ids, rejected)
        self._claims.give_back(number)

    def finish(self) -> None:
        """Write the index and the list of rejected images, and remove everything that only the writing needed.

        A store that is finished already, or that another process finishes at the same time, stays as it is.

        Raises:
            InputDataError: shards are missing.
            DamagedError: the shards are not of the manifest's images.
            DiskFullError: no space is left; the finished shards stay.
        """
        finished = self._finished.read(trust=False)
        if len(finished) < self.manifest.shards:
            raise unfinished(self.path, len(finished), self.manifest.shards)
        if not same_images(self.manifest, finished.values()):
            raise other_images(self.manifest).error(self.path)
        self._rewrite(INDEX, index_lines(finished.values()))
        self._rewrite(REJECTED, rejected_lines(finished.values()))
        for name in os.listdir(self.path):
            if is_working_file(name):
                remove(self.path / name)

    def list_rejected(self) -> Path:
        """Write the list of the images rejected so far, one JSON object a line."""
        self._rewrite(REJECTED, rejected_lines(self._finished.read().values()))
        return self.path / REJECTED

    def _create(self) -> None:
        strange = [found.name for found in _entries(self.path) if not found.name.endswith(PARTIAL_SUFFIX)]
        there = (self.path / MANIFEST).exists()  # by now: another process may have started at the same time
        if strange and not there:
            raise InputDataError(
                f"{self.path} is no feature store and not empty: it has no {MANIFEST}, but {strange[0]}. "
                "Give a new folder as --output"
            )
        if not there:
            self.path.mkdir(parents=True, exist_ok=True)
            write_durably(self.path / MANIFEST, seal(asdict(self.manifest), indent=1), writer=self._claims.token)

    def _commit(self, number: int, data: bytes, ids: Sequence[str], rejected: Sequence[Rejected]) -> None:
        name, writer = shard_name(number), self._claims.token
        try:
            sha256 = write_durably(self.path / name, data, writer=writer)
            shard = Shard(name, tuple(ids), sha256, len(data), tuple(rejected))
            write_durably(self.path / record_name(number), seal(shard.record()), writer=writer)
        except FileNotFoundError:
            # Another process removed the half-written file: it finished the store, or took this shard over.
            if not self._claims.lost(number) and number not in self._finished.read():
                raise

    def _rewrite(self, name: str, data: bytes) -> None:
        path = self.path / name
        try:
            if not _holds(path, data):
                write_durably(path, data, writer=self._claims.token)
        except FileNotFoundError:  # another process finished the store and removed the half-written file
            if not _holds(path, data):
                raise


def is_working_file(name: str) -> bool:
    """Whether a file of this name is only there while a store is being written."""
    return name.endswith(PARTIAL_SUFFIX) or _WORKING_FILE.fullmatch(name) is not None


def refuse_another_store(store: Path, manifest: Manifest) -> None:
    """Check that a store is what this manifest says, wherever its images lie and however quickly it was made.

    Raises:
        InputDataError: there is no store.
        IncompatibleError: it is of other images or another identity.
        DamagedError: its manifest is not what was written.
    """
    refuse_differences(
        _flat(read_manifest(store)),
        _flat(manifest),
        what=f"{store} holds other features than this command would write (expected: the store's)",
        advice="Give a new folder as --output, or the images and settings of the store",
    )


def _holds(path: Path, data: bytes) -> bool:
    return path.exists() and path.read_bytes() == data


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
