from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from feature_extraction import FeatureStore
from feature_extraction.errors import DamagedError, IncompatibleError, InputDataError
from feature_extraction.store.layout import INDEX, MANIFEST, REJECTED, Rejected, more_fields, plan, shard_name
from feature_extraction.store.writer import StoreWriter

# --- reading


def test_every_image_is_read_back_bit_equal(store: Path, small: Any) -> None:
    features = FeatureStore.open(store)
    for row in np.random.default_rng(2).permutation(len(small.IDS)):
        if small.IDS[row] == small.REJECTED.image_id:
            continue
        found = features.read(small.IDS[row])
        assert np.array_equal(found.features, small.FEATURES[row])
        assert np.array_equal(found.boxes, small.BOXES[row])
        assert found.mask.tolist() == [True] * 3
        assert (found.features.dtype, found.boxes.dtype) == (np.float16, np.float32)


def test_the_store_tells_what_it_is(store: Path, small: Any) -> None:
    features = FeatureStore.open(str(store))
    assert features.ids == tuple(features) == tuple(one for one in small.IDS if one != "image 6")
    assert len(features) == 9
    assert "image 3" in features
    assert "image 6" not in features
    assert (features.visual_tokens, features.feature_width) == (3, 5)
    assert features.identity == small.IDENTITY
    assert features.identity_digest == small.manifest().identity_digest
    assert features.settings == small.SETTINGS
    assert features.rejected == (small.REJECTED,)
    assert repr(features) == f"FeatureStore({str(store)!r}: 9 images, 3 x 5)"
    features.verify()


def test_what_is_read_can_be_changed_without_changing_the_store(store: Path, small: Any) -> None:
    features = FeatureStore.open(store)
    features.read("image 0").features[:] = 0
    assert np.array_equal(features.read("image 0").features, small.FEATURES[0])


def test_a_store_may_hold_more_fields_of_each_image(tmp_path: Path, small: Any) -> None:
    more = more_fields(["mask", "class_ids", "image_size"], 3)
    writer = StoreWriter(tmp_path, plan(["a", "b"], small.SETTINGS, small.IDENTITY, more=more))
    images = {
        **small.images([0, 1]),
        "mask": np.array([[True, True, False], [True, False, False]]),
        "class_ids": np.array([[5, 6, 0], [7, 0, 0]]),
        "image_size": np.array([[480, 640], [100, 90]]),
    }
    writer.write(0, ["a", "b"], images, [])
    writer.finish()
    features = FeatureStore.open(tmp_path)
    assert features.read("b").mask.tolist() == [True, False, False]
    record = features.record("a")
    assert sorted(record) == sorted(images)
    assert all(np.array_equal(record[name], images[name][0]) for name in images)
    record["image_size"][:] = 0
    assert features.record("a")["image_size"].tolist() == [480, 640]


def test_shards_are_plain_safetensors(store: Path, small: Any) -> None:
    tensors = load_file(store / shard_name(0))
    assert np.array_equal(tensors["features"], small.FEATURES[:4])
    assert np.array_equal(tensors["boxes"], small.BOXES[:4])


@pytest.mark.parametrize("read", [FeatureStore.read, FeatureStore.record])
def test_a_missing_image_is_named_with_the_next_step(store: Path, read: Any) -> None:
    with pytest.raises(
        InputDataError, match=r"No features for image 'cat' in .*store \(9 images\)\. Run: python -m dept_vl\.extract"
    ):
        read(FeatureStore.open(store), "cat")


def test_a_rejected_image_is_named_with_the_reason(store: Path) -> None:
    with pytest.raises(InputDataError, match=r"image 'image 6' in .*the extraction rejected it\. 6\.png .*\. Mend"):
        FeatureStore.open(store).read("image 6")


def read_in_another_process(features: FeatureStore, answers: Any) -> None:
    answers.put(features.read("image 9").features.tobytes())


@pytest.mark.parametrize("way", ["pickle", "fork"])
def test_another_process_reads_the_same(store: Path, small: Any, way: str) -> None:
    features = FeatureStore.open(store)
    features.read("image 0")
    if way == "pickle":
        copy = pickle.loads(pickle.dumps(features))
        assert np.array_equal(copy.read("image 9").features, small.FEATURES[9])
        return
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=read_in_another_process, args=(features, answers))
    child.start()
    assert answers.get() == small.FEATURES[9].tobytes()
    child.join()


