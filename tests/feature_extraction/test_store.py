from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from feature_extraction import FeatureStore
from feature_extraction.errors import DamagedError, IncompatibleError, InputDataError
from feature_extraction.images import ImageFile
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store_layout import (
    INDEX,
    MANIFEST,
    REJECTED,
    Manifest,
    Rejected,
    plan,
    seal,
    shard_name,
    unseal,
)
from feature_extraction.store_writer import StoreWriter

IMAGES = 10
IDENTITY = {"backbone": "tiny", "weight_digest": "0" * 64, "visual_tokens": 3, "feature_width": 5, "dtype": "float16"}
SETTINGS = ExtractionSettings(backbone="tiny", shard_size=4)
FILES = [ImageFile(f"image {number}", Path(f"{number}.png")) for number in range(IMAGES)]
FEATURES = np.random.default_rng(0).standard_normal((IMAGES, 3, 5)).astype(np.float16)
BOXES = np.random.default_rng(1).random((IMAGES, 3, 4), dtype=np.float32)
REJECTED_ROW = 6


def manifest(files: list[ImageFile] = FILES, identity: dict[str, Any] = IDENTITY, **changes: Any) -> Manifest:
    return plan([file.image_id for file in files], replace(SETTINGS, **changes), identity)


def images(rows: list[int]) -> dict[str, np.ndarray]:
    return {"features": FEATURES[rows], "boxes": BOXES[rows]}


def write_missing(writer: StoreWriter) -> None:
    for number in writer.missing:
        rows = [row for row in writer.rows(number) if row != REJECTED_ROW]
        rejected = [Rejected("image 6", "6.png", "6.png: empty")] if REJECTED_ROW in writer.rows(number) else []
        writer.write(
            number, [FILES[row].image_id for row in rows], {"features": FEATURES[rows], "boxes": BOXES[rows]}, rejected
        )


def write_store(path: Path) -> Path:
    writer = StoreWriter(path, manifest())
    write_missing(writer)
    writer.finish()
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store")


# --- reading


def test_every_image_is_read_back_bit_equal(store: Path) -> None:
    features = FeatureStore.open(store)
    for row in np.random.default_rng(2).permutation(IMAGES):
        if row == REJECTED_ROW:
            continue
        found = features.read(f"image {row}")
        assert np.array_equal(found.features, FEATURES[row])
        assert np.array_equal(found.boxes, BOXES[row])
        assert (found.features.dtype, found.boxes.dtype) == (np.float16, np.float32)


def test_the_store_tells_what_it_is(store: Path) -> None:
    features = FeatureStore.open(str(store))
    assert features.ids == tuple(features) == tuple(f"image {row}" for row in range(IMAGES) if row != REJECTED_ROW)
    assert len(features) == IMAGES - 1
    assert "image 3" in features
    assert "image 6" not in features
    assert (features.visual_tokens, features.feature_width) == (3, 5)
    assert features.identity == IDENTITY
    assert features.identity_digest == manifest().identity_digest
    assert features.settings == SETTINGS
    assert features.rejected == (Rejected("image 6", "6.png", "6.png: empty"),)
    assert repr(features) == f"FeatureStore({str(store)!r}: 9 images, 3 x 5)"
    assert (store / REJECTED).read_text() == '{"id": "image 6", "file": "6.png", "reason": "6.png: empty"}\n'
    features.verify()


def test_what_is_read_can_be_changed_without_changing_the_store(store: Path) -> None:
    features = FeatureStore.open(store)
    features.read("image 0").features[:] = 0
    assert np.array_equal(features.read("image 0").features, FEATURES[0])


def test_shards_are_plain_safetensors(store: Path) -> None:
    tensors = load_file(store / shard_name(0))
    assert np.array_equal(tensors["features"], FEATURES[:4])
    assert np.array_equal(tensors["boxes"], BOXES[:4])


def test_a_missing_image_is_named_with_the_next_step(store: Path) -> None:
    with pytest.raises(
        InputDataError, match=r"No features for image 'cat' in .*store \(9 images\)\. Run: python -m dept_vl\.extract"
    ):
        FeatureStore.open(store).read("cat")


def test_a_rejected_image_is_named_with_the_reason(store: Path) -> None:
    with pytest.raises(InputDataError, match=r"image 'image 6' in .*the extraction rejected it\. 6\.png: empty\. Mend"):
        FeatureStore.open(store).read("image 6")


