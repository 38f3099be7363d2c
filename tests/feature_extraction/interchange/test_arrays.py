"""Folders of NumPy files."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_extraction.errors import InputDataError
from feature_extraction.interchange.image_arrays import Unusable
from feature_extraction.interchange.sources import Sources, open_source

FEATURES = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


class Canary:
    """Leaves a trace when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def opened(folder: Path) -> Sources:
    return Sources([open_source(folder, "arrays")])


def test_compressed_arrays_and_other_names_are_understood(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", features=FEATURES, info=np.array({"a": 1}), scores=np.ones(4))
    assert sorted(opened(tmp_path).read("a")) == ["features", "scores"]
    assert opened(tmp_path).read("a")["features"].tobytes() == FEATURES.tobytes()


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "canary")
    np.save(tmp_path / "one.npy", np.array([[canary]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", features=FEATURES, boxes=np.array([[canary]], dtype=object))
    (tmp_path / "three.npy").write_bytes(pickle.dumps(canary))
    sources = opened(tmp_path)
    for image_id, reason in (
        ("one", "features are object, expected numbers; Python objects could run code and are not read"),
        ("two", "boxes are object, expected numbers; Python objects could run code and are not read"),
        ("three", r"cannot be read \(ValueError: the magic string is not correct"),
    ):
        with pytest.raises(Unusable, match=reason):
            sources.read(image_id)
    assert not (tmp_path / "canary").exists()


def test_the_same_id_as_npy_and_npz_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FEATURES)
    np.savez(tmp_path / "a.npz", features=FEATURES)
    with pytest.raises(InputDataError, match=f"Image id 'a' stands twice, in {tmp_path}/a.npy and in {tmp_path}/a.npz"):
        opened(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 60, 0.5, 0.99])
def test_files_that_were_cut_off_are_unusable(keep: float, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FEATURES)
    np.savez(tmp_path / "b.npz", features=FEATURES)
    for name in ("a.npy", "b.npz"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    sources = opened(tmp_path)
    for image_id in "ab":
        with pytest.raises(Unusable, match=r"cannot be read \(\w+: "):
            sources.read(image_id)


def test_a_damaged_archive_is_unusable(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", features=FEATURES)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[data.index(FEATURES.tobytes())] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(Unusable, match=r"cannot be read \(BadZipFile: Bad CRC-32 for file 'features.npy'\)"):
        opened(tmp_path).read("a")


def test_a_file_without_features_is_unusable(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", boxes=np.zeros((4, 4), np.float32), x=FEATURES)
    np.savez(tmp_path / "b.npz", x=FEATURES)
    assert str(opened(tmp_path).look("a")) == "no features; found boxes"
    assert str(opened(tmp_path).look("b")) == "no features; found nothing of use"


def test_what_is_announced_too_large_is_not_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", features=FEATURES, scores=np.zeros(10_000_000, np.float32))
    with pytest.raises(Unusable, match=r"scores have shape \(10000000,\), with 4 visual tokens"):
        opened(tmp_path).read("a")


def test_unknown_versions_of_the_format_are_unusable(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("features.npy", b"\x93NUMPY\x03\x00" + b"\0" * 20)
    reason = str(opened(tmp_path).look("a"))
    assert reason == "features are in version (3, 0) of NumPy's format, expected 1.0 or 2.0"


def test_links_and_pipes_are_no_arrays(write_npz: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_npz(tmp_path / "arrays", {"a": {"features": FEATURES}})
    (folder / "b.npy").symlink_to(tmp_path / "nowhere")
    assert str(opened(folder).look("b")) == "the file is gone, or a link to nowhere"
