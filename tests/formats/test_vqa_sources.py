from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dept_vl.formats import vqa_sources
from dept_vl.formats.vqa_files import read_official
from dept_vl.formats.vqa_sources import read_sources, whole_test
from dept_vl.types import Example
from feature_extraction.errors import InputDataError

TOY_DATA = Path(__file__).parents[1] / "toy_data" / "vqa"
QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
ANNOTATIONS = "v2_mscoco_{}_annotations.json"
TRAIN = ["9000", "9001", "25000", "25001", "30000", "30001", "34000", "36000"]
ON_IMAGE_42 = ["42000", "42001", "42002"]  # in val2014, and in Karpathy's restval


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(TOY_DATA, tmp_path / "vqa")


def read(folder: Path, *sources: str, withheld: bool = False) -> list[Example]:
    return read_sources(folder, sources, withheld=withheld)


def ids(examples: list[Example]) -> list[str]:
    return [one.example_id for one in examples]


def write_list(path: Path, *changes: dict[str, Any], without: tuple[str, ...] = ()) -> None:
    """A list of LXMERT with the first records of minival.json, changed."""
    rows = json.loads((TOY_DATA / "minival.json").read_text())
    merged = [{**row, **change} for row, change in zip(rows, changes, strict=False)]
    path.write_text(json.dumps([{key: row[key] for key in row if key not in without} for row in merged]))


def test_karpathy_s_training_part_is_train2014_and_then_what_restval_has_of_val2014() -> None:
    examples = read(TOY_DATA, "karpathy_train")
    assert ids(examples) == TRAIN + ON_IMAGE_42
    assert examples[-1].image_ids == ("COCO_val2014_000000000042",)
    assert len(examples[-1].references) == 10


@pytest.mark.parametrize(("source", "expected"), [("karpathy_val", ["73000", "73001"]), ("karpathy_test", ["74000"])])
def test_karpathy_s_other_parts_are_of_val2014_alone(folder: Path, source: str, expected: list[str]) -> None:
    (folder / ANNOTATIONS.format("train2014")).unlink()
    assert ids(read(folder, source)) == expected


def test_karpathy_s_parts_together_are_the_official_splits() -> None:
    parts = read(TOY_DATA, "karpathy_train", "karpathy_val", "karpathy_test")
    assert parts == read(TOY_DATA, "train2014", "val2014")


def test_parts_of_one_pair_of_files_read_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read_files = []

    def counted(annotations: Path, questions: Path) -> list[Example]:
        read_files.append(questions.name)
        return read_official(annotations, questions)

    monkeypatch.setattr(vqa_sources, "read_official", counted)
    read(TOY_DATA, "karpathy_train", "karpathy_val")
    assert read_files == [QUESTIONS.format("train2014"), QUESTIONS.format("val2014")]


def test_sources_follow_one_another() -> None:
    assert ids(read(TOY_DATA, "train2014", "vg")) == [*TRAIN, "vg986768", "vg986769", "vg1000"]


def test_a_question_of_two_sources_is_refused() -> None:
    message = "vqa, val2014 + karpathy_test: questions of more than one source: 1 (74000)"
    with pytest.raises(InputDataError, match=re.escape(message)):
        read(TOY_DATA, "val2014", "karpathy_test")


def test_images_that_karpathy_s_file_does_not_have_are_refused(folder: Path) -> None:
    content = json.loads((folder / "dataset_coco.json").read_text())
    content["images"] = [one for one in content["images"] if one["cocoid"] != 42]
    (folder / "dataset_coco.json").write_text(json.dumps(content))
    message = "questions on images that dataset_coco.json does not have: 3 (42000, 42001, 42002)"
    with pytest.raises(InputDataError, match=re.escape(message)) as caught:
        read(folder, "karpathy_test")
    assert QUESTIONS.format("val2014") in str(caught.value)