def read_in_another_process(features: FeatureStore, answers: Any) -> None:
    answers.put(features.read("image 9").features.tobytes())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(store: Path, method: str) -> None:
    features = FeatureStore.open(store)
    features.read("image 0")  # a shard is mapped already
    features = pickle.loads(pickle.dumps(features))
    if method == "spawn":
        code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read('image 9').features.tobytes().hex())"
        found = subprocess.run(
            [sys.executable, "-c", code], input=pickle.dumps(features), capture_output=True, check=True
        )
        assert found.stdout.decode().strip() == FEATURES[9].tobytes().hex()
        return
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=read_in_another_process, args=(features, answers))
    child.start()
    assert answers.get() == FEATURES[9].tobytes()
    child.join()


def test_few_shards_are_mapped_at_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_extraction.store._MAPPED_SHARDS", 2)
    features = FeatureStore.open(store)
    for _ in range(2):
        for image_id in ("image 0", "image 4", "image 8"):
            assert np.array_equal(features.read(image_id).features, FEATURES[int(image_id[-1])])
    assert len(features._mapped) == 2


def test_reading_needs_no_torch() -> None:
    code = "import sys; from feature_extraction import FeatureStore; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_front_door_has_three_names() -> None:
    import feature_extraction

    assert [getattr(feature_extraction, name).__name__ for name in feature_extraction.__all__] == [
        "ExtractionSettings",
        "FeatureStore",
        "extract_features",
    ]
    with pytest.raises(AttributeError, match="module 'feature_extraction' has no attribute 'Trainer'"):
        feature_extraction.Trainer  # noqa: B018


# --- unfinished, foreign and other stores


def test_an_unfinished_store_is_refused_with_the_command_that_goes_on(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, manifest())
    writer.write(1, [FILES[row].image_id for row in (4, 5, 7)], {"features": FEATURES[:3], "boxes": BOXES[:3]}, [])
    with pytest.raises(InputDataError, match=r"not finished: 1 of 3 shards are done\. .*run again: python -m dept_vl"):
        FeatureStore.open(tmp_path)


@pytest.mark.parametrize("kind", ["absent", "empty", "file"])
def test_what_is_no_store_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store"
    if kind == "empty":
        path.mkdir()
    elif kind == "file":
        path.touch()
    with pytest.raises(InputDataError, match=r"is no feature store: it has no manifest\.json\. Make one with: python"):
        FeatureStore.open(path)


def test_a_store_of_another_layout_is_refused(store: Path) -> None:
    record = unseal((store / MANIFEST).read_bytes())
    assert record is not None
    (store / MANIFEST).write_bytes(seal({**record, "layout_version": 3}))
    with pytest.raises(IncompatibleError, match="has store layout 3; this version reads layout 1"):
        FeatureStore.open(store)


# --- damage


def test_every_flipped_bit_of_a_shard_is_detected(store: Path) -> None:
    features = FeatureStore.open(store)
    path = store / shard_name(1)
    whole = path.read_bytes()
    for place in np.random.default_rng(3).permutation(len(whole) * 8)[:300]:
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        with pytest.raises(DamagedError, match=r"shard-00001\.safetensors is damaged: expected SHA-256 .*delete this"):
            features.verify()
    path.write_bytes(whole)
    features.verify()


def test_a_flipped_bit_of_a_header_never_gives_other_features(store: Path) -> None:
    path = store / shard_name(1)
    whole = path.read_bytes()
    header_length = int.from_bytes(whole[:8], "little")
    for place in np.random.default_rng(5).permutation((8 + header_length) * 8)[:1000]:
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        try:
            found = FeatureStore.open(store).read("image 4")
        except DamagedError:
            continue
        assert np.array_equal(found.features, FEATURES[4])


@pytest.mark.parametrize("name", [MANIFEST, INDEX])
def test_every_flipped_bit_of_a_record_is_detected(store: Path, name: str) -> None:
    whole = (store / name).read_bytes()
    harmless = whole.rstrip(b"\n")
    for place in np.random.default_rng(4).permutation(len(harmless) * 8)[:300]:
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << (place % 8)
        (store / name).write_bytes(flipped)
        with pytest.raises((DamagedError, InputDataError)):
            FeatureStore.open(store)


def test_a_damaged_manifest_is_named_with_the_repair(store: Path) -> None:
    text = (store / MANIFEST).read_text()
    (store / MANIFEST).write_text(text.replace("tiny", "tidy"))
    with pytest.raises(DamagedError, match=r"manifest\.json is damaged: .*delete the folder and extract again"):
        FeatureStore.open(store)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_truncated_shard_is_detected_when_the_store_is_opened(store: Path, length: int) -> None:
    path = store / shard_name(2)
    size = path.stat().st_size
    features = FeatureStore.open(store)
    os.truncate(path, length % size)
    message = rf"shard-00002\.safetensors is damaged: expected {size:,} bytes, got {length % size:,}\. .*run the extr"
    with pytest.raises(DamagedError, match=message):
        FeatureStore.open(store)
    with pytest.raises(DamagedError, match=message):
        features.verify()


