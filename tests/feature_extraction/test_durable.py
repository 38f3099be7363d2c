from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from feature_extraction.durable import (
    PARTIAL_SUFFIX,
    append_durably,
    commit_directory,
    create_exclusively,
    remove,
    sha256_of_file,
    write_durably,
)
from feature_extraction.errors import DiskFullError


def test_what_is_written_is_there_with_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert write_durably(path, b"hello") == hashlib.sha256(b"hello").hexdigest() == sha256_of_file(path)
    append_durably(path, b", world")
    assert path.read_bytes() == b"hello, world"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_appending_creates_the_file(tmp_path: Path) -> None:
    append_durably(tmp_path / "a", b"line\n")
    assert (tmp_path / "a").read_bytes() == b"line\n"


@pytest.mark.parametrize("fate", ["stop_before", "stop_within", "stop_after"])
def test_a_stop_at_any_call_leaves_the_old_file_or_the_new(tmp_path: Path, fates: Any, fate: str) -> None:
    path = tmp_path / "a"
    for number in range(1, 100):
        path.write_bytes(b"old")
        with fates.at(number, getattr(fates, fate)) as calls:
            try:
                write_durably(path, b"new contents")
            except fates.Stop:
                assert path.read_bytes() in (b"old", b"new contents")
                continue
        assert calls.count == 4  # write, fsync, replace, fsync of the folder
        assert path.read_bytes() == b"new contents"
        break


@pytest.mark.parametrize("fate", ["stop_before", "stop_within", "stop_after"])
def test_a_stop_while_appending_leaves_the_former_bytes_in_front(tmp_path: Path, fates: Any, fate: str) -> None:
    path = tmp_path / "a"
    for number in (1, 2):
        path.write_bytes(b"old\n")
        with fates.at(number, getattr(fates, fate)), pytest.raises(fates.Stop):
            append_durably(path, b"new\n")
        assert b"old\nnew\n".startswith(path.read_bytes())
        assert path.read_bytes().startswith(b"old\n")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_full_disk_keeps_the_old_file_and_removes_the_rest(tmp_path: Path, fates: Any, number: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with (
        fates.at(number, fates.disk_full),
        pytest.raises(DiskFullError, match=r"Disk full writing .*a \(12 bytes needed\).*free some space") as failure,
    ):
        write_durably(path, b"new contents")
    assert failure.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_disk_that_is_full_when_the_folder_is_made_to_last_says_so_too(tmp_path: Path, fates: Any) -> None:
    with fates.at(4, fates.disk_full), pytest.raises(DiskFullError, match="Disk full writing"):
        write_durably(tmp_path / "a", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_each_writer_has_a_temporary_name_of_its_own(tmp_path: Path, fates: Any) -> None:
    for writer in ("", "one", "two"):
        with fates.at(3, fates.stop_before), pytest.raises(fates.Stop):
            write_durably(tmp_path / "a", b"x", writer=writer)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.one.partial", "a.partial", "a.two.partial"]
    assert all(entry.name.endswith(PARTIAL_SUFFIX) for entry in tmp_path.iterdir())
    write_durably(tmp_path / "a", b"x", writer="one")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "a.partial", "a.two.partial"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_full_disk_while_appending_cuts_the_file_back(tmp_path: Path, fates: Any, number: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old\n")
    with fates.at(number, fates.disk_full), pytest.raises(DiskFullError, match="Disk full writing"):
        append_durably(path, b"new\n")
    assert path.read_bytes() == b"old\n"


def test_other_failures_of_the_system_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_durably(tmp_path / "absent" / "a", b"x")
    with pytest.raises(FileNotFoundError):
        append_durably(tmp_path / "absent" / "a", b"x")


def test_a_folder_is_committed_whole(tmp_path: Path, fates: Any) -> None:
    partial, final = tmp_path / "run.partial", tmp_path / "run"
    partial.mkdir()
    (partial / "a").write_bytes(b"x")
    with fates.at(2, fates.stop_before), pytest.raises(fates.Stop):  # after the fsync, before the rename
        commit_directory(partial, final)
    assert partial.exists()
    assert not final.exists()
    commit_directory(partial, final)
    assert (final / "a").read_bytes() == b"x"
    assert not partial.exists()


# --- exclusive creation, removing


def test_a_file_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert create_exclusively(path, b"first")
    assert not create_exclusively(path, b"second")
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("number", [1, 2])
def test_a_full_disk_leaves_no_created_file(tmp_path: Path, fates: Any, number: int) -> None:
    with fates.at(number, fates.disk_full), pytest.raises(DiskFullError, match=r"Disk full writing .*a \(5 bytes"):
        create_exclusively(tmp_path / "a", b"first")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_for_a_name_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("feature_extraction.durable.os.open", fail)
    with pytest.raises(DiskFullError, match="Disk full writing"):
        create_exclusively(tmp_path / "a", b"first")


def test_other_failures_of_creation_stay_what_they_are(
    tmp_path: Path, fates: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        create_exclusively(tmp_path / "absent" / "a", b"x")

    def fail(*arguments: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with fates.at(1, fail), pytest.raises(OSError, match="Input/output error"):
        create_exclusively(tmp_path / "a", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_may_be_removed_twice(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    remove(tmp_path / "a")
    remove(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