def test_a_part_without_questions_is_refused(folder: Path) -> None:
    content = (folder / "dataset_coco.json").read_text()
    (folder / "dataset_coco.json").write_text(content.replace('"split": "test"', '"split": "val"'))
    message = f"puts no image of {QUESTIONS.format('val2014')} into its split test. Check that it is COCO's"
    with pytest.raises(InputDataError, match=re.escape(message)):
        read(folder, "karpathy_test")


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    shutil.copy(TOY_DATA / "minival.json", tmp_path)
    message = (
        f"For karpathy_train + vg + train2014, {tmp_path} needs dataset_coco.json of Karpathy (or karpathy_train.json "
        "of VL-T5); exactly one file *OpenEnded_*_train2014_questions.json (there are 0); exactly one file "
        "*_train2014_annotations.json (there are 0); exactly one file *OpenEnded_*_val2014_questions.json (there are "
        "0); exactly one file *_val2014_annotations.json (there are 0); question_answers.json of Visual Genome. JSON "
        "files there: minival.json. Put the official files there, unzipped, or set task.splits to the names in yours"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        read(tmp_path, "karpathy_train", "vg", "train2014")


def test_two_files_for_one_split_are_refused(folder: Path) -> None:
    name = "OpenEnded_mscoco_val2014_questions.json"
    shutil.copy(folder / QUESTIONS.format("val2014"), folder / name)
    with pytest.raises(InputDataError, match=r"_val2014_questions.json \(there are 2\)\. JSON files there: " + name):
        read(folder, "val2014")


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="JSON files there: none"):
        read(tmp_path, "train2014")
    with pytest.raises(InputDataError, match=r"No folder .*none. Give the folder with the official question and anno"):
        read(tmp_path / "none", "train2014")


@pytest.mark.parametrize(("source", "withheld"), [("test2015", False), ("challenge", True)])
def test_annotations_may_lack_where_they_are_withheld(folder: Path, source: str, withheld: bool) -> None:
    (folder / QUESTIONS.format("test2015")).rename(folder / QUESTIONS.format(source))
    assert ids(read(folder, source, withheld=withheld)) == ["1000", "1001", "14000", "16000"]


def test_annotations_may_not_lack_otherwise(folder: Path) -> None:
    (folder / ANNOTATIONS.format("val2014")).unlink()
    with pytest.raises(InputDataError, match=r"vqa needs exactly one file \*_val2014_annotations.json \(there are 0\)"):
        read(folder, "val2014")


def test_a_list_of_lxmert_has_its_own_targets_and_the_references_of_the_official_annotations() -> None:
    examples = read(TOY_DATA, "minival")
    official = {one.example_id: one for one in read(TOY_DATA, "val2014")}
    assert dict(examples[1].targets) == {"honda": 0.9, "yamaha": 0.3}
    assert [one.references for one in examples] == [official[one.example_id].references for one in examples]
    assert [one.slices for one in examples] == [official[one.example_id].slices for one in examples]


def test_a_list_without_official_annotations_has_no_references(folder: Path) -> None:
    (folder / ANNOTATIONS.format("val2014")).unlink()
    assert [one.references for one in read(folder, "minival")] == [()] * 3


def test_a_list_s_own_answers_are_its_references(folder: Path) -> None:
    write_list(folder / "karpathy_test.json", {"answers": ["no"] * 10}, {"answers": [{"answer": "bmw"}] * 10})
    (folder / "dataset_coco.json").unlink()
    assert [one.references for one in read(folder, "karpathy_test")] == [("no",) * 10, ("bmw",) * 10]


def test_a_list_that_the_annotations_do_not_cover_is_refused(folder: Path) -> None:
    write_list(folder / "nominival.json", {"question_id": 5}, {})
    with pytest.raises(InputDataError, match=r"nominival.json and .*: questions without an annotation: 1 \(5\)"):
        read(folder, "nominival")


def test_a_withheld_list_has_neither_targets_nor_references(folder: Path) -> None:
    write_list(folder / "test.json", {"img_id": "COCO_test2015_000000000001"}, without=("label",))
    (example,) = read(folder, "test")
    assert not example.references
    assert not example.targets
    assert example.image_ids == ("COCO_test2015_000000000001",)


@pytest.mark.parametrize("source", ["val2014", "karpathy_val", "vg"])
def test_official_files_go_before_a_list(folder: Path, source: str) -> None:
    expected = read(folder, source)
    (folder / f"{source}.json").write_text("[]")
    assert read(folder, source) == expected


def test_the_whole_test_set_is_found_by_the_name_of_a_part(folder: Path) -> None:
    assert whole_test(folder, "test-dev2015") == ["1000", "1001", "14000", "16000"]
    (folder / QUESTIONS.format("test2015")).unlink()
    message = "For a complete file of test-dev2015, .* needs exactly one file .*OpenEnded_.*_test2015_questions.json"
    with pytest.raises(InputDataError, match=message):
        whole_test(folder, "test-dev2015")
