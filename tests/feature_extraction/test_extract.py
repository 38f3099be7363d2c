from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from feature_extraction import FeatureStore, extract_features
from feature_extraction.errors import DiskFullError, IncompatibleError, InputDataError, Interrupted, UsageError
from feature_extraction.extract import Extraction, Part, Plan, plan_extraction, run_plan
from feature_extraction.images.decoding import ImageFile, decode_image
from feature_extraction.settings import ExtractionSettings
from feature_extraction.store.writer import StoreWriter

Contents = Callable[[Path], dict[str, bytes]]
IMAGES, SHARDS = 9, 3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[[Path, int], Path]) -> Path:
    """Nine pictures, one of them damaged: the shards hold 4, 3 and 1."""
    folder = make_images(tmp_path_factory.mktemp("images"), IMAGES)
    (folder / "image_005.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def planned(images: Path, tiny_settings: ExtractionSettings) -> Plan:
    """The tower is built once for all tests."""
    return plan_extraction(images, tiny_settings)


def extract(planned: Plan, output: Path, **options: Any) -> Extraction:
    lines: list[str] = []
    defaults: dict[str, Any] = {"max_rejected_fraction": 0.001, "stop": lambda: False, "say": lines.append}
    return run_plan(planned, output, **{**defaults, **options})


@pytest.fixture(scope="module")
def whole(planned: Plan, tmp_path_factory: pytest.TempPathFactory, contents: Contents) -> dict[str, bytes]:
    """The bytes of the undisturbed store."""
    output = tmp_path_factory.mktemp("whole") / "store"
    extract(planned, output)
    return contents(output)


# --- what the store holds


def test_the_store_holds_the_features_of_every_usable_image(planned: Plan, tmp_path: Path) -> None:
    found = extract(planned, tmp_path / "store")
    assert (found.images, found.extracted, found.rejected) == (IMAGES, IMAGES, 1)
    store = FeatureStore.open(tmp_path / "store")
    store.verify()
    assert len(store) == IMAGES - 1
    assert store.identity == planned.backbone.identity()
    for image in planned.images:
        if image.image_id == "image_005":
            continue
        stored = store.read(image.image_id)
        alone = planned.backbone.encode([decode_image(image.path)])
        assert np.array_equal(stored.features, alone["features"][0])
        assert np.array_equal(stored.boxes, alone["boxes"][0])
        assert store.record(image.image_id)["image_size"].tolist() == [20, 24]


def test_unusable_images_are_listed_with_file_and_reason(planned: Plan, images: Path, whole: dict[str, bytes]) -> None:
    path = images / "image_005.png"
    assert json.loads(whole["rejected.jsonl"]) == {
        "id": "image_005",
        "file": str(path),
        "reason": f"{path} (10 bytes): none of the formats JPEG, PNG, WEBP, GIF, BMP: "
        "it starts with the bytes 6e 6f 20 70 69 63 74 75",
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(
    planned: Plan,
    tmp_path: Path,
    whole: dict[str, bytes],
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    monkeypatch.setattr(planned.backbone, "settings", replace(planned.backbone.settings, workers=workers))
    extract(planned, tmp_path / "store")
    assert contents(tmp_path / "store") == whole


@pytest.mark.parametrize("lanes", [2, 8])
def test_batches_encoded_beside_each_other_change_nothing(
    planned: Plan, tmp_path: Path, whole: dict[str, bytes], contents: Contents, lanes: int
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(lanes)
    try:
        extract(planned, tmp_path / "store")
        assert torch.get_num_threads() == lanes
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "store") == whole


def test_the_collection_around_an_image_changes_nothing(planned: Plan, tmp_path: Path, images: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("".join(f"{images / name}\n" for name in ("image_008.png", "image_002.png", "image_005.png")))
    extract_features(few, tmp_path / "few", planned.backbone.settings, say=lambda line: None)
    extract(planned, tmp_path / "all")
    few_store, all_store = FeatureStore.open(tmp_path / "few"), FeatureStore.open(tmp_path / "all")
    assert few_store.ids == ("image_002", "image_008")
    for image_id in few_store:
        assert np.array_equal(few_store.read(image_id).features, all_store.read(image_id).features)


def test_features_that_are_not_finite_are_rejected(
    planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = planned.backbone.encode_inputs

    def overflow(ids: Any, inputs: Any) -> Any:
        found = encode(ids, inputs)
        found["features"][0, 0, 0] = np.inf
        return found

    monkeypatch.setattr(planned.backbone, "encode_inputs", overflow)
    monkeypatch.setattr("feature_extraction.extract.self_test", lambda backbone: None)
    assert extract(planned, tmp_path / "store").rejected == 6
    store = FeatureStore.open(tmp_path / "store")
    assert store.ids == ("image_001", "image_003", "image_007")
    assert store.rejected[0].reason.endswith("image_000.png: its features are NaN or too large for float16")


# --- what the user sees


def test_every_shard_is_reported_with_its_rate(planned: Plan, tmp_path: Path) -> None:
    lines: list[str] = []
    extract(planned, tmp_path / "store", say=lines.append)
    assert lines[0] == "Trying timm/test_efficientnet on a few pictures"
    assert [line.split(", ")[:2] for line in lines[1:]] == [
        ["4/9 images", "1/3 shards"],
        ["8/9 images", "2/3 shards"],
        ["9/9 images", "3/3 shards"],
    ]
    assert "images/s, 00:00 left, 1 rejected" in lines[-1]


def test_on_a_terminal_a_bar_is_drawn_instead(
    planned: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    lines: list[str] = []
    extract(planned, tmp_path / "store", say=lines.append)
    assert lines == ["Trying timm/test_efficientnet on a few pictures"]
    drawn = capsys.readouterr().err
    assert "9/9" in drawn
    assert "1 rejected" in drawn


# --- stopping and going on


def test_a_stopped_run_goes_on_where_it_was(
    planned: Plan, tmp_path: Path, whole: dict[str, bytes], contents: Contents
) -> None:
    asked = iter([False, False, False, True])  # after three of five batches: in the second shard
    with pytest.raises(Interrupted, match=r"^1/3 shards of .*store are done\. The same command goes on$"):
        extract(planned, tmp_path / "store", stop=lambda: next(asked))
    lines: list[str] = []
    assert extract(planned, tmp_path / "store", say=lines.append).extracted == 5
    assert lines[0] == "Resuming: 1/3 shards done"
    assert contents(tmp_path / "store") == whole


def test_a_finished_store_is_left_alone(planned: Plan, tmp_path: Path, contents: Contents) -> None:
    output = tmp_path / "store"
    extract(planned, output)
    times = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    lines: list[str] = []
    assert extract(planned, output, say=lines.append).extracted == 0
    assert lines == []
    assert times == {path: path.stat().st_mtime_ns for path in output.iterdir()}


def test_the_damaged_shard_is_made_anew_after_its_file_is_deleted(
    planned: Plan, tmp_path: Path, whole: dict[str, bytes], contents: Contents
) -> None:
    output = tmp_path / "store"
    extract(planned, output)
    (output / "shard-00001.safetensors").unlink()
    assert extract(planned, output).extracted == 4
    assert contents(output) == whole


@pytest.mark.parametrize("fate", ["stop_before", "stop_within", "stop_after"])
def test_a_stop_at_any_system_call_ends_in_the_same_store(
    planned: Plan, tmp_path: Path, whole: dict[str, bytes], contents: Contents, fates: Any, fate: str
) -> None:
    for number in range(1, 1000):
        output = tmp_path / str(number)
        with fates.at(number, getattr(fates, fate)):
            try:
                extract(planned, output)
                break
            except fates.Stop:
                pass
        see_no_damage(output)
        extract(planned, output)
        assert contents(output) == whole
        shutil.rmtree(output)
    assert number == 55


def test_a_full_disk_at_any_system_call_loses_nothing(
    planned: Plan, tmp_path: Path, whole: dict[str, bytes], contents: Contents, fates: Any
) -> None:
    for number in range(1, 1000):
        output = tmp_path / str(number)
        with fates.at(number, fates.disk_full):
            try:
                extract(planned, output)
                break
            except OSError:  # DiskFullError, or the system's own where nothing was being written
                pass
        see_no_damage(output)
        extract(planned, output)
        assert contents(output) == whole
        shutil.rmtree(output)
    assert number == 55


def see_no_damage(output: Path) -> None:
    for claim in output.glob("*.claim"):
        os.utime(claim, (0, 0))  # the process that it names is this test; were it gone, the claim would be free at once
    try:
        store = FeatureStore.open(output)
    except InputDataError:  # not finished
        return
    store.verify()


def test_a_killed_worker_is_reported_and_the_run_can_go_on(
    planned: Plan, tmp_path: Path, whole: dict[str, bytes], contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planned.backbone, "settings", replace(planned.backbone.settings, workers=1))
    test_process = os.getpid()

    def die(image: ImageFile, rules: Any) -> Any:
        if os.getpid() != test_process and image.image_id == "image_006":
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_image(image, rules)

    monkeypatch.setattr("feature_extraction.images.inputs.decode_image", die)
    with pytest.raises(
        MemoryError, match=r"A decoding process was killed by SIGKILL, .*again with a lower features\.workers"
    ):
        extract(planned, tmp_path / "store")
    monkeypatch.undo()
    extract(planned, tmp_path / "store")
    assert contents(tmp_path / "store") == whole


@pytest.mark.parametrize("workers", [0, 1])
def test_other_faults_in_decoding_are_not_taken_for_it(
    planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(planned.backbone, "settings", replace(planned.backbone.settings, workers=workers))

    def fail(image: ImageFile, rules: Any) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("feature_extraction.images.inputs.decode_image", fail)
    message = ["a fault of ours", "A decoding process failed with exit code 1; its traceback stands above"][workers]
    with pytest.raises(RuntimeError, match=message):
        extract(planned, tmp_path / "store")


# --- several processes


@pytest.mark.parametrize(
    ("part", "order"),
    [
        (Part(), [0, 1, 2, 3, 4]),
        (Part(1, 2), [1, 3, 0, 2, 4]),
        (Part(1, 2, strict=True), [1, 3]),
        (Part(6, 7, strict=True), []),
    ],
)
def test_a_part_of_the_work_is_every_nth_shard(part: Part, order: list[int]) -> None:
    assert part.of(5) == order


def test_a_part_is_named_by_its_number_and_how_many_there_are() -> None:
    assert Part.named("0/4") == Part(0, 4, strict=True)


@pytest.mark.parametrize("text", ["4/4", "1", "1/", "/2", "a/b", "-1/4", "0/0"])
def test_a_part_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=rf"^--shard is '{text}'; it is i/n with i from 0 to n - 1, as in --shard 0/4"):
        Part.named(text)


def test_launched_processes_begin_with_shards_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Part.of_launcher() == Part()
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert Part.of_launcher() == Part(2, 3)


def test_independent_jobs_make_one_store_together(
    planned: Plan, tmp_path: Path, whole: dict[str, bytes], contents: Contents
) -> None:
    output = tmp_path / "store"
    found = [extract(planned, output, part=Part(index, 2, strict=True)) for index in (1, 0)]
    assert [(one.extracted, one.unfinished) for one in found] == [(4, 2), (5, 0)]
    assert contents(output) == whole


def test_processes_side_by_side_make_the_same_store(
    planned: Plan, tmp_path: Path, whole: dict[str, bytes], contents: Contents
) -> None:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=extract, args=(planned, tmp_path / "store"), kwargs={"part": Part(index, 3)})
        for index in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert contents(tmp_path / "store") == whole


def test_who_has_nothing_left_to_do_waits_for_the_others(
    planned: Plan, tmp_path: Path, whole: dict[str, bytes], contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one gives up, and its shard is done by the one that waited."""
    output = tmp_path / "store"
    lines: list[str] = []
    with StoreWriter(output, planned.manifest) as other:
        assert other.claim([2]) == 2
        monkeypatch.setattr("feature_extraction.shard_work.POLL", 0.06)
        asked = 0

        def give_up() -> bool:
            nonlocal asked
            asked += bool(lines) and lines[-1].startswith("Waiting")
            if asked == 2:
                other.__exit__()
            return False

        assert extract(planned, output, say=lines.append, stop=give_up).extracted == IMAGES
    assert re.fullmatch(r"Waiting for 1 shards of others: shard 2: .*, process \d+", lines[2])
    assert contents(output) == whole


def test_waiting_can_be_stopped(planned: Plan, tmp_path: Path) -> None:
    lines: list[str] = []
    with StoreWriter(tmp_path / "store", planned.manifest) as other:
        assert other.claim([0]) == 0
        with pytest.raises(Interrupted, match=r"^2/3 shards of "):
            extract(planned, tmp_path / "store", say=lines.append, stop=lambda: "Waiting" in str(lines[-1:]))


# --- what is refused


def test_a_backbone_is_tried_before_a_new_store_and_not_again(
    planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(backbone: Any) -> None:
        raise UsageError("it is random")

    with monkeypatch.context() as patch:
        patch.setattr("feature_extraction.extract.self_test", refuse)
        with pytest.raises(UsageError, match="it is random"):
            extract(planned, tmp_path / "store")
        assert list(tmp_path.iterdir()) == []
    extract(planned, tmp_path / "store")
    monkeypatch.setattr("feature_extraction.extract.self_test", refuse)
    assert extract(planned, tmp_path / "store").extracted == 0


def test_a_hundred_unusable_images_in_a_row_stop_the_run_and_are_tried_again(
    tmp_path: Path, tiny_settings: ExtractionSettings, make_images: Callable[[Path, int], Path]
) -> None:
    folder = make_images(tmp_path / "images", 3)
    for number in range(102):
        (folder / f"zz_gone_{number:03d}.jpg").touch()
    planned = plan_extraction(folder, tiny_settings)
    with pytest.raises(
        InputDataError,
        match=r"^100 images in a row cannot be used, as when a disk is gone: .*the file is empty.* The last shard was "
        r"not written\. See that the files are there and run the same command with --retry-rejected; with --max-rejec",
    ):
        extract(planned, tmp_path / "store", max_rejected_fraction=0.99)
    lines: list[str] = []
    assert extract(planned, tmp_path / "store", max_rejected_fraction=1.0, say=lines.append).rejected == 102
    assert lines[0] == "Resuming: 25/27 shards done"


def test_too_many_unusable_images_stop_the_run_and_are_listed(
    planned: Plan, tmp_path: Path, whole: dict[str, bytes], contents: Contents
) -> None:
    output = tmp_path / "store"
    for _ in range(2):  # the second time the first shards are there already
        with pytest.raises(
            InputDataError,
            match=r"1 of 9 images cannot be used; at most 0 may be so.*image_005\.png \(10 bytes\).* are listed in "
            r".*rejected\.jsonl\. .*with --retry-rejected, .* a higher --max-rejected-fraction",
        ):
            extract(planned, output, max_rejected_fraction=0.0)
        assert (output / "rejected.jsonl").read_bytes() == whole["rejected.jsonl"]
    extract(planned, output)
    assert contents(output) == whole


def test_ten_unusable_images_or_the_given_share_are_tolerated(
    tmp_path: Path, tiny_settings: ExtractionSettings, make_images: Callable[[Path, int], Path]
) -> None:
    folder = make_images(tmp_path / "images", 2)
    for number in range(11):
        (folder / f"damaged_{number:02d}.jpg").touch()
    planned = plan_extraction(folder, tiny_settings)
    with pytest.raises(InputDataError, match="11 of 13 images cannot be used; at most 10 may be so"):
        extract(planned, tmp_path / "store")
    assert extract(planned, tmp_path / "store", max_rejected_fraction=0.9).rejected == 11
    (folder / "damaged_10.jpg").unlink()
    assert extract(plan_extraction(folder, tiny_settings), tmp_path / "other").rejected == 10


def test_a_collection_without_any_usable_image_is_refused(tmp_path: Path, tiny_settings: ExtractionSettings) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(InputDataError, match="1 of 1 images cannot be used; at most 10 may be so, and not all"):
        extract_features(tmp_path, tmp_path / "store", tiny_settings, say=lambda line: None)


def test_a_full_disk_is_seen_before_anything_is_written(
    planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = int(planned.manifest.estimated_bytes * 1.1) - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(DiskFullError, match=r"needs 0\.00 GB, but only 0\.00 GB are free\. Nothing was written: free"):
        extract(planned, tmp_path / "deep" / "store")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free + 2))
    extract(planned, tmp_path / "store")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=planned.manifest.estimated_bytes // 2))
    extract(planned, tmp_path / "store")  # what is there already needs no room


def test_the_estimate_is_about_the_size_of_the_store(planned: Plan, whole: dict[str, bytes]) -> None:
    shards = sum(len(data) for name, data in whole.items() if name.startswith("shard"))
    assert planned.manifest.estimated_bytes == pytest.approx(shards, rel=0.5)


def test_a_store_of_other_images_is_refused(planned: Plan, tmp_path: Path) -> None:
    extract(planned, tmp_path / "store")
    with pytest.raises(IncompatibleError, match=r"images +9 +8"):
        extract(planned._replace(manifest=replace(planned.manifest, images=8)), tmp_path / "store")
