from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from feature_extraction.disk import refuse_full_disk
from feature_extraction.errors import DiskFullError


@pytest.fixture(autouse=True)
def one_gigabyte_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9))


def test_what_fits_with_a_tenth_to_spare_is_let_through(tmp_path: Path) -> None:
    refuse_full_disk(tmp_path / "new" / "folder", int(1e9 / 1.1), advice="do less")


def test_what_does_not_fit_is_refused_with_both_figures_and_advice(tmp_path: Path) -> None:
    with pytest.raises(
        DiskFullError,
        match=r"store needs 2\.20 GB, but only 1\.00 GB are free\. Nothing was written: free some space, give another "
        r"--output, or do less$",
    ):
        refuse_full_disk(tmp_path / "store", int(2e9), advice="do less")


def test_what_is_there_already_needs_no_room(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"x" * 1000)
    refuse_full_disk(tmp_path, int(1e9 / 1.1) + 1000, advice="do less")
    with pytest.raises(DiskFullError):
        refuse_full_disk(tmp_path, int(1e9 / 1.1) + 1100, advice="do less")
