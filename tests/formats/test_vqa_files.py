from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dept_vl.formats.vqa_files import read_annotations, read_official, read_questions
from dept_vl.types import Example, Target
from feature_extraction.errors import InputDataError

TOY_DATA = Path(__file__).parents[1] / "toy_data" / "vqa"
QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
ANNOTATIONS = "v2_mscoco_{}_annotations.json"


@pytest.fixture
def question_file(tmp_path: Path) -> Path:
    return Path(shutil.copy(TOY_DATA / QUESTIONS.format("val2014"), tmp_path))


@pytest.fixture
def annotation_file(tmp_path: Path) -> Path:
    return Path(shutil.copy(TOY_DATA / ANNOTATIONS.format("val2014"), tmp_path))


def change(path: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def official(split: str) -> dict[str, Example]:
    pair = TOY_DATA / ANNOTATIONS.format(split), TOY_DATA / QUESTIONS.format(split)
    return {one.example_id: one for one in read_official(*pair)}


def test_targets_are_soft_scores_of_normalised_answers() -> None:
    train = official("train2014")
    assert dict(train["30000"].targets) == {"vase": 1.0, "flowers": 0.6}
    assert dict(train["25000"].targets) == {"2": 1.0}
    assert dict(train["25001"].targets) == {"blue": 1.0, "gray": 0.9}
    assert dict(train["34000"].targets) == {"zebra": 1.0, "horse": 0.3}


def test_targets_come_in_the_order_of_the_human_answers(annotation_file: Path) -> None:
    def edit(content: Any) -> None:
        answers = content["annotations"][1]["answers"]
        content["annotations"][1]["answers"] = answers[4:] + answers[:4]  # "no" first, and "yes" most often

    change(annotation_file, edit)
    assert read_official(annotation_file, None)[1].targets == (Target("no", 0.6), Target("yes", 1.0))


def test_targets_of_a_unanimous_question_are_what_scores() -> None:
    assert official("val2014")["42000"].targets == (Target("Yes", 1.0),)


@pytest.mark.parametrize(("subtype", "prefix"), [("test-dev2015", "COCO_test2015_"), ("test2015", "COCO_test2015_")])
def test_questions_of_test_dev_are_on_images_of_the_test_set(subtype: str, prefix: str) -> None:
    questions = read_questions(TOY_DATA / QUESTIONS.format(subtype))
    assert (questions.subtype, questions.image_prefix) == (subtype, prefix)


def test_images_of_other_data_are_named_by_its_type_and_split(question_file: Path) -> None:
    change(question_file, lambda content: content.update(data_type="easy_vqa", data_subtype="val"))
    assert read_official(None, question_file)[0].image_ids == ("easy_vqa_val_000000000042",)


def test_annotations_alone_can_be_scored(annotation_file: Path, question_file: Path) -> None:
    alone, both = read_official(annotation_file, None), read_official(annotation_file, question_file)
    assert [one.references for one in alone] == [one.references for one in both]
    assert [one.slices for one in alone] == [one.slices for one in both]
    assert alone[0].text == ""
    assert alone[0].image_ids == ()


def test_exchanged_files_are_refused(annotation_file: Path, question_file: Path) -> None:
    message = 'questions.json has no list of annotations. An official file is .*"annotations": .* not exchanged'
    with pytest.raises(InputDataError, match=message):
        read_official(question_file, annotation_file)


def test_everything_that_does_not_fit_is_named_at_once(annotation_file: Path, question_file: Path) -> None:
    def edit(content: Any) -> None:
        content["questions"][0]["question_id"] = 1
        content["questions"][1]["image_id"] = 43

    change(question_file, edit)
    message = (
        "questions without an annotation: 1 (1); annotations without a question: 1 (42000); "
        "questions whose image_id is not their annotation's: 1 (42001)"
    )
    with pytest.raises(InputDataError, match=re.escape(f"{question_file} and {annotation_file}: {message}")):
        read_official(annotation_file, question_file)


def test_all_wrong_questions_are_named_at_once(question_file: Path) -> None:
    def edit(content: Any) -> None:
        del content["data_type"]
        content["questions"][0]["question_id"] = "42000"
        content["questions"][1] = None
        content["questions"][3] = content["questions"][2]

    change(question_file, edit)
    message = (
        'no "data_type": 1 (the file); "question_id" is text, not a whole number: 1 (row 0); '
        "null instead of an object with question_id, image_id, question: 1 (row 1); duplicate question_id: 1 (42002)"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        read_questions(question_file)


def test_all_wrong_annotations_are_named_at_once(annotation_file: Path) -> None:
    def edit(content: Any) -> None:
        first, second, third, fourth, fifth, _ = content["annotations"]
        first["answers"] = []
        second["answers"][0] = {"answer": 2}
        third["answers"][0] = third["answers"][1]
        fourth["answer_type"] = "counting"
        fifth["answers"][9] = "honda"

    change(annotation_file, edit)
    message = (
        '"answers" is not a list of {"answer": text, ...}: 3 (42000, 42001, 73001); two answers are equal in every '
        'field (each has its own answer_id officially): 1 (42002); "answer_type" is none of yes/no, number, other: '
        "1 (73000)"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        read_annotations(annotation_file)


def test_answers_without_answer_ids_are_told_apart_by_their_place(annotation_file: Path) -> None:
    def edit(content: Any) -> None:
        for annotation in content["annotations"]:
            annotation["answers"] = [{"answer": one["answer"]} for one in annotation["answers"]]

    expected = read_annotations(annotation_file)
    change(annotation_file, edit)
    assert read_annotations(annotation_file) == expected


def test_one_answer_id_for_two_answers_does_no_harm_while_they_differ(annotation_file: Path) -> None:
    expected = read_annotations(annotation_file)
    change(annotation_file, lambda content: content["annotations"][1]["answers"][4].update(answer_id=1))
    assert read_annotations(annotation_file) == expected
