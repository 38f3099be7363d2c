from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dept_vl.formats.lxmert import read_lxmert
from dept_vl.types import Example, Target
from feature_extraction.errors import InputDataError

TOY_DATA = Path(__file__).parents[1] / "toy_data" / "vqa"
RECORD = {"question_id": 1, "img_id": "COCO_val2014_000000000042", "sent": "What?", "label": {"net": 1}}


def write(folder: Path, content: Any) -> Path:
    path = folder / "karpathy_train.json"
    path.write_text(json.dumps(content))
    return path


def test_a_record_of_vqa_has_its_soft_scores_as_targets() -> None:
    examples = read_lxmert(TOY_DATA / "minival.json")
    assert examples[1] == Example(
        example_id="73001",
        text="What is the brand?",
        image_ids=("COCO_val2014_000000000073",),
        targets=(Target("honda", 0.9), Target("yamaha", 0.3)),
        slices={"question_type": "what is the", "answer_type": "other"},
    )
    assert [one.example_id for one in examples] == ["42001", "73001", "74000"]


def test_a_label_may_be_empty() -> None:
    assert read_lxmert(TOY_DATA / "minival.json")[2].targets == ()


def test_a_record_of_gqa_has_a_text_for_an_id(tmp_path: Path) -> None:
    row = {"img_id": "2375429", "label": {"pipe": 1.0}, "question_id": "07333408", "sent": "What is on the wall?"}
    (example,) = read_lxmert(write(tmp_path, [row]), id_type=str)
    assert example == Example("07333408", "What is on the wall?", ("2375429",), targets=(Target("pipe", 1.0),))


@pytest.mark.parametrize(("label", "text"), [(0, "false"), (1, "true")])
def test_a_record_of_nlvr2_has_two_images_and_a_truth(tmp_path: Path, label: int, text: str) -> None:
    names = {"identifier": "dev-850-0-0", "img0": "dev-850-0-img0", "img1": "dev-850-0-img1", "uid": "nlvr2_valid_0"}
    path = write(tmp_path, [{**names, "label": label, "sent": "It is one."}])
    (example,) = read_lxmert(path, id_key="identifier", id_type=str, image_keys=("img0", "img1"), label_type=int)
    images = ("dev-850-0-img0", "dev-850-0-img1")
    assert example == Example("dev-850-0-0", "It is one.", images, targets=(Target(text, 1.0),))


def test_the_question_is_the_text_where_there_is_no_sent(tmp_path: Path) -> None:
    row = {"question_id": 1, "img_id": "1", "question": "Why?", "label": {}}
    assert read_lxmert(write(tmp_path, [row]))[0].text == "Why?"


@pytest.mark.parametrize("answers", [["net", "mesh"], [{"answer": "net", "answer_id": 1}, {"answer": "mesh"}]])
def test_answers_are_references(tmp_path: Path, answers: Any) -> None:
    assert read_lxmert(write(tmp_path, [{**RECORD, "answers": answers}]))[0].references == ("net", "mesh")


def test_labels_may_be_withheld_from_all_records(tmp_path: Path) -> None:
    row = {key: value for key, value in RECORD.items() if key != "label"}
    assert read_lxmert(write(tmp_path, [row]))[0].targets == ()


def test_an_answer_with_the_score_0_is_no_target(tmp_path: Path) -> None:
    assert read_lxmert(write(tmp_path, [{**RECORD, "label": {"net": 0.0, "mesh": 0.3}}]))[0].targets == (("mesh", 0.3),)


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    rows = [
        RECORD,
        {**RECORD, "question_id": "2"},
        {**RECORD, "label": ["net"]},
        {**RECORD, "question_id": 3, "label": {"net": 1.5}},
        {**RECORD, "question_id": 4, "label": {"net": True}},
        {key: value for key, value in RECORD.items() if key not in ("img_id", "label")},
        {**{key: value for key, value in RECORD.items() if key != "sent"}, "question_id": 5},
        {**RECORD, "question_id": 6, "answers": ["net", 1]},
        {**RECORD, "question_id": 7, "answers": "net"},
        RECORD,
        None,
    ]
    message = (
        'karpathy_train.json: "question_id" is text, not a whole number: 1 (row 1); "label" is a list, not an object: '
        '1 (row 2); "label" has a score that is no number from 0 to 1: 2 (3, 4); no "img_id": 1 (row 5); no "label": '
        '1 (row 5); no "sent": 1 (row 6); "answers" is not a list of texts or of {"answer": text, ...}: 2 (6, 7); '
        "duplicate question_id: 1 (1); null instead of an object with question_id, img_id, label: 1 (row 10)"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        read_lxmert(write(tmp_path, rows))


def test_a_truth_is_0_or_1(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=re.escape('"label" is neither 0 nor 1: 1 (1)')):
        read_lxmert(write(tmp_path, [{**RECORD, "label": 2}]), label_type=int)


@pytest.mark.parametrize(("content", "kind"), [({"questions": []}, "an object"), ([], "an empty list")])
def test_another_layout_is_refused(tmp_path: Path, content: Any, kind: str) -> None:
    message = (
        f"karpathy_train.json holds {kind}. A file of LXMERT or VL-T5 is "
        '[{"question_id": ..., "img_id": ..., "sent": ..., "label": ...}, ...]. Check that it is whole, and that it is '
        "not an official file of the data set under another name"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        read_lxmert(write(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"No file .*train.json. Check the path"):
        read_lxmert(tmp_path / "train.json")
