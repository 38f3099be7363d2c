from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dept_vl.formats.karpathy import KarpathyImage, find_karpathy, read_karpathy
from feature_extraction.errors import InputDataError

TOY_DATA = Path(__file__).parents[1] / "toy_data" / "caption"


def image(number: int, **changes: Any) -> dict[str, Any]:
    row = {"filename": f"{number}.jpg", "imgid": number, "split": "train", "sentences": [{"raw": "A dog ."}]}
    return {**row, **changes}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dataset.json"


def write(path: Path, *images: Any) -> Path:
    path.write_text(json.dumps({"images": images, "dataset": "toy"}))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputDataError) as raised:
        read_karpathy(path)
    return str(raised.value)


def test_an_image_has_cocos_number_its_name_without_suffix_and_its_captions_as_written() -> None:
    images = {one.number: one for one in read_karpathy(TOY_DATA / "dataset_coco.json")}
    assert images["34"].image_id == "COCO_train2014_000000000034"
    assert images["34"].captions[1] == "Zebra reaching its head down to ground where grass is. "


def test_restval_is_trained_on() -> None:
    splits = [one.split for one in read_karpathy(TOY_DATA / "dataset_coco.json")]
    assert splits == ["train", "train", "train", "train", "val", "val", "test", "test"]


def test_without_cocos_number_the_files_own_counts(path: Path) -> None:
    write(path, image(7, filename="1000268201_693b08cb0e.jpg", split="test", sentences=[]))
    assert read_karpathy(path) == [KarpathyImage("1000268201_693b08cb0e", "7", "test", ())]


@pytest.mark.parametrize("content", [[], {}, {"images": []}, {"images": {}}, "text"])
def test_another_kind_of_file_is_refused(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))
    assert refusal(path) == (
        f"{path} has no list of images. A file in Karpathy's layout is "
        '{"images": [{"filename": ..., "split": ..., "sentences": [{"raw": ...}, ...]}, ...]}. '
        "Check that it is the right file"
    )


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"filename": None}, '"filename" is null, not text: 1 (image 1)'),
        ({"cocoid": "9"}, '"cocoid" is text, not a whole number: 1 (image 1)'),
        ({"imgid": 1.0}, '"imgid" is a fraction, not a whole number: 1 (image 1)'),
        ({"split": 0}, '"split" is a whole number, not text: 1 (image 1)'),
        ({"split": "valid"}, "\"split\" is none of train, restval, val, test: 1 ('valid' of image 1)"),
        ({"sentences": {}}, '"sentences" is an object, not a list: 1 (image 1)'),
        ({"sentences": ["A dog"]}, "text instead of an object with raw: 1 (a sentence of image 1)"),
        ({"sentences": [{"tokens": ["a"]}, {}]}, 'no "raw": 2 (a sentence of image 1, a sentence of image 1)'),
        ({"imgid": 0}, "duplicate image numbers: 1 (0)"),
        ({"filename": "0.png"}, "duplicate file names: 1 (0)"),
    ],
)
def test_each_fault_is_named(path: Path, changes: dict[str, Any], fault: str) -> None:
    write(path, image(0), image(1, **changes))
    assert refusal(path) == f"{path}: {fault}"


def test_all_faults_are_in_one_message(path: Path) -> None:
    write(path, image(0), image(0), [], image(3, split="x"), {"imgid": 4})
    message = refusal(path)
    for fault in (
        "a list instead of an object with filename, imgid, split, sentences: 1 (image 2)",
        "\"split\" is none of train, restval, val, test: 1 ('x' of image 3)",
        'no "filename": 1 (image 4)',
        'no "split": 1 (image 4)',
        'no "sentences": 1 (image 4)',
        "duplicate image numbers: 1 (0)",
        "duplicate file names: 1 (0)",
    ):
        assert fault in message


def test_cocos_file_comes_before_others(tmp_path: Path) -> None:
    for name in ("dataset_coco.json", "dataset_flickr8k.json"):
        write(tmp_path / name, image(1))
    assert find_karpathy(tmp_path).name == "dataset_coco.json"


@pytest.mark.parametrize("name", ["dataset.json", "dataset_flickr30k.json"])
def test_the_only_other_file_is_found(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, image(1))
    assert find_karpathy(tmp_path).name == name


@pytest.mark.parametrize(("names", "named"), [((), "none"), (("dataset_b.json", "dataset_a.json"), "dataset_a.json, ")])
def test_no_file_or_several_are_refused(tmp_path: Path, names: tuple[str, ...], named: str) -> None:
    for name in names:
        write(tmp_path / name, image(1))
    message = (
        rf"{re.escape(str(tmp_path))} has no dataset_coco.json, and of other files dataset\*.json exactly one is "
        rf"needed: {named}.*Put Karpathy's dataset_coco.json there \(from caption_datasets.zip\), or take away"
    )
    with pytest.raises(InputDataError, match=message):
        find_karpathy(tmp_path)


@pytest.mark.shared
def test_a_real_file_is_read(shared: Path) -> None:
    images = read_karpathy(find_karpathy(shared / "data" / "flickr8k-1000"))
    assert [sum(one.split == split for one in images) for split in ("train", "val", "test")] == [800, 100, 100]
    assert sum(len(one.captions) for one in images) == 5_000