def test_a_missing_shard_is_detected_when_the_store_is_opened(store: Path) -> None:
    (store / shard_name(0)).unlink()
    with pytest.raises(DamagedError, match=r"shard-00000\.safetensors is damaged: expected .* got no such file"):
        FeatureStore.open(store)


def test_swapped_shards_are_detected_by_reading_and_by_verifying(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, manifest(FILES[:8]))
    for number in (0, 1):
        rows = list(writer.rows(number))
        writer.write(
            number, [FILES[row].image_id for row in rows], {"features": FEATURES[rows], "boxes": BOXES[rows]}, []
        )
    writer.finish()
    first, second = tmp_path / shard_name(0), tmp_path / shard_name(1)
    first_bytes = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(first_bytes)
    features = FeatureStore.open(tmp_path)
    with pytest.raises(DamagedError, match=r"shard-00000\.safetensors is damaged: expected .*shard.*0.*got .*shard.*1"):
        features.read("image 0")
    with pytest.raises(DamagedError, match=r"shard-00000\.safetensors is damaged: expected SHA-256"):
        features.verify()


@pytest.mark.parametrize(
    ("header", "expected"),
    [(b"[]", '\\{"boxes"'), (b"{}", '\\{"boxes"'), (b"\xff", "the header of a shard, got Unicode")],
)
def test_a_header_that_is_no_shards_is_detected(store: Path, header: bytes, expected: str) -> None:
    path = store / shard_name(0)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    path.write_bytes(whole[:8] + header.ljust(length) + whole[8 + length :])
    with pytest.raises(DamagedError, match=f"is damaged: expected {expected}"):
        FeatureStore.open(store).read("image 0")


def test_an_index_line_that_is_not_what_was_written_is_named(store: Path) -> None:
    lines = (store / INDEX).read_bytes().splitlines(keepends=True)
    (store / INDEX).write_bytes(lines[0] + lines[1].replace(b"image 5", b"image X") + lines[2])
    with pytest.raises(DamagedError, match=r"index\.jsonl is damaged: expected line 2 to fit its digest.*run the ext"):
        FeatureStore.open(store)


def test_a_stale_index_is_detected(tmp_path: Path, store: Path) -> None:
    other = StoreWriter(tmp_path / "other", manifest([file._replace(image_id=f"{file.image_id}!") for file in FILES]))
    for number in other.missing:
        rows = other.rows(number)
        ids = [f"{FILES[row].image_id}!" for row in rows]
        other.write(number, ids, {"features": FEATURES[rows], "boxes": BOXES[rows]}, [])
    for path in other.path.iterdir():
        if path.name != MANIFEST:
            (store / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DamagedError, match=r"index\.jsonl is damaged: expected the 10 image ids of manifest\.json"):
        FeatureStore.open(store)


@pytest.mark.parametrize("text", [b"", b"{", b"[]\n", b"null\n", b"{}\n", b'{"a": 1}\n', b"[" * 100_000 + b"\n"])
def test_text_that_was_not_sealed_is_no_record(text: bytes) -> None:
    assert unseal(text) is None


def test_a_record_survives_sealing(tmp_path: Path) -> None:
    record = {"id": "\udce9 \N{CAT FACE} \n", "numbers": [1, 2.5, None, True]}
    assert unseal(seal(record)) == record
    assert unseal(seal(record, indent=1)) == record
    assert b"\n" not in seal(record)[:-1]


# --- repair


@pytest.mark.parametrize("harm", ["delete", "truncate", "index line", "index"])
def test_writing_again_repairs_the_store_to_the_same_bytes(
    store: Path, contents: Callable[[Path], dict[str, bytes]], harm: str
) -> None:
    whole = contents(store)
    if harm == "delete":
        (store / shard_name(1)).unlink()
    elif harm == "truncate":
        os.truncate(store / shard_name(1), 50)
    elif harm == "index line":
        (store / INDEX).write_bytes(whole[INDEX].replace(b"image 5", b"image X"))
    else:
        (store / INDEX).unlink()
    writer = StoreWriter(store, manifest())
    assert writer.missing == ([0, 1, 2] if harm == "index" else [1])
    write_missing(writer)
    writer.finish()
    assert contents(store) == whole
    FeatureStore.open(store).verify()


# --- writing


