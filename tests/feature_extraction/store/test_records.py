from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from feature_extraction.store import records as store_records
from feature_extraction.store.layout import INDEX, record_name, shard_name
from feature_extraction.store.records import FinishedShards, read_record
from feature_extraction.store.writer import StoreWriter


@pytest.fixture
def unfinished(tmp_path: Path, small: Any) -> Path:
    """A store whose shards 0 and 2 are written."""
    writer = StoreWriter(tmp_path / "unfinished", small.manifest())
    for number in (0, 2):
        small.write_shard(writer, number)
    return writer.path


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    function, calls = getattr(store_records, name), []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(store_records, name, counted)
    return calls


def test_records_and_index_tell_the_same(store: Path, unfinished: Path) -> None:
    finished = FinishedShards(store, 3).read()
    assert list(finished) == [0, 1, 2]
    assert FinishedShards(unfinished, 3).read() == {0: finished[0], 2: finished[2]}


def test_nothing_is_parsed_or_measured_twice(store: Path, unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {name: count_calls(monkeypatch, name) for name in ("read_record", "size_fault", "parse_index")}
    for path, counts in ((unfinished, (2, 2, 0)), (store, (0, 3, 1))):
        shards = FinishedShards(path, 3)
        for _ in range(3):
            shards.read()
        assert tuple(len(found) for found in calls.values()) == counts
        for found in calls.values():
            found.clear()


def test_what_others_write_is_seen(unfinished: Path, small: Any) -> None:
    shards = FinishedShards(unfinished, 3)
    assert list(shards.read()) == [0, 2]
    small.write(unfinished)
    assert list(shards.read()) == [0, 1, 2]


def test_a_shard_that_is_deleted_or_cut_off_does_not_count(store: Path, unfinished: Path) -> None:
    shards = FinishedShards(store, 3)
    (store / shard_name(1)).unlink()
    assert list(shards.read()) == [0, 2]
    os.truncate(store / shard_name(2), 10)
    assert list(shards.read()) == [0, 2]  # a file that was whole once is only looked for
    assert list(shards.read(trust=False)) == [0]
    assert list(shards.told()) == [0, 1, 2]
    (unfinished / shard_name(0)).unlink()
    assert list(FinishedShards(unfinished, 3).read()) == [2]


def test_a_record_that_was_removed_no_longer_counts(unfinished: Path) -> None:
    shards = FinishedShards(unfinished, 3)
    shards.read()
    (unfinished / record_name(0)).unlink()
    assert list(shards.read()) == [2]


def test_a_record_that_is_not_what_was_written_does_not_count(unfinished: Path) -> None:
    path = unfinished / record_name(0)
    path.write_bytes(path.read_bytes().replace(b"image 1", b"image X"))
    assert list(FinishedShards(unfinished, 3).read()) == [2]
    assert read_record(path) is None
    assert read_record(unfinished / record_name(1)) is None


@pytest.fixture
def all_but_finished(tmp_path: Path, small: Any) -> StoreWriter:
    """A store of which only the last step is to be done."""
    writer = StoreWriter(tmp_path / "all_but_finished", small.manifest())
    for number in writer.missing:
        small.write_shard(writer, number)
    return writer


@pytest.mark.parametrize(
    ("owner", "name", "before"),
    [(os, "listdir", True), (os, "listdir", False), (store_records, "read_record", True), (os, "fstat", True)],
)
def test_a_store_that_is_finished_while_it_is_read_never_seems_to_lose_shards(
    all_but_finished: StoreWriter, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, before: bool
) -> None:
    function, waiting = getattr(owner, name), [all_but_finished.finish]

    def call(*arguments: Any) -> Any:
        if before and waiting:
            waiting.pop()()
        found = function(*arguments)
        if waiting:
            waiting.pop()()
        return found

    if name == "fstat":  # of an index that is there already
        (all_but_finished.path / INDEX).touch()
    monkeypatch.setattr(owner, name, call)
    assert list(FinishedShards(all_but_finished.path, 3).read()) == [0, 1, 2]
    assert not waiting


def test_readers_see_all_shards_before_and_after_every_step_of_the_end(
    all_but_finished: StoreWriter, fates: Any
) -> None:
    shards, seen = FinishedShards(all_but_finished.path, 3), []

    def look(function: Callable[..., Any], *arguments: Any) -> Any:
        seen.append((list(shards.read()), list(FinishedShards(all_but_finished.path, 3).read())))
        return function(*arguments)

    with fates.at(None, look) as calls:
        all_but_finished.finish()
    assert seen == [([0, 1, 2], [0, 1, 2])] * calls.count
    assert calls.count == 4 + 4 + 3  # two files, three records
