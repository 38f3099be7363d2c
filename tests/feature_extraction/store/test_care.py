from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_extraction import FeatureStore
from feature_extraction.errors import DamagedError, IncompatibleError, InputDataError, UsageError
from feature_extraction.store.care import Report, check, clear_damaged, describe, forget_rejected
from feature_extraction.store.claims import Process
from feature_extraction.store.layout import (
    INDEX,
    MANIFEST,
    REJECTED,
    Fault,
    Rejected,
    claim_name,
    contents_digest,
    parse_index,
    read_index,
    record_name,
    seal,
    shard_name,
)
from feature_extraction.store.writer import StoreWriter

Contents = Callable[[Path], dict[str, bytes]]
IN_FEATURES = -160  # a bit, counted from the end of a shard


def files_at_fault(store: Path) -> list[str]:
    return [fault.file for fault in check(store).faults]


def flip_bit(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place // 8] ^= 1 << (place % 8)
    path.write_bytes(data)


def repair(store: Path, small: Any) -> list[int]:
    """What the command does: forget what is damaged, write what is missing."""
    again = clear_damaged(store, files_at_fault(store))
    assert StoreWriter(store, small.manifest()).missing == again
    small.write(store)
    return again


# --- whole stores


def test_a_whole_store_has_no_fault(store: Path, small: Any) -> None:
    seen: list[tuple[int, int]] = []
    report = check(store, progress=lambda done, total: seen.append((done, total)))
    sizes = [(store / shard_name(number)).stat().st_size for number in range(3)]
    digest = contents_digest(small.manifest(), list(read_index(store).values()))
    assert report == Report(store, 3, 3, 9, 1, sum(sizes), (), (), (), digest)
    assert seen == [(sum(sizes[: number + 1]), sum(sizes)) for number in range(3)]
    megabytes = f"{sum(sizes) / 1e6:.1f}"
    assert report.summary == (
        f"3 of 3 shards, 9 images, 1 rejected, {megabytes} MB, 0 faults, contents {report.digest}"
    )
    report.refuse_faults()


def test_equal_contents_have_equal_digests_wherever_the_images_lay(tmp_path: Path, store: Path, small: Any) -> None:
    other = small.write(tmp_path / "other", source="elsewhere", workers=9)
    assert (other / MANIFEST).read_bytes() != (store / MANIFEST).read_bytes()
    assert check(other).digest == check(store).digest


def test_an_unfinished_store_is_checked_as_far_as_it_goes(tmp_path: Path, small: Any) -> None:
    writer = StoreWriter(tmp_path, small.manifest())
    for number in (0, 1):
        small.write_shard(writer, number)
    writer.claim([2])
    (tmp_path / f"{shard_name(2)}.12.partial").touch()
    report = check(tmp_path)
    assert (report.finished, report.shards, report.faults, report.digest) == (2, 3, (), None)
    assert (report.left_overs, report.orphans) == ((), ())
    flip_bit(tmp_path / shard_name(0), IN_FEATURES)
    flip_bit(tmp_path / record_name(1), 100)
    assert files_at_fault(tmp_path) == [record_name(1), shard_name(0)]


def test_a_store_without_images_is_whole(tmp_path: Path, small: Any) -> None:
    StoreWriter(tmp_path, small.manifest([])).finish()
    assert check(tmp_path).faults == ()
    assert FeatureStore.open(tmp_path).ids == ()


@pytest.mark.parametrize("kind", ["absent", "folder", "file"])
def test_what_is_no_store_cannot_be_checked(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.touch()
    with pytest.raises(InputDataError, match="is no feature store: it has no manifest"):
        check(path)


def test_a_store_of_another_layout_cannot_be_checked(store: Path, reseal: Any) -> None:
    reseal(store / MANIFEST, layout_version=9)
    with pytest.raises(IncompatibleError, match="has store layout 9"):
        check(store)


# --- every kind of fault


def test_every_fault_is_found_not_only_the_first(store: Path) -> None:
    whole = check(store)
    (store / shard_name(0)).unlink()
    flip_bit(store / shard_name(1), IN_FEATURES)
    size = (store / shard_name(2)).stat().st_size
    os.truncate(store / shard_name(2), size - 1)
    (store / REJECTED).unlink()
    report = check(store)
    expected = read_index(store)
    assert report.faults[0].got == "no such file"
    assert report.faults[1].expected == f"SHA-256 {expected[shard_name(1)].sha256}"
    assert report.faults[2] == Fault(shard_name(2), f"{size:,} bytes", f"{size - 1:,}")
    assert report.faults[3] == Fault(REJECTED, "the 1 rejected images of index.jsonl", "no such file")
    assert [fault.file for fault in report.faults] == [*map(shard_name, range(3)), REJECTED]
    assert (report.finished, report.images, report.digest) == (3, whole.images, None)
    assert "4 faults" in report.summary
    with pytest.raises(DamagedError) as failure:
        report.refuse_faults()
    heading, *lines, advice = str(failure.value).splitlines()
    assert heading == f"{store} has 4 faults:"
    assert lines[0].startswith("  shard-00000.safetensors: expected ")
    assert lines[0].endswith(" bytes, got no such file")
    assert len(lines) == 4
    assert advice == f"To write what is damaged anew, run: python -m dept_vl.extract --repair {store}"


def test_a_long_list_of_faults_is_cut(tmp_path: Path) -> None:
    faults = tuple(Fault(shard_name(number), "a", "b") for number in range(23))
    with pytest.raises(DamagedError) as failure:
        Report(tmp_path, 23, 23, 0, 0, 0, faults, (), (), None).refuse_faults()
    lines = str(failure.value).splitlines()
    assert len(lines) == 1 + 20 + 1 + 1
    assert lines[-2] == "  and 3 more"


def test_a_damaged_manifest_hides_no_other_fault(store: Path) -> None:
    flip_bit(store / MANIFEST, 100)
    flip_bit(store / shard_name(2), IN_FEATURES)
    report = check(store)
    assert [fault.file for fault in report.faults] == [MANIFEST, shard_name(2)]
    assert report.faults[0] == Fault(MANIFEST, "contents that fit its digest", "others")
    assert (report.shards, report.digest) == (3, None)
    with pytest.raises(
        DamagedError, match=r"\nRestore manifest\.json from a copy, or delete the folder and extract again$"
    ):
        report.refuse_faults()
    with pytest.raises(DamagedError, match=r"manifest\.json is damaged"):
        clear_damaged(store, [shard_name(2)])


def test_a_damaged_manifest_alone_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b"{}")
    assert check(tmp_path).faults == (Fault(MANIFEST, "contents that fit its digest", "others"),)


def test_lines_of_the_index_that_are_not_what_was_written_are_counted(store: Path) -> None:
    lines = (store / INDEX).read_bytes().splitlines(keepends=True)
    (store / INDEX).write_bytes(lines[0].replace(b"image", b"imago") + lines[1] + lines[2][:-5])
    report = check(store)
    assert report.faults == tuple(Fault(INDEX, f"line {line} to fit its digest", "other contents") for line in (1, 3))
    assert report.finished == 1


def test_an_index_that_lost_whole_lines_is_a_fault(store: Path) -> None:
    lines = (store / INDEX).read_bytes().splitlines(keepends=True)
    (store / INDEX).write_bytes(lines[0])
    assert check(store).faults == tuple(Fault(INDEX, f"a line of {shard_name(number)}", "none") for number in (1, 2))
    (store / claim_name(1)).touch()  # somebody is about to commit it
    assert check(store).faults == (Fault(INDEX, f"a line of {shard_name(2)}", "none"),)


def test_an_index_with_lines_of_a_larger_store_is_a_fault(store: Path) -> None:
    line = (store / INDEX).read_bytes().splitlines(keepends=True)[0]
    shards, _ = parse_index(line)
    record = {**shards[shard_name(0)].record(), "file": shard_name(3)}
    (store / INDEX).write_bytes((store / INDEX).read_bytes() + seal(record))
    assert check(store).faults == (Fault(INDEX, "lines of 3 shards", "one of shard-00003.safetensors"),)


def test_another_list_of_rejected_images_is_a_fault(store: Path) -> None:
    (store / REJECTED).write_text("{}\n")
    assert check(store).faults == (Fault(REJECTED, "the 1 rejected images of index.jsonl", "others"),)


def test_a_shard_of_another_place_is_a_fault_even_with_its_line(tmp_path: Path, small: Any) -> None:
    small.write(tmp_path, shard_size=5)
    shards = list(read_index(tmp_path).values())
    lines = []
    for shard, other in zip(shards, shards[::-1], strict=True):
        lines.append(seal({**other.record(), "file": shard.file}))
        (tmp_path / other.file).rename(tmp_path / f"{shard.file}.moved")
    (tmp_path / INDEX).write_bytes(b"".join(lines))
    for shard in shards:
        (tmp_path / f"{shard.file}.moved").rename(tmp_path / shard.file)
    faults = check(tmp_path).faults
    assert [fault.file for fault in faults] == [*map(shard_name, range(2))]
    assert r"\"shard\": 0" in faults[0].expected
    assert r"\"shard\": 1" in faults[0].got


def test_a_store_of_other_images_is_a_fault(tmp_path: Path, store: Path, small: Any) -> None:
    other = StoreWriter(tmp_path / "other", small.manifest([f"{image_id}!" for image_id in small.IDS]))
    for number in range(3):
        rows = other.rows(number)
        other.write(number, [f"{small.IDS[row]}!" for row in rows], small.images(rows), [])
    other.finish()
    shutil.copy(store / MANIFEST, other.path / MANIFEST)
    fault = check(other.path).faults[-1]
    assert fault == Fault(INDEX, "the 10 image ids of manifest.json", "others")
    assert clear_damaged(other.path, [fault.file]) == [0, 1, 2]
    assert (other.path / INDEX).read_bytes() == b""


def test_left_overs_and_foreign_files_are_no_damage(store: Path) -> None:
    left = (f"{INDEX}.12.partial", record_name(0), claim_name(1))
    shutil.copy(store / shard_name(0), store / shard_name(7))
    for name in (left[0], left[2], "notes.txt"):
        (store / name).touch()
    (store / left[1]).write_bytes((store / INDEX).read_bytes().splitlines(keepends=True)[0])
    (store / "folder").mkdir()
    report = check(store)
    assert report.faults == ()
    assert report.left_overs == left
    assert report.orphans == ("folder", "notes.txt", shard_name(7))
    assert f"3 left-over files ({left[0]}), 3 foreign files (folder)" in report.summary
    report.refuse_faults()


# --- random damage is always detected


def harm_at_random(store: Path, random: np.random.Generator) -> str:
    """Damage a store in one of many ways, and say how."""
    files = [*map(shard_name, range(3)), INDEX, MANIFEST]
    name = str(random.choice(files))
    path, size = store / name, (store / name).stat().st_size
    kind = str(random.choice(["bit", "bit", "bit", "truncate", "zeros", "swap", "delete", "stale"]))
    if kind == "bit":
        place = int(random.integers((size - (name in (INDEX, MANIFEST))) * 8))  # a last line end says nothing
        flip_bit(path, place)
        return f"bit {place} of {name}"
    if kind == "truncate":
        length = int(random.integers(size - (name == MANIFEST)))
        os.truncate(path, length)
        return f"{name} cut to {length} bytes"
    if kind == "zeros":
        data = bytearray(path.read_bytes())
        start = int(random.integers(size - 8))
        data[start : start + 8] = b"\xa5" * 8
        path.write_bytes(data)
        return f"eight other bytes at {start} of {name}"
    if kind == "swap":
        one, other = random.choice(3, 2, replace=False)
        first, second = ((store / shard_name(int(number))).read_bytes() for number in (one, other))
        (store / shard_name(int(one))).write_bytes(second)
        (store / shard_name(int(other))).write_bytes(first)
        return f"shards {one} and {other} swapped"
    if kind == "delete":
        path.unlink()
        return f"{name} deleted"
    lines = (store / INDEX).read_bytes().splitlines(keepends=True)
    number = int(random.integers(3))
    shards, _ = parse_index(lines[number])
    record = shards[shard_name(number)].record()
    stale = {
        "sha256": "0" * 64,
        "bytes": record["bytes"] + 1,
        "ids": [*record["ids"][:-1], "another image"],
        "rejected": [{"id": "another image", "file": "x", "reason": "y"}],
        "file": shard_name((number + 1) % 3),
    }
    field = str(random.choice(list(stale)))
    lines[number] = seal({**record, field: stale[field]})
    (store / INDEX).write_bytes(b"".join(lines))
    return f"line {number} of the index tells of another {field}"


def faults_or_refusal(store: Path) -> Iterator[str]:
    """What tells of the damage: a check, and an attempt to use the store."""
    try:
        report = check(store)
        if report.faults:
            yield "check"
        elif report.finished < report.shards:
            yield "check: not finished"
    except InputDataError:
        yield "check"
    try:
        FeatureStore.open(store).verify()
    except (DamagedError, InputDataError):
        yield "use"


def detect(store: Path, contents: Contents, trials: int, seed: int) -> None:
    whole = contents(store)
    random = np.random.default_rng(seed)
    for _ in range(trials):
        harm = harm_at_random(store, random)
        detected = list(faults_or_refusal(store))
        assert len(detected) == 2, (harm, detected)
        assert detected[0] == "check" or harm == "index.jsonl deleted" or "index.jsonl cut to 0" in harm, harm
        for name, data in whole.items():
            (store / name).write_bytes(data)
    assert contents(store) == whole


def test_random_damage_is_always_detected(store: Path, contents: Contents) -> None:
    detect(store, contents, trials=400, seed=0)


@pytest.mark.slow
def test_ten_thousand_kinds_of_random_damage_are_always_detected(store: Path, contents: Contents) -> None:
    detect(store, contents, trials=10_000, seed=1)


# --- repair


@pytest.mark.parametrize("harm", ["flip", "cut", "delete", "swap", "line", "lines", "cut index", "rejected"])
def test_repair_writes_exactly_what_is_damaged(store: Path, small: Any, contents: Contents, harm: str) -> None:
    whole = contents(store)
    lines = whole[INDEX].splitlines(keepends=True)
    if harm == "flip":
        flip_bit(store / shard_name(1), IN_FEATURES)
    elif harm == "cut":
        os.truncate(store / shard_name(1), 20)
    elif harm == "delete":
        (store / shard_name(1)).unlink()
    elif harm == "swap":
        (store / shard_name(0)).write_bytes(whole[shard_name(1)])
        (store / shard_name(1)).write_bytes(whole[shard_name(0)])
    elif harm == "line":
        (store / INDEX).write_bytes(lines[0] + lines[1].replace(b"image", b"imago") + lines[2])
    elif harm == "lines":
        (store / INDEX).write_bytes(lines[0] + lines[2])
    elif harm == "cut index":
        os.truncate(store / INDEX, len(lines[0]) + 3)
    elif harm == "rejected":
        (store / REJECTED).unlink()
    os.utime(store / shard_name(2), (0, 0))
    assert repair(store, small) == {"swap": [0, 1], "cut index": [1, 2], "rejected": []}.get(harm, [1])
    assert contents(store) == whole
    assert check(store).faults == ()
    assert ((store / shard_name(2)).stat().st_mtime == 0) == (harm != "cut index")


@pytest.mark.parametrize("file", [shard_name(1), record_name(1), "shard-00001", "shard-1"])
def test_a_shard_is_written_anew_when_it_is_named(store: Path, small: Any, contents: Contents, file: str) -> None:
    whole = contents(store)
    assert clear_damaged(store, [file]) == [1]
    assert not (store / shard_name(1)).exists()
    assert check(store).faults == ()
    small.write(store)
    assert contents(store) == whole


@pytest.mark.parametrize("file", ["shard-00003", "../x", "shard-00001.safetensors.partial", MANIFEST])
def test_what_is_no_shard_cannot_be_written_anew(store: Path, contents: Contents, file: str) -> None:
    whole = contents(store)
    message = r"is no shard of .*store; its shards are shard-00000\.safetensors to shard-00002\.safetensors"
    with pytest.raises(UsageError, match=message):
        clear_damaged(store, [shard_name(0), file])
    assert contents(store) == whole


def test_repair_of_an_unfinished_store_keeps_its_whole_shards(
    tmp_path: Path, store: Path, small: Any, contents: Contents
) -> None:
    path = tmp_path / "unfinished"
    writer = StoreWriter(path, small.manifest())
    for number in range(3):
        small.write_shard(writer, number)
    flip_bit(path / record_name(0), 99)
    flip_bit(path / shard_name(2), IN_FEATURES)
    assert repair(path, small) == [0, 2]
    assert contents(path) == contents(store)


@pytest.mark.parametrize("fate", ["stop_before", "stop_within", "stop_after"])
def test_a_repair_that_is_stopped_at_any_call_can_be_run_again(
    tmp_path: Path, store: Path, small: Any, contents: Contents, fates: Any, fate: str
) -> None:
    whole = contents(store)
    for number in range(1, 100):
        path = shutil.copytree(store, tmp_path / f"stopped_{number}")
        flip_bit(path / shard_name(1), IN_FEATURES)
        with fates.at(number, getattr(fates, fate)) as calls:
            try:
                clear_damaged(path, files_at_fault(path))
                break
            except fates.Stop:
                pass
        repair(path, small)
        assert contents(path) == whole
    assert calls.count == number - 1 == 4 + 1 + 1  # the index; a record that is not there, a shard


def test_shards_with_rejected_images_can_be_tried_again(store: Path, small: Any, contents: Contents) -> None:
    whole = contents(store)
    with pytest.raises(IncompatibleError, match="holds other features than this command would write"):
        forget_rejected(store, small.manifest(identity={**small.IDENTITY, "layer": 7}))
    assert contents(store) == whole
    assert forget_rejected(store, small.manifest()) == [1]
    writer = StoreWriter(store, small.manifest())
    assert writer.missing == [1]
    writer.write(1, small.IDS[4:8], small.images(range(4, 8)), [])  # the file was mended meanwhile
    writer.finish()
    assert (store / REJECTED).read_bytes() == b""
    assert len(FeatureStore.open(store)) == 10
    assert check(store).faults == ()
    assert forget_rejected(store, small.manifest()) == []


# --- description


def test_a_store_is_described(store: Path, small: Any) -> None:
    size = sum((store / shard_name(number)).stat().st_size for number in range(3)) / 1e6
    assert describe(store) == [
        f"store           {store}",
        "backbone        tiny",
        f"weight_digest   {'0' * 64}",
        "visual_tokens   3",
        "feature_width   5",
        "dtype           float16",
        "field features  float16 3 x 5",
        "field boxes     float32 3 x 4",
        "source          photos",
        "images          9 with features, 1 rejected, 10 in all",
        "shards          3 of 3, finished",
        f"size            {size:.1f} MB, 78 bytes per image",
        f"identity        {small.manifest().identity_digest}",
        f"contents        {check(store).digest}",
        "rejected 1: the file is empty; the first is 6.png (0 bytes): the file is empty",
    ]


def test_the_description_of_an_unfinished_store_says_who_works_on_it(
    tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Process("node3", "node3 another boot", 4411, "")
    with StoreWriter(tmp_path, small.manifest()) as writer:
        small.write_shard(writer, 0)
        for process in (elsewhere, elsewhere._replace(machine="here", pid=2)):
            monkeypatch.setattr("feature_extraction.store.claims.this_process", lambda process=process: process)
            writer.claim([1, 2])
        monkeypatch.setattr(Process, "gone", property(lambda process: process.machine == "here"))
        lines = describe(tmp_path)
    assert "shards          1 of 3, not finished" in lines
    assert lines[-2:] == [
        "at work         shard 1: node3, process 4411",
        "at work         shard 2: node3, process 2, which is gone",
    ]
    assert not [line for line in lines if line.startswith("contents")]


def test_rejected_images_are_grouped_by_reason(tmp_path: Path, small: Any) -> None:
    reasons = [
        "a.png: 12000 x 12000 = 144 megapixels; at most 64 are decoded",
        "b.png (1,234 bytes): damaged or truncated (OSError: image file is truncated (5 bytes not processed))",
        "c.png (17 bytes): damaged or truncated (SyntaxError: broken PNG file)",
        "d.png: 9000 x 9000 = 81 megapixels; at most 64 are decoded",
        "e.png: none of the formats JPEG, PNG: it starts with the bytes 68 65 6c",
        "f.png (1 byte): damaged or truncated (OSError: x)",
    ]
    ids = [reason[0] for reason in reasons]
    writer = StoreWriter(tmp_path, small.manifest(ids, shard_size=10))
    rejected = [Rejected(image_id, f"{image_id}.png", reason) for image_id, reason in zip(ids, reasons, strict=True)]
    writer.write(0, [], small.images([]), rejected)
    writer.finish()
    assert [line for line in describe(tmp_path) if line.startswith("rejected")] == [
        f"rejected 3: damaged or truncated; the first is {reasons[1]}",
        f"rejected 2: N x N = N megapixels; the first is {reasons[0]}",
        f"rejected 1: none of the formats JPEG, PNG; the first is {reasons[4]}",
    ]
