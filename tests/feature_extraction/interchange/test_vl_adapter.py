"""VL-Adapter's folders of one HDF5 file per image."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from feature_extraction.errors import InputDataError
from feature_extraction.interchange.image_arrays import Unusable
from feature_extraction.interchange.sources import Sources, open_source

GRID = np.ones((49, 4), np.float16)


def test_ids_are_whole_names_dots_included(write_vl_adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_vl_adapter(tmp_path / "grids", {"a.b.c": GRID, "naïve \U0001f600\n": GRID, "caf\udce9": GRID[:, :2]})
    sources = Sources([open_source(folder, "vl_adapter")])
    assert sources.ids == ["a.b.c", "caf\udce9", "naïve \U0001f600\n"]
    assert sources.read("caf\udce9")["features"].shape == (49, 2)
    assert sources.grid


def test_equal_names_in_two_folders_are_refused(write_vl_adapter: Callable[..., Path], tmp_path: Path) -> None:
    first = write_vl_adapter(tmp_path / "grids" / "train", {"a": GRID})
    second = write_vl_adapter(tmp_path / "grids" / "val", {"a": GRID})
    with pytest.raises(InputDataError, match=f"Image id 'a' stands twice, in {first}/a.h5 and in {second}/a.h5. An id"):
        open_source(tmp_path / "grids", "vl_adapter")


def test_links_to_folders_are_followed_and_circles_end(write_vl_adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_vl_adapter(tmp_path / "grids", {"a": GRID})
    elsewhere = write_vl_adapter(tmp_path / "elsewhere", {"b": GRID})
    (folder / "more").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    assert Sources([open_source(folder, "vl_adapter")]).ids == ["a", "b"]


def test_odd_files_are_unusable_and_named(write_vl_adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_vl_adapter(tmp_path / "grids", {"good": GRID})
    (folder / "empty.h5").write_bytes(b"")
    os.mkfifo(folder / "pipe.h5")
    (folder / "gone.h5").symlink_to(tmp_path / "nowhere")
    (folder / "renamed.h5").write_bytes((folder / "good.h5").read_bytes())
    with h5py.File(folder / "bare.h5", "w") as file:
        file.create_group("bare")
    sources = Sources([open_source(folder, "vl_adapter")])
    reasons = {image_id: str(sources.look(image_id)) for image_id in sources.ids if image_id != "good"}
    assert reasons.pop("empty").startswith("no HDF5 file, or damaged (0 bytes; ")
    assert reasons == {
        "pipe": "no regular file",
        "gone": "the file is gone, or a link to nowhere",
        "renamed": "expected the key 'renamed/features', found 'good'",
        "bare": "no features; found nothing",
    }
    with pytest.raises(Unusable, match="no regular file"):
        sources.read("pipe")
    assert sources.place("pipe") == str(folder / "pipe.h5")
