from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_extraction import FeatureStore
from feature_extraction.errors import DamagedError
from feature_extraction.store import shards as store_shards
from feature_extraction.store.layout import Fault, read_index, shard_name
from feature_extraction.store.shards import shard_bytes, shard_fault, size_fault


def with_header(path: Path, header: bytes) -> None:
    """Give a shard another header, as long as its own."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    assert len(header) <= length
    path.write_bytes(whole[:8] + header.ljust(length) + whole[8 + length :])


def header_of(path: Path) -> dict[str, Any]:
    whole = path.read_bytes()
    return json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])


def compact(header: Any) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def test_equal_images_give_equal_bytes(small: Any) -> None:
    one, other = (shard_bytes(small.manifest(), 0, small.IDS[:4], small.images(range(4))) for _ in range(2))
    assert one == other


def test_arrays_that_do_not_lie_in_order_are_written_all_the_same(store: Path, small: Any) -> None:
    images = {name: np.asfortranarray(array) for name, array in small.images(range(4)).items()}
    assert shard_bytes(small.manifest(), 0, small.IDS[:4], images) == (store / shard_name(0)).read_bytes()


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"boxes": None}, "nothing"),
        ({"boxes": np.zeros((4, 3, 4))}, r"float64 \(4, 3, 4\)"),
        ({"boxes": np.zeros((4, 2, 4), np.float32)}, r"float32 \(4, 2, 4\)"),
    ],
)
def test_arrays_of_another_kind_than_planned_are_refused(small: Any, changes: dict[str, Any], got: str) -> None:
    images = {name: array for name, array in {**small.images(range(4)), **changes}.items() if array is not None}
    message = rf"Field 'boxes' of shard-00007\.safetensors must be float32 \(4, 3, 4\), got {got}"
    with pytest.raises(ValueError, match=message):
        shard_bytes(small.manifest(), 7, small.IDS[:4], images)


@pytest.mark.parametrize(
    ("header", "got"),
    [
        (b"[]", "AttributeError"),
        (b"\xff", "UnicodeDecodeError"),
        (b"[" * 250, "JSONDecodeError"),
        (b'{"boxes":{}}', "KeyError"),
        (b'{"boxes":3}', "TypeError"),
        (b'{"boxes":{"data_offsets":[1]}}', "IndexError"),
        (b'{"boxes":{"data_offsets":[0.5,1]}}', "TypeError"),
    ],
)
def test_a_header_that_is_no_shards_is_detected(store: Path, header: bytes, got: str) -> None:
    with_header(store / shard_name(0), header)
    with pytest.raises(DamagedError, match=f"is damaged: expected the header of a shard, got {got}: "):
        FeatureStore.open(store).read("image 0")


def test_a_header_of_other_arrays_is_detected(store: Path) -> None:
    with_header(store / shard_name(0), b"{}")
    with pytest.raises(DamagedError, match=r'is damaged: expected \{"features": .*, got \{\}'):
        FeatureStore.open(store).read("image 0")


@pytest.mark.parametrize("change", [{"boxes": [0, 191]}, {"boxes": [1, 193]}, {"features": [192, 313]}])
def test_arrays_that_do_not_fill_the_file_are_detected(store: Path, change: dict[str, list[int]]) -> None:
    path = store / shard_name(0)
    header = header_of(path)
    assert (header["boxes"]["data_offsets"], header["features"]["data_offsets"]) == ([0, 192], [192, 312])
    for name, offsets in change.items():
        header[name]["data_offsets"] = offsets
    with_header(path, compact(header))
    with pytest.raises(DamagedError, match=r"is damaged: expected arrays that fill the bytes [\d,]+ to [\d,]+, got \{"):
        FeatureStore.open(store).read("image 0")


def test_a_shard_that_shrinks_after_the_store_was_opened_is_detected(store: Path) -> None:
    features = FeatureStore.open(store)
    os.truncate(store / shard_name(0), 4)
    with pytest.raises(DamagedError, match="expected the header of a shard, got error: unpack requires"):
        features.read("image 0")


def test_a_flipped_bit_of_a_header_never_gives_other_features(store: Path, small: Any) -> None:
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
        assert np.array_equal(found.features, small.FEATURES[4])


def test_a_whole_shard_has_no_fault(store: Path, small: Any) -> None:
    for number, shard in enumerate(read_index(store).values()):
        assert size_fault(store, shard) is None
        assert shard_fault(store, small.manifest(), number, shard) is None
        assert shard_fault(store, None, number, shard) is None


def test_a_shard_with_its_own_line_in_place_of_another_is_a_fault(store: Path, small: Any) -> None:
    shard = read_index(store)[shard_name(0)]
    fault = shard_fault(store, small.manifest(), 1, shard)
    assert fault is not None
    assert r"\"shard\": 1" in fault.expected
    assert r"\"shard\": 0" in fault.got
    assert shard_fault(store, None, 1, shard) is None  # without a manifest nobody can tell


def test_a_shard_that_cannot_be_read_is_a_fault(store: Path, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(store_shards, "sha256_of_file", fail)
    shard = read_index(store)[shard_name(0)]
    fault = shard_fault(store, small.manifest(), 0, shard)
    assert fault == Fault(shard.file, f"SHA-256 {shard.sha256}", "a file that cannot be read (Input/output error)")