def test_left_overs_of_a_stopped_process_are_ignored_and_removed(
    store: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    whole = contents(store)
    lines = whole[INDEX].splitlines(keepends=True)
    (store / INDEX).write_bytes(lines[0] + lines[1] + lines[2][:30])
    (store / f"{shard_name(2)}.partial").write_bytes(b"half")
    with pytest.raises(InputDataError, match="not finished: 2 of 3 shards"):
        FeatureStore.open(store)
    writer = StoreWriter(store, manifest())
    assert writer.missing == [2]
    write_missing(writer)
    writer.finish()
    assert contents(store) == whole


def test_a_folder_with_only_left_overs_is_taken(tmp_path: Path) -> None:
    (tmp_path / f"{MANIFEST}.partial").write_bytes(b"half")
    assert StoreWriter(tmp_path, manifest()).missing == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == [INDEX, MANIFEST]


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputDataError, match=r"no feature store and not empty: it has no manifest\.json, but thesis"):
        StoreWriter(tmp_path, manifest())


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(InputDataError, match=r"store is a file, not a folder\. Give a new folder as --output"):
        StoreWriter(tmp_path / "store", manifest())


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (manifest(identity={**IDENTITY, "weight_digest": "1" * 64}), "weight_digest"),
        (manifest(identity={**IDENTITY, "feature_width": 6}), "feature_width"),
        (manifest(identity={**IDENTITY, "layer": 3}), "layer"),
        (manifest(FILES[:9]), "images"),
        (manifest([*FILES[:9], ImageFile("other", Path("x"))]), "image_ids_digest"),
        (manifest(shard_size=5), "shard_size"),
    ],
)
def test_a_store_of_something_else_is_refused_with_a_table(store: Path, other: Manifest, field: str) -> None:
    with pytest.raises(IncompatibleError, match=r"holds other features than this command would write") as failure:
        StoreWriter(store, other)
    heading, table, *rows, advice = str(failure.value).splitlines()
    assert table.split() == ["field", "expected", "got"]
    assert field in [row.split()[0] for row in rows]
    assert advice == "Give a new folder as --output, or the images and settings of the store"
    assert "  image_size" not in heading


def test_settings_that_change_no_feature_may_differ(store: Path) -> None:
    assert StoreWriter(store, manifest(workers=7, weights="/moved/elsewhere.safetensors")).missing == []


def test_a_shard_without_any_usable_image_is_kept(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, manifest(FILES[:5]))
    writer.write(0, [FILES[row].image_id for row in range(4)], {"features": FEATURES[:4], "boxes": BOXES[:4]}, [])
    writer.write(1, [], {"features": FEATURES[:0], "boxes": BOXES[:0]}, [Rejected("image 4", "4.png", "bad")])
    writer.finish()
    features = FeatureStore.open(tmp_path)
    features.verify()
    assert len(features) == 4


@pytest.mark.parametrize("fate", ["stop_before", "stop_within", "stop_after"])
def test_a_stop_at_any_system_call_ends_in_the_same_store(
    tmp_path: Path, store: Path, contents: Callable[[Path], dict[str, bytes]], fates: Any, fate: str
) -> None:
    whole = contents(store)
    for number in range(1, 1000):
        path = tmp_path / f"stopped_{number}"
        with fates.at(number, getattr(fates, fate)) as calls:
            try:
                write_store(path)
                break
            except fates.Stop:
                pass
        see_no_damage(path)
        write_store(path)
        assert contents(path) == whole
    assert calls.count == number - 1 == 29  # every call of an undisturbed run had its turn


@pytest.mark.parametrize("fate", ["stop_before", "stop_within", "stop_after"])
def test_a_second_stop_while_going_on_ends_in_the_same_store(
    tmp_path: Path, store: Path, contents: Callable[[Path], dict[str, bytes]], fates: Any, fate: str
) -> None:
    whole = contents(store)
    for number in range(1, 1000):
        path = tmp_path / f"stopped_{number}"
        with fates.at(17, fates.stop_within), pytest.raises(fates.Stop):
            write_store(path)
        with fates.at(number, getattr(fates, fate)):
            try:
                write_store(path)
                break
            except fates.Stop:
                pass
        see_no_damage(path)
        write_store(path)
        assert contents(path) == whole
    assert number > 10


def test_a_full_disk_at_any_system_call_loses_nothing(
    tmp_path: Path, store: Path, contents: Callable[[Path], dict[str, bytes]], fates: Any
) -> None:
    whole = contents(store)
    for number in range(1, 1000):
        path = tmp_path / f"full_{number}"
        with fates.at(number, fates.disk_full):
            try:
                write_store(path)
                break
            except OSError:
                pass
        see_no_damage(path)
        write_store(path)
        assert contents(path) == whole
    assert number > 20


def see_no_damage(path: Path) -> None:
    """A reader sees the whole store or none, and never damage."""
    try:
        features = FeatureStore.open(path)
    except InputDataError:
        return
    features.verify()
    assert len(features) == IMAGES - 1


def test_a_store_is_the_same_json_in_any_process(store: Path) -> None:
    record = json.loads((store / MANIFEST).read_bytes())
    assert list(record)[-1] == "digest"
    assert record["layout_version"] == 1
