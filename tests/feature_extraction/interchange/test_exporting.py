"""A store as VL-T5 reads it, and back."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from feature_extraction.errors import DamagedError, DiskFullError, InputDataError, Interrupted
from feature_extraction.interchange import exporting
from feature_extraction.interchange.exporting import check_export, export_vl_t5
from feature_extraction.interchange.importing import import_features
from feature_extraction.interchange.shape import ImportSettings
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store.layout import more_fields, plan
from feature_extraction.store.reader import FeatureStore
from feature_extraction.store.writer import StoreWriter

IDS = ["COCO_a", "COCO_b", "COCO_c"]
NAMED = ImportSettings(name="butd_vg", shard_size=2)


def silent(line: str) -> None:
    """Says nothing."""


@pytest.fixture
def make_store(
    make_regions: Callable[..., Any], write_npz: Callable[..., Path], tmp_path: Path
) -> Callable[..., FeatureStore]:
    """A store of regions."""

    def make(ids: list[str] = IDS, **changes: Any) -> FeatureStore:
        source = write_npz(tmp_path / "source", make_regions(ids, **changes))
        import_features([source], tmp_path / "store", NAMED, say=silent)
        return FeatureStore.open(tmp_path / "store")

    return make


def write_store(path: Path, ids: list[str], *, more: tuple[str, ...] = ("image_size",)) -> FeatureStore:
    """A store of any ids, of tiny features."""
    identity = {"backbone": "toy", "visual_tokens": 2, "feature_width": 3, "dtype": "float16"}
    manifest = plan(ids, ExtractionSettings(shard_size=512), identity, more=more_fields(more, 2))
    generator = np.random.default_rng(0)
    with StoreWriter(path, manifest) as writer:
        for number in writer.missing:
            part = sorted(ids)[writer.rows(number).start : writer.rows(number).stop]
            images = {name: np.ones((len(part), *field.shape), field.dtype) for name, field in manifest.fields.items()}
            images["features"] = generator.normal(size=(len(part), 2, 3)).astype(np.float16)
            writer.write(number, part, images, [])
        writer.finish()
    return FeatureStore.open(path)


def test_the_file_is_as_vl_t5_reads_it(make_store: Callable[..., FeatureStore], tmp_path: Path) -> None:
    store = make_store()
    done = export_vl_t5(store, tmp_path / "out.h5", say=silent)
    assert done[:2] == (3, 0)
    with h5py.File(tmp_path / "out.h5") as file:
        assert sorted(file) == IDS
        for image_id, group in file.items():
            assert {name: (str(dataset.dtype), dataset.shape) for name, dataset in group.items()} == {
                "features": ("float32", (36, 8)),
                "boxes": ("float32", (36, 4)),
                "obj_id": ("int64", (36,)),
                "attr_id": ("int64", (36,)),
                "obj_conf": ("float32", (36,)),
                "attr_conf": ("float32", (36,)),
                "img_w": ("int64", ()),
                "img_h": ("int64", ()),
            }
            # What VL-T5's data sets do with it.
            features = np.zeros((36, 8), np.float32)
            file[f"{image_id}/features"].read_direct(features)
            assert features.tobytes() == store.read(image_id).features.tobytes()
            boxes = file[f"{image_id}/boxes"][:36]
            boxes[:, (0, 2)] /= file[f"{image_id}/img_w"][()]
            boxes[:, (1, 3)] /= file[f"{image_id}/img_h"][()]
            np.testing.assert_array_less(boxes, 1 + 1e-5)
            np.testing.assert_array_less(-boxes, 0 + 1e-5)


@pytest.mark.parametrize("tokens", [36, [3, 5, 4]])
def test_a_round_trip_keeps_every_bit_of_the_features(
    tokens: Any, make_store: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    store = make_store(tokens=tokens)
    done = export_vl_t5(store, tmp_path / "out.h5", say=silent)
    assert done.masked == (0 if tokens == 36 else 2)
    import_features([tmp_path / "out.h5"], tmp_path / "again", NAMED, say=silent)
    again = FeatureStore.open(tmp_path / "again")
    assert again.ids == store.ids
    for image_id in store:
        before, after = store.record(image_id), again.record(image_id)
        assert before.keys() == after.keys()
        np.testing.assert_allclose(after.pop("boxes"), before.pop("boxes"), rtol=3e-7)
        assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_float16_is_written_as_float32_and_unknown_ids_as_zeros(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", ["a"])
    export_vl_t5(store, tmp_path / "out.h5", say=silent)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["a/features"].dtype == np.float32
        assert np.array_equal(file["a/features"][()], store.read("a").features)
        assert file["a/boxes"][()].tolist() == [[1, 1, 1, 1]] * 2
        for name in ("obj_id", "attr_id", "obj_conf", "attr_conf"):
            assert file[f"a/{name}"][()].tolist() == [0, 0]


def test_a_thousand_random_ids_go_out_and_come_back(tmp_path: Path) -> None:
    dice = random.Random(0)
    alphabet = "aZ09 ._-/\\..//\n\t\r\"':*?%\x01\x7f\xe9\u0301\u200f\u202e中\U0001f600\U00010ffff"
    ids = {"".join(dice.choices(alphabet, k=dice.randint(1, 24))) for _ in range(1500)}
    refused = {image_id for image_id in ids if {"", "."} & set(image_id.split("/"))}
    assert len(refused) > 100
    store = write_store(tmp_path / "all", sorted(ids))
    with pytest.raises(InputDataError, match=rf"^{len(refused)} image ids cannot be names in an HDF5 file: "):
        export_vl_t5(store, tmp_path / "out.h5", say=silent)

    store = write_store(tmp_path / "store", sorted(ids - refused))
    assert len(store) > 1000
    export_vl_t5(store, tmp_path / "out.h5", say=silent)
    import_features([tmp_path / "out.h5"], tmp_path / "again", NAMED._replace(shard_size=512), say=silent)
    again = FeatureStore.open(tmp_path / "again")
    assert again.ids == store.ids
    for image_id in store:
        assert np.array_equal(again.read(image_id).features, store.read(image_id).features)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "all", "out.h5", "store"]


@pytest.mark.parametrize(
    ("image_id", "reason"),
    [
        ("a\0b", "a zero character ends names there"),
        ("a\ud800b", "half a character, a lone surrogate, has no place there"),
        ("caf\udce9", "half a character, a lone surrogate, has no place there"),
        ("", "nothing, or a single dot, between slashes is left out there"),
        ("/a", "nothing, or a single dot, between slashes is left out there"),
        ("a//b", "nothing, or a single dot, between slashes is left out there"),
        ("a/./b", "nothing, or a single dot, between slashes is left out there"),
        ("a/features", "this name after a slash is that of an array there"),
        ("a/boxes/b", "this name after a slash is that of an array there"),
    ],
)
def test_ids_that_hdf5_cannot_hold_are_refused(image_id: str, reason: str, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", [image_id, "good"])
    with pytest.raises(InputDataError) as caught:
        check_export(store, tmp_path / "out.h5")
    assert str(caught.value) == (
        f"1 image ids cannot be names in an HDF5 file: {image_id!r} ({reason}). Rename these images or leave them out, "
        "and extract again"
    )


def test_an_existing_file_and_a_missing_folder_are_refused(
    make_store: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    (tmp_path / "out.h5").write_text("mine")
    store = make_store()
    with pytest.raises(InputDataError, match=r"out.h5 exists. Give a new file as --output, or delete this one"):
        export_vl_t5(store, tmp_path / "out.h5", say=silent)
    assert (tmp_path / "out.h5").read_text() == "mine"
    with pytest.raises(InputDataError, match=r"nowhere is no folder. Make it, or give another --output"):
        export_vl_t5(store, tmp_path / "nowhere" / "out.h5", say=silent)


def test_without_image_sizes_there_are_no_pixels(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", ["a"], more=())
    with pytest.raises(InputDataError, match="does not know how large its images are, so that boxes cannot be told in"):
        export_vl_t5(store, tmp_path / "out.h5", say=silent)


def test_a_damaged_store_is_not_exported(make_store: Callable[..., FeatureStore], tmp_path: Path) -> None:
    store = make_store()
    shard = store.path / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedError, match=r"shard-00001.safetensors"):
        export_vl_t5(store, tmp_path / "out.h5", say=silent)
    assert not list(tmp_path.glob("out.h5*"))


def test_a_full_disk_is_seen_before_anything_is_written(
    make_store: Callable[..., FeatureStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(DiskFullError, match=r"out.h5 needs 0.00 GB, .* or export a store of fewer images"):
        export_vl_t5(store, tmp_path / "out.h5", say=silent)
    assert not list(tmp_path.glob("out.h5*"))


class Failing:
    """``os``, whose write, fsync or replace with number ``at`` fails, a write after half of its bytes."""

    def __init__(self, at: int, code: int) -> None:
        self.count, self._at, self._code = 0, at, code

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in ("write", "fsync", "replace"):
            return function

        def call(*arguments: Any) -> Any:
            self.count += 1
            if self.count != self._at:
                return function(*arguments)
            if name == "write":
                function(arguments[0], arguments[1][: len(arguments[1]) // 2])
            raise OSError(self._code, "injected")

        return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_at_any_call_leaves_nothing_and_does_not_end_the_process(
    code: int, make_store: Callable[..., FeatureStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    calls = Failing(0, code)
    monkeypatch.setattr(exporting, "os", calls)
    export_vl_t5(store, tmp_path / "out.h5", say=silent)
    (tmp_path / "out.h5").unlink()
    assert calls.count > 20
    for at in range(1, calls.count + 1):
        monkeypatch.setattr(exporting, "os", Failing(at, code))
        with pytest.raises(OSError, match="injected" if code == errno.EIO else "Disk full writing") as caught:
            export_vl_t5(store, tmp_path / "out.h5", say=silent)
        if code != errno.EIO:
            assert isinstance(caught.value, DiskFullError)
            assert caught.value.strerror == (
                f"Disk full writing {tmp_path / 'out.h5'}. Nothing is left of it: free some space and run the same "
                "command"
            )
        assert not list(tmp_path.glob("out.h5*"))


def test_a_stopped_export_leaves_nothing(make_store: Callable[..., FeatureStore], tmp_path: Path) -> None:
    store = make_store()
    asked = iter(range(2))
    with pytest.raises(
        Interrupted, match=r"The export was not finished, and nothing is left of it. Run the same command"
    ):
        export_vl_t5(store, tmp_path / "out.h5", stop=lambda: next(asked, None) is None, say=silent)
    assert not list(tmp_path.glob("out.h5*"))


def test_what_a_killed_export_left_does_not_disturb(make_store: Callable[..., FeatureStore], tmp_path: Path) -> None:
    store = make_store()
    (tmp_path / "out.h5.partial").write_bytes(b"half a file" * 100_000)
    export_vl_t5(store, tmp_path / "out.h5", say=silent)
    assert sorted(path.name for path in tmp_path.glob("out.h5*")) == ["out.h5"]
    with h5py.File(tmp_path / "out.h5") as file:
        assert len(file) == 3


def test_progress_is_told_shard_by_shard(make_store: Callable[..., FeatureStore], tmp_path: Path) -> None:
    lines: list[str] = []
    store = make_store()
    export_vl_t5(store, tmp_path / "out.h5", say=lines.append)
    assert lines[0] == f"Verifying {store.path}"
    assert [line.split(" shards")[0] for line in lines[1:]] == ["2/3 images, 1/2", "3/3 images, 2/2"]
