from __future__ import annotations

from pathlib import Path

import pytest

from feature_extraction.folders import files_below


def test_all_files_come_by_name_and_circles_end(tmp_path: Path) -> None:
    inner = tmp_path / "folder" / "inner"
    inner.mkdir(parents=True)
    for path in (tmp_path / "folder" / "b", tmp_path / "folder" / ".a", inner / "c"):
        path.touch()
    (inner / "up").symlink_to(tmp_path / "folder", target_is_directory=True)
    found = [path.relative_to(tmp_path / "folder").as_posix() for path in files_below(tmp_path / "folder")]
    assert found == [".a", "b", "inner/c"]


def test_a_folder_that_cannot_be_listed_is_left_out_or_told(tmp_path: Path) -> None:
    assert list(files_below(tmp_path / "absent")) == []

    def tell(error: OSError) -> None:
        raise error

    with pytest.raises(FileNotFoundError):
        list(files_below(tmp_path / "absent", tell))