def test_few_shards_are_mapped_at_once(store: Path, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_extraction.store.reader._MAPPED_SHARDS", 2)
    features = FeatureStore.open(store)
    for _ in range(2):
        for image_id in ("image 0", "image 4", "image 8"):
            assert np.array_equal(features.read(image_id).features, small.FEATURES[int(image_id[-1])])
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


# --- what is refused


def test_an_unfinished_store_is_refused_with_the_command_that_goes_on(tmp_path: Path, small: Any) -> None:
    writer = StoreWriter(tmp_path, small.manifest())
    small.write_shard(writer, 1)
    message = rf"store {tmp_path} is not finished: 1 of 3 shards are done\. To go on, run again: python -m dept_vl\.ext"
    with pytest.raises(InputDataError, match=message):
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


def test_a_store_of_another_layout_is_refused(store: Path, reseal: Any) -> None:
    reseal(store / MANIFEST, layout_version=3)
    with pytest.raises(IncompatibleError, match=r"has store layout 3; this version reads layout 2\. Use the version"):
        FeatureStore.open(store)


# --- damage; test_care.py has all kinds of it


def test_a_damaged_manifest_is_named_with_the_way_out(store: Path) -> None:
    text = (store / MANIFEST).read_text()
    (store / MANIFEST).write_text(text.replace("tiny", "tidy"))
    with pytest.raises(DamagedError, match=r"manifest\.json is damaged: .*delete the folder and extract again"):
        FeatureStore.open(store)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_truncated_shard_is_detected_by_opening_verifying_and_reading(store: Path, length: int) -> None:
    path = store / shard_name(2)
    size = path.stat().st_size
    features = FeatureStore.open(store)
    os.truncate(path, length % size)
    message = (
        rf"shard-00002\.safetensors is damaged: expected {size:,} bytes, got {length % size:,}\. "
        rf"To write what is damaged anew, run: python -m dept_vl\.extract --repair {store}$"
    )
    with pytest.raises(DamagedError, match=message):
        FeatureStore.open(store)
    with pytest.raises(DamagedError, match=message):
        features.verify()
    with pytest.raises(DamagedError, match=r"shard-00002\.safetensors is damaged"):
        features.read("image 9")


def test_a_missing_shard_is_detected_when_the_store_is_opened(store: Path) -> None:
    (store / shard_name(0)).unlink()
    with pytest.raises(DamagedError, match=r"shard-00000\.safetensors is damaged: expected .* bytes, got no such file"):
        FeatureStore.open(store)


def test_swapped_shards_are_detected_by_reading_and_by_verifying(tmp_path: Path, small: Any) -> None:
    ids = [f"image {number}" for number in range(8)]
    writer = StoreWriter(tmp_path, small.manifest(ids))
    for number, rows in enumerate((range(4), range(4, 8))):
        writer.write(number, [ids[row] for row in rows], small.images(rows), [])
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


def test_an_index_line_that_is_not_what_was_written_is_named(store: Path) -> None:
    lines = (store / INDEX).read_bytes().splitlines(keepends=True)
    (store / INDEX).write_bytes(lines[0] + lines[1].replace(b"image 5", b"image X") + lines[2])
    with pytest.raises(DamagedError, match=r"index\.jsonl is damaged: expected line 2 to fit its digest, got other"):
        FeatureStore.open(store)


def test_an_index_of_other_images_is_detected(store: Path, tmp_path: Path, small: Any) -> None:
    other = StoreWriter(tmp_path / "other", small.manifest([f"{image_id}!" for image_id in small.IDS]))
    for number in other.missing:
        rows = other.rows(number)
        other.write(number, [f"{small.IDS[row]}!" for row in rows], small.images(rows), [])
    other.finish()
    for path in other.path.iterdir():
        if path.name != MANIFEST:
            (store / path.name).write_bytes(path.read_bytes())
    with pytest.raises(DamagedError, match=r"index\.jsonl is damaged: expected the 10 image ids of manifest\.json"):
        FeatureStore.open(store)


def test_the_list_of_rejected_images_is_for_people(store: Path) -> None:
    assert (store / REJECTED).read_text() == (
        '{"id": "image 6", "file": "6.png", "reason": "6.png (0 bytes): the file is empty"}\n'
    )


def test_a_store_whose_every_image_was_rejected_in_one_shard_is_read(tmp_path: Path, small: Any) -> None:
    writer = StoreWriter(tmp_path, small.manifest(small.IDS[:5]))
    writer.write(0, small.IDS[:4], small.images(range(4)), [])
    writer.write(1, [], small.images([]), [Rejected("image 4", "4.png", "bad")])
    writer.finish()
    features = FeatureStore.open(tmp_path)
    features.verify()
    assert len(features) == 4
