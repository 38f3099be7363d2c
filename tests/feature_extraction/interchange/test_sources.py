"""Which format a source has, and what is no source."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_extraction.errors import InputDataError, Interrupted, UsageError
from feature_extraction.interchange.sources import FORMATS, FeatureSource, Sources, guess_format, open_source


def test_formats_are_told_by_the_names(
    write_vl_t5: Callable[..., Path],
    write_vl_adapter: Callable[..., Path],
    write_npz: Callable[..., Path],
    tmp_path: Path,
) -> None:
    one = np.ones((4, 2), np.float32)
    assert guess_format(write_vl_t5(tmp_path / "a.H5", {})) == "vl_t5"
    assert guess_format(write_vl_adapter(tmp_path / "grids", {"a": one})) == "vl_adapter"
    assert guess_format(write_npz(tmp_path / "arrays", {"a": {"features": one}})) == "arrays"
    (tmp_path / "a.tsv").write_text("")
    assert guess_format(tmp_path / "a.tsv") == "lxmert_tsv"


def test_what_tells_nothing_must_be_named(tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    for path in (tmp_path / "features.bin", tmp_path / "mixed" / "a.npy", tmp_path / "mixed" / "b.h5"):
        path.write_bytes(b"")
    for path in (tmp_path / "features.bin", tmp_path / "mixed"):
        with pytest.raises(UsageError) as caught:
            guess_format(path)
        assert str(caught.value).startswith(f"What is {path}? Its name does not tell. Give --format: vl_t5 (an HDF5 f")
    with pytest.raises(InputDataError, match=r"nowhere: no such file or folder. Check the path of --source"):
        guess_format(tmp_path / "nowhere")


@pytest.mark.parametrize("format_name", FORMATS)
def test_files_are_no_folders_and_nothing_is_empty(format_name: str, tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_bytes(b"")
    folder.mkdir()
    right, wrong = (folder, file) if FORMATS[format_name].startswith("a folder") else (file, folder)
    with pytest.raises(InputDataError, match=f"is not {FORMATS[format_name]}. Check --source and --format"):
        open_source(wrong, format_name)
    if format_name != "vl_t5":  # there, an empty file is no HDF5
        with pytest.raises(InputDataError, match=f"No images in {right}: expected {FORMATS[format_name]}. Check --so"):
            open_source(right, format_name)
    with pytest.raises(InputDataError, match=r"nowhere: no such file or folder. Check the path of --source"):
        open_source(tmp_path / "nowhere", format_name)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tsv")
    with pytest.raises(InputDataError, match=r"a.tsv is not a .tsv file with a line for each image"):
        open_source(tmp_path / "a.tsv", "lxmert_tsv")


def test_without_h5py_the_message_says_what_to_install(
    write_vl_t5: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_vl_t5(tmp_path / "a.h5", {})

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {missing.name!r}", name=missing.name)

    monkeypatch.setattr("feature_extraction.interchange.sources.import_module", missing)
    missing.name = "h5py"
    with pytest.raises(UsageError, match=r"HDF5 files need the package h5py. Install it: pip install 'dept_vl\[imp"):
        open_source(path, "vl_t5")
    missing.name = "something"
    with pytest.raises(ModuleNotFoundError, match="something"):
        open_source(path, "vl_t5")


def test_listing_can_be_stopped(write_npz: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_npz(tmp_path / "arrays", {"a": {"features": np.ones((4, 2), np.float32)}})
    with pytest.raises(Interrupted, match=r"Listing the images of .*arrays was not finished. The same command"):
        open_source(folder, "arrays", stop=lambda: True)


def test_joined_sources_are_sorted_and_read_from_their_owners(write_npz: Callable[..., Path], tmp_path: Path) -> None:
    parts = [
        open_source(
            write_npz(tmp_path / f"part{number}", {name: {"features": np.full((4, 2), number, np.float32)}}), "arrays"
        )
        for number, name in enumerate("zab")
    ]
    assert all(isinstance(part, FeatureSource) for part in parts)
    sources = Sources(parts)
    assert sources.ids == ["a", "b", "z"]
    assert [sources.read(image_id)["features"][0, 0] for image_id in sources.ids] == [1, 2, 0]
    assert sources.place("b") == str(tmp_path / "part2" / "b.npz")
