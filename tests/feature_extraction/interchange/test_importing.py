"""Imported stores: bit-equal, resumable, and strict about what cannot be used."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feature_extraction import shard_work
from feature_extraction.errors import DiskFullError, IncompatibleError, InputDataError, Interrupted, UsageError
from feature_extraction.interchange import importing
from feature_extraction.interchange.importing import import_features, plan_import, run_import
from feature_extraction.interchange.shape import ImportSettings
from feature_extraction.store.layout import read_manifest
from feature_extraction.store.reader import FeatureStore
from feature_extraction.towers.cells import cell_boxes

IDS = [f"COCO_val2014_{number:012d}" for number in range(7)]
NAMED = ImportSettings(name="butd_vg", shard_size=3)


@pytest.fixture
def imported(tmp_path: Path, quiet: Callable[[str], None]) -> Callable[..., FeatureStore]:
    """The store of some files or folders."""

    def make(*paths: Path, output: str = "store", **changes: Any) -> FeatureStore:
        import_features(paths, tmp_path / output, NAMED._replace(**changes), say=quiet)
        store = FeatureStore.open(tmp_path / output)
        store.verify()
        return store

    return make


@pytest.fixture
def regions(make_regions: Callable[..., Any]) -> dict[str, dict[str, np.ndarray]]:
    return make_regions(IDS)


@pytest.fixture
def h5(regions: Any, write_vl_t5: Callable[..., Path], tmp_path: Path) -> Path:
    return write_vl_t5(tmp_path / "val2014_obj36.h5", regions)


# --- what a store then holds


@pytest.mark.parametrize("layout", ["vl_t5", "lxmert", "bottom_up", "npz"])
def test_regions_are_bit_equal_whatever_file_they_come_from(
    layout: str,
    regions: dict[str, dict[str, np.ndarray]],
    write_vl_t5: Callable[..., Path],
    write_tsv: Callable[..., Path],
    write_npz: Callable[..., Path],
    bottom_up_columns: list[str],
    imported: Callable[..., FeatureStore],
    tmp_path: Path,
) -> None:
    paths: dict[str, Callable[[], Path]] = {
        "vl_t5": lambda: write_vl_t5(tmp_path / "a.h5", regions),
        "lxmert": lambda: write_tsv(tmp_path / "a.tsv", regions),
        "bottom_up": lambda: write_tsv(tmp_path / "a.tsv", regions, bottom_up_columns),
        "npz": lambda: write_npz(tmp_path / "a", regions),
    }
    store = imported(paths[layout]())
    assert store.ids == tuple(IDS)
    for image_id, image in regions.items():
        record = store.record(image_id)
        assert record["features"].dtype == np.float32
        assert record["features"].tobytes() == image["features"].tobytes()
        width, height = image["img_w"].item(), image["img_h"].item()
        fractions = image["boxes"] / np.array([width, height, width, height], np.float32)  # as VL-T5 computes them
        assert record["boxes"].tobytes() == fractions.tobytes()
        assert record["image_size"].tolist() == [height, width]
        if layout != "bottom_up":
            assert record["class_ids"].tobytes() == image["obj_id"].tobytes()
            assert record["scores"].tobytes() == image["obj_conf"].tobytes()
            assert record["attribute_ids"].tobytes() == image["attr_id"].tobytes()
            assert record["attribute_scores"].tobytes() == image["attr_conf"].tobytes()
        assert store.read(image_id).mask.all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_grids_of_vl_adapter_keep_their_type_and_get_the_boxes_of_their_cells(
    dtype: str, write_vl_adapter: Callable[..., Path], imported: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    grids = {image_id: random.normal(size=(49, 8)).astype(dtype) for image_id in IDS}
    store = imported(write_vl_adapter(tmp_path / "data_clip_RN101_att", grids))
    for image_id, features in grids.items():
        found = store.read(image_id)
        assert found.features.dtype == dtype
        assert found.features.tobytes() == features.tobytes()
        assert np.array_equal(found.boxes, cell_boxes(rows=7, columns=7))
    assert "image_size" not in store.record(IDS[0])


def test_boxes_can_be_all_zero_as_vl_adapter_feeds_them(
    write_vl_adapter: Callable[..., Path], imported: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    folder = write_vl_adapter(tmp_path / "grids", {"a": np.ones((49, 8), np.float16)})
    assert not imported(folder, boxes="zeros").read("a").boxes.any()
    assert imported(folder, output="cells").identity != imported(folder, boxes="zeros").identity


def test_plain_arrays_are_bit_equal(imported: Callable[..., FeatureStore], tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(2, 36, 8)).astype(np.float32)
    (tmp_path / "arrays" / "deep").mkdir(parents=True)
    np.save(tmp_path / "arrays" / "one.npy", features[0])
    np.save(tmp_path / "arrays" / "deep" / "two.npy", np.asfortranarray(features[1].astype(">f4")))
    store = imported(tmp_path / "arrays", boxes="zeros")
    assert store.read("one").features.tobytes() == features[0].tobytes()
    assert store.read("two").features.tobytes() == features[1].tobytes()


def test_a_record_of_a_store_saved_as_npz_comes_back_whole(
    h5: Path, imported: Callable[..., FeatureStore], tmp_path: Path
) -> None:
    first = imported(h5)
    (tmp_path / "arrays").mkdir()
    for image_id in first:
        np.savez(tmp_path / "arrays" / f"{image_id}.npz", **first.record(image_id))
    second = imported(tmp_path / "arrays", output="second")
    for image_id in first:
        ours, theirs = first.record(image_id), second.record(image_id)
        assert {name: array.tobytes() for name, array in ours.items()} == {
            name: array.tobytes() for name, array in theirs.items()
        }
    assert first.identity == second.identity


def test_images_with_fewer_regions_are_filled_up_with_zeros_and_masked(
    make_regions: Callable[..., Any],
    write_tsv: Callable[..., Path],
    imported: Callable[..., FeatureStore],
    tmp_path: Path,
) -> None:
    adaptive = make_regions(["few", "many"], tokens=[10, 100])
    store = imported(write_tsv(tmp_path / "adaptive.tsv", adaptive))
    assert store.visual_tokens == 100
    found = store.read("few")
    assert found.features[:10].tobytes() == adaptive["few"]["features"].tobytes()
    assert found.mask.tolist() == [True] * 10 + [False] * 90
    assert not found.features[10:].any()
    assert not found.boxes[10:].any()
    assert not store.record("few")["class_ids"][10:].any()
    assert store.read("many").mask.all()


def test_the_number_of_visual_tokens_can_be_given_so_that_stores_fit_together(
    make_regions: Callable[..., Any],
    write_tsv: Callable[..., Path],
    imported: Callable[..., FeatureStore],
    tmp_path: Path,
) -> None:
    train = write_tsv(tmp_path / "train.tsv", make_regions(["a", "b"], tokens=[3, 5]))
    test = write_tsv(tmp_path / "test.tsv", make_regions(["c", "d"], tokens=[4, 2]))
    assert imported(train, output="1").identity != imported(test, output="2").identity
    stores = [imported(path, output=f"of {path.name}", visual_tokens=6) for path in (train, test)]
    assert stores[0].identity == stores[1].identity
    assert stores[0].visual_tokens == 6


def test_several_files_make_one_store(
    make_regions: Callable[..., Any],
    write_vl_t5: Callable[..., Path],
    write_tsv: Callable[..., Path],
    imported: Callable[..., FeatureStore],
    tmp_path: Path,
) -> None:
    train = write_vl_t5(tmp_path / "train.h5", make_regions(["c", "a"]))
    validation = write_tsv(tmp_path / "val.tsv", make_regions(["b"], seed=1))
    store = imported(train, validation)
    assert store.ids == ("a", "b", "c")


def test_the_identity_is_that_of_the_name_and_the_shape_and_not_of_the_files(
    make_regions: Callable[..., Any],
    write_vl_t5: Callable[..., Path],
    write_tsv: Callable[..., Path],
    imported: Callable[..., FeatureStore],
    tmp_path: Path,
) -> None:
    train = imported(write_vl_t5(tmp_path / "train.h5", make_regions(["a"])), output="train")
    test = imported(write_tsv(tmp_path / "test.tsv", make_regions(["b"], seed=1)), output="test")
    assert train.identity == test.identity
    assert train.identity == {
        "backbone": "imported/butd_vg",
        "boxes": "regions",
        "visual_tokens": 36,
        "feature_width": 8,
        "dtype": "float32",
        "layout_version": train.identity["layout_version"],
    }
    assert train.settings.backbone == "imported/butd_vg"
    assert list(read_manifest(train.path).source) == [
        *("--source", str(tmp_path / "train.h5"), "--name", "butd_vg", "--shard-size", "3"),
        *("--max-rejected-fraction", "0.0"),
    ]


def test_float16_halves_a_store_knowingly(
    h5: Path, regions: dict[str, dict[str, np.ndarray]], imported: Callable[..., FeatureStore]
) -> None:
    store = imported(h5, dtype="float16")
    for image_id, image in regions.items():
        assert store.read(image_id).features.tobytes() == image["features"].astype(np.float16).tobytes()


def test_float64_is_rounded_only_when_it_is_said(imported: Callable[..., FeatureStore], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "one.npy", np.full((4, 2), 1 / 3))
    with pytest.raises(UsageError, match=r"The features are float64; a store holds float16 or float32. Give --dtype"):
        imported(tmp_path / "a", boxes="cells")
    assert imported(tmp_path / "a", boxes="cells", dtype="float32").read("one").features[0, 0] == np.float32(1 / 3)


def test_boxes_that_leave_the_image_by_rounding_are_cut_to_it(
    regions: dict[str, dict[str, np.ndarray]],
    write_vl_t5: Callable[..., Path],
    imported: Callable[..., FeatureStore],
    tmp_path: Path,
) -> None:
    image = regions[IDS[0]]
    image["boxes"][0] = [-0.0005, 0, image["img_w"] * (1 + 5e-6), image["img_h"]]
    store = imported(write_vl_t5(tmp_path / "a.h5", {"a": image}))
    assert store.read("a").boxes[0].tolist() == [0, 0, 1, 1]


# --- what stops an import


def refused(*paths: Path, output: Path, **changes: Any) -> None:
    import_features(paths, output, NAMED._replace(**changes), say=lambda line: None)


def test_an_id_in_two_files_is_refused_with_both_places(
    h5: Path, regions: Any, write_tsv: Callable[..., Path], tmp_path: Path
) -> None:
    other = write_tsv(tmp_path / "again.tsv", {IDS[3]: regions[IDS[3]]})
    with pytest.raises(InputDataError) as caught:
        refused(h5, other, output=tmp_path / "store")
    assert str(caught.value) == (
        f"Image id '{IDS[3]}' stands twice, in {h5}, group '{IDS[3]}' and in {other}, line 1 (image '{IDS[3]}'). An id "
        "must be unique: leave one of them out"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, r"--name is 'a/b'; it says what made the features, in letters and digits: butd_vg"),
        ({"name": ""}, r"--name is ''; it says what made the features"),
        ({"boxes": "square"}, r"--boxes is 'square'; it is cells or zeros"),
        ({"dtype": "int8"}, r"--dtype is 'int8'; it is float16 or float32"),
        ({"visual_tokens": 0}, r"--visual-tokens is 0; it must be at least 1"),
        ({"shard_size": 0}, r"--shard-size is 0; it must be at least 1"),
        ({"max_rejected_fraction": 2.0}, r"--max-rejected-fraction is 2.0; it lies in 0 to 1"),
        ({"boxes": "zeros"}, r"--boxes is zeros, but the features have boxes of their own. Leave it out"),
        ({"format": "h5"}, r"--format is 'h5'; it is one of vl_t5 \(an HDF5 file with a group for each image"),
    ],
)
def test_settings_that_cannot_be_are_refused(h5: Path, tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        refused(h5, output=tmp_path / "store", **changes)
    assert not (tmp_path / "store").exists()


def test_arrays_without_boxes_must_say_where_their_tokens_lie(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "one.npy", np.ones((36, 8), np.float32))
    with pytest.raises(UsageError, match=r"The images have no boxes. Give --boxes cells if the visual tokens are the"):
        refused(tmp_path / "a", output=tmp_path / "store")


def test_what_is_no_square_gets_no_cells(write_vl_adapter: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_vl_adapter(tmp_path / "a", {"one": np.ones((50, 8), np.float16)})
    with pytest.raises(UsageError, match=r"The images have 50 visual tokens that are no square grid. Give --boxes"):
        refused(folder, output=tmp_path / "store")


def test_images_unlike_most_are_refused_and_named(
    make_regions: Callable[..., Any], write_vl_t5: Callable[..., Path], tmp_path: Path
) -> None:
    images = make_regions(IDS)
    images[IDS[0]]["features"] = np.ones((36, 4), np.float32)
    del images[IDS[1]]["attr_id"]
    images[IDS[2]]["features"] = np.ones((36, 8), np.float16)
    path = write_vl_t5(tmp_path / "a.h5", images)
    with pytest.raises(InputDataError) as caught:
        refused(path, output=tmp_path / "store")
    text = str(caught.value)
    every = "attribute_ids, attribute_scores, boxes, class_ids, image_size, scores"
    most = f"but those of most images are float32 features of width 8 with {every}"
    assert text.startswith("3 of 7 images cannot be used; at most 0 may be so, and not all. The first: ")
    assert f"{path}, group '{IDS[0]}': float32 features of width 4 with {every}, {most}" in text
    assert f"{path}, group '{IDS[1]}': float32 features of width 8 with {every[15:]}, {most}" in text
    assert f"{path}, group '{IDS[2]}': float16 features of width 8" in text
    assert text.endswith(
        "Get their features anew and run the same command with --retry-rejected, leave them out of the source, or give "
        "a higher --max-rejected-fraction"
    )
    assert not (tmp_path / "store").exists()


def test_too_many_visual_tokens_are_refused(h5: Path, tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="36 visual tokens, more than --visual-tokens 20"):
        refused(h5, output=tmp_path / "store", visual_tokens=20)


def test_a_grid_of_another_size_is_refused(write_vl_adapter: Callable[..., Path], tmp_path: Path) -> None:
    grids = {image_id: np.ones((49 if image_id != "b" else 16, 8), np.float16) for image_id in "abc"}
    with pytest.raises(InputDataError, match="16 visual tokens, but most images have 49, the cells of a grid"):
        refused(write_vl_adapter(tmp_path / "a", grids), output=tmp_path / "store")


def test_features_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "one.npy", np.full((4, 2), 7e4, np.float32))
    np.save(tmp_path / "a" / "two.npy", np.ones((4, 2), np.float32))
    with pytest.raises(InputDataError, match=r"one.npy: features reach 7e\+04, too large for float16"):
        refused(tmp_path / "a", output=tmp_path / "store", boxes="cells", dtype="float16")


def test_without_any_usable_image_the_first_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.npy").write_bytes(b"")
    with pytest.raises(InputDataError, match=r"None of 1 images can be used. The first is .*one.npy: cannot be read"):
        refused(tmp_path / "a", output=tmp_path / "store", boxes="zeros")


def test_some_images_may_be_left_out_when_that_is_said(
    regions: dict[str, dict[str, np.ndarray]],
    write_vl_t5: Callable[..., Path],
    imported: Callable[..., FeatureStore],
    tmp_path: Path,
) -> None:
    regions[IDS[4]]["features"][5, 5] = np.nan
    regions[IDS[6]]["features"] = np.ones((36, 4), np.float32)
    path = write_vl_t5(tmp_path / "a.h5", regions)
    with pytest.raises(InputDataError, match="1 of 7 images cannot be used; at most 0 may be so"):
        refused(path, output=tmp_path / "strict")
    store = imported(path, max_rejected_fraction=0.1)
    assert store.ids == (*IDS[:4], IDS[5])
    assert [(entry.image_id, entry.file) for entry in store.rejected] == [
        (IDS[4], f"{path}, group '{IDS[4]}'"),
        (IDS[6], f"{path}, group '{IDS[6]}'"),
    ]
    lines = [json.loads(line) for line in (store.path / "rejected.jsonl").read_text().splitlines()]
    assert lines[0]["reason"] == f"{path}, group '{IDS[4]}': features hold NaN or infinite numbers"
    for image_id in store:
        assert store.read(image_id).features.tobytes() == regions[image_id]["features"].tobytes()


def test_a_full_disk_is_seen_before_anything_is_written(
    h5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DiskFullError, match=r"needs 0.00 GB, but only 0.00 GB are free. Nothing was written") as caught:
        refused(h5, output=tmp_path / "store")
    assert str(caught.value).endswith("or halve float32 features by --dtype float16")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "store").exists()


# --- stopping and going on


def test_a_stopped_import_goes_on_to_the_same_bytes(
    h5: Path, tmp_path: Path, quiet: Callable[[str], None], contents: Callable[[Path], dict[str, bytes]]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    import_features([h5], whole, NAMED, say=quiet)
    lines: list[str] = []
    reasons: set[str] = set()
    for patience in range(1, 60):  # stopped at ever later images, of the listing and of the import
        asked = iter(range(min(patience, 10)))
        try:
            import_features([h5], stopped, NAMED, stop=lambda asked=asked: next(asked, None) is None, say=lines.append)
            break
        except Interrupted as reason:
            reasons.add(str(reason))
    assert contents(stopped) == contents(whole)
    assert "Resuming: 1/3 shards done" in lines
    assert reasons == {
        f"Listing the images of {h5} was not finished. The same command begins again",
        *(f"{done}/3 shards of {stopped} are done. The same command goes on" for done in range(3)),
    }


def test_a_stop_at_any_system_call_loses_nothing(
    h5: Path,
    tmp_path: Path,
    quiet: Callable[[str], None],
    contents: Callable[[Path], dict[str, bytes]],
    fates: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Here the stopped process lives on, so that its last claim is only taken over when it has expired.
    monkeypatch.setattr(importing, "StoreWriter", partial(importing.StoreWriter, heartbeat=0.01, expiry=0.1))
    monkeypatch.setattr(shard_work, "POLL", 0.01)
    planned = plan_import([h5], NAMED, say=quiet)
    with fates.at(0, fates.stop_within) as calls:
        run_import(planned, tmp_path / "whole", say=quiet)
    assert calls.count > 10
    for number in range(1, calls.count + 1):
        output = tmp_path / f"store{number}"
        with fates.at(number, fates.stop_within), pytest.raises(fates.Stop):
            run_import(planned, output, say=quiet)
        run_import(planned, output, say=quiet)
        assert contents(output) == contents(tmp_path / "whole"), number


def test_a_store_of_other_features_is_not_gone_on_with(h5: Path, tmp_path: Path) -> None:
    refused(h5, output=tmp_path / "store")
    with pytest.raises(IncompatibleError, match="holds other features than this command would write"):
        refused(h5, output=tmp_path / "store", name="other")


def test_shards_of_others_are_waited_for(
    h5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    planned = plan_import([h5], NAMED, say=lambda line: None)
    run_import(planned, tmp_path / "whole", say=lambda line: None)
    monkeypatch.setattr(shard_work, "POLL", 0.01)
    lines: list[str] = []
    with importing.StoreWriter(tmp_path / "store", planned.manifest) as other:
        assert other.claim([1]) == 1
        asked = iter(range(40))
        with pytest.raises(Interrupted, match=r"2/3 shards of .* are done. The same command goes on"):
            run_import(planned, tmp_path / "store", stop=lambda: next(asked, None) is None, say=lines.append)
    assert any(line.startswith("Waiting for 1 shards of others: shard 1: ") for line in lines)
    run_import(planned, tmp_path / "store", say=lines.append)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
