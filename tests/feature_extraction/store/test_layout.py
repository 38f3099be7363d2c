from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from feature_extraction.store.layout import (
    MANIFEST,
    Fault,
    Field,
    contents_digest,
    more_fields,
    parse_index,
    read_index,
    read_manifest,
    seal,
    unseal,
)


@pytest.mark.parametrize("text", [b"", b"{", b"[]\n", b"null\n", b"{}\n", b'{"a": 1}\n', b"[" * 100_000 + b"\n"])
def test_text_that_was_not_sealed_is_no_record(text: bytes) -> None:
    assert unseal(text) is None


def test_a_record_survives_sealing() -> None:
    record = {"id": "\udce9 \N{CAT FACE} \n", "numbers": [1, 2.5, None, True]}
    assert unseal(seal(record)) == record
    assert unseal(seal(record, indent=1)) == record
    assert b"\n" not in seal(record)[:-1]
    assert unseal(seal(record)[:-1]) is None


def test_a_manifest_is_read_back_as_it_was_planned(store: Path, small: Any) -> None:
    assert read_manifest(store) == small.manifest()
    record = json.loads((store / MANIFEST).read_bytes())
    assert list(record)[-1] == "digest"
    assert record["layout_version"] == 2


def test_a_plan_counts_shards_and_bytes(small: Any) -> None:
    planned = small.manifest()
    assert planned.shards == 3
    assert planned.bytes_per_image == 3 * 5 * 2 + 3 * 4 * 4


def test_optional_fields_take_the_number_of_visual_tokens() -> None:
    assert more_fields(["image_size", "mask"], 36) == {
        "image_size": Field("int64", (2,)),
        "mask": Field("bool", (36,)),
    }


def test_an_index_that_is_not_there_has_no_shards(tmp_path: Path) -> None:
    assert read_index(tmp_path) == {}


def test_the_lines_of_an_index_that_are_not_what_was_written_are_counted(store: Path) -> None:
    lines = (store / "index.jsonl").read_bytes().splitlines(keepends=True)
    shards, damaged_lines = parse_index(lines[2] + b"x\n" + lines[0] + lines[1][:-1])
    assert sorted(shards) == ["shard-00000.safetensors", "shard-00002.safetensors"]
    assert damaged_lines == [2, 4]


def test_the_digest_of_the_contents_sees_every_shard_its_place_and_the_identity(store: Path, small: Any) -> None:
    shards = list(read_index(store).values())
    whole = contents_digest(small.manifest(), shards)
    assert whole == contents_digest(small.manifest(source="elsewhere", workers=7), shards)
    others = [
        contents_digest(small.manifest(identity={**small.IDENTITY, "layer": 2}), shards),
        contents_digest(small.manifest(), shards[::-1]),
        contents_digest(small.manifest(), shards[:2]),
        contents_digest(small.manifest(), [*shards[:2], replace(shards[2], sha256="0" * 64)]),
    ]
    assert len({whole, *others}) == 5


def test_a_fault_is_told_with_its_repair() -> None:
    error = Fault("a", "b", "c").error(Path("d"))
    assert str(error) == (
        "d/a is damaged: expected b, got c. To write what is damaged anew, run: python -m dept_vl.extract --repair d"
    )
