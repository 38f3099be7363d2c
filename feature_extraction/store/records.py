"""Which shards of a store are finished, while several processes write it. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from feature_extraction.store.layout import INDEX, Shard, parse_index, record_name, shard_name, unseal
from feature_extraction.store.shards import size_fault


class FinishedShards:
    """The finished shards of a store, read from disk each time, though nothing is parsed twice.

    Records are read first and the index second: the last step of a store writes its index and only then removes the
    records, so that a shard never seems lost to those who read meanwhile.
    """

    def __init__(self, store: Path, shards: int) -> None:
        self._store = store
        self._names = [(record_name(number), shard_name(number)) for number in range(shards)]
        self._records: dict[int, Shard] = {}
        self._index: dict[str, Shard] = {}
        self._index_version: tuple[int, ...] | None = None
        self._whole: dict[int, Shard] = {}  # those whose file was found to have its size

    def read(self, *, trust: bool = True) -> dict[int, Shard]:
        """The finished shards by number, in their order; those whose file is missing or of another size do not count.

        Args:
            trust: a file once found to have its size is only looked for by name, which is quick for many shards.
        """
        there = set(os.listdir(self._store))
        former, self._whole = self._whole if trust else {}, {}
        for number, shard in self._told(there).items():
            as_before = shard.file in there and former.get(number) == shard
            if as_before or size_fault(self._store, shard) is None:
                self._whole[number] = shard
        return dict(self._whole)

    def told(self) -> dict[int, Shard]:
        """The shards that records and index tell of, by number, in their order, whatever has become of their files."""
        return self._told(set(os.listdir(self._store)))

    def _told(self, there: set[str]) -> dict[int, Shard]:
        self._read_records(there)
        self._read_index()
        lines = ((number, self._index.get(file)) for number, (_, file) in enumerate(self._names))
        # A record is newer than a line: it was written after the line's shard was found damaged.
        return {number: shard for number, line in lines if (shard := self._records.get(number, line)) is not None}

    def _read_records(self, there: set[str]) -> None:
        for number, (name, _) in enumerate(self._names):
            if name not in there:
                self._records.pop(number, None)
            elif number not in self._records:
                record = read_record(self._store / name)
                if record is not None:
                    self._records[number] = record

    def _read_index(self) -> None:
        try:
            with (self._store / INDEX).open("rb") as file:  # opened before it is asked for its age: NFS answers anew
                status = os.fstat(file.fileno())
                version = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
                if version != self._index_version:
                    self._index, _ = parse_index(file.read())
                    self._index_version = version
        except FileNotFoundError:
            self._index, self._index_version = {}, None


def read_record(path: Path) -> Shard | None:
    """The shard that a record tells of; None where it is gone or not what was written."""
    try:
        record = unseal(path.read_bytes())
    except FileNotFoundError:
        return None
    return None if record is None else Shard.from_record(record)
