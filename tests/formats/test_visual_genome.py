from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dept_vl.formats.visual_genome import read_visual_genome
from dept_vl.types import Example, Target
from feature_extraction.errors import InputDataError

TOY_DATA = Path(__file__).parents[1] / "toy_data" / "vqa"


def write(folder: Path, content: Any) -> Path:
    path = folder / "question_answers.json"
    path.write_text(json.dumps(content))
    return path


def pair(qa_id: int, answer: str, image_id: int = 1) -> dict[str, object]:
    return {"qa_id": qa_id, "image_id": image_id, "question": "What is it?", "answer": answer}


def test_an_answer_loses_its_period_and_is_a_target_but_no_reference() -> None:
    examples = read_visual_genome(TOY_DATA / "question_answers.json")
    assert examples[0] == Example(
        example_id="vg986768",
        text="What color is the clock?",
        image_ids=("1",),
        targets=(Target("green", 1.0),),
    )


def test_answers_are_normalised_as_vqa_s() -> None:
    examples = read_visual_genome(TOY_DATA / "question_answers.json")
    assert [one.targets[0].text for one in examples] == ["green", "2 men", "on street"]


def test_ids_are_none_of_vqa_s() -> None:
    assert [one.example_id for one in read_visual_genome(TOY_DATA / "question_answers.json")] == [
        "vg986768",
        "vg986769",
        "vg1000",
    ]


def test_an_answer_of_nothing_is_no_target(tmp_path: Path) -> None:
    (example,) = read_visual_genome(write(tmp_path, [{"id": 1, "qas": [pair(5, "The.")]}]))
    assert example.targets == ()


def test_an_image_may_have_no_questions(tmp_path: Path) -> None:
    assert len(read_visual_genome(write(tmp_path, [{"id": 2, "qas": []}, {"id": 1, "qas": [pair(5, "Red.")]}]))) == 1


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        [
            {"id": 1, "qas": [pair(5, "Red."), pair(5, "Blue."), pair(6, "No.", image_id=2)]},
            {"image": 2, "qas": []},
            {"id": 3, "qas": [{"qa_id": "7", "image_id": 3, "question": "What?"}, 8]},
        ],
    )
    message = (
        "question_answers.json: duplicate qa_id: 1 (5); questions whose image_id is not their image's: 1 (6); "
        'no "id": 1 (image 1); "qa_id" is text, not a whole number: 1 (image 3); no "answer": 1 (image 3); '
        "a whole number instead of an object with qa_id, image_id, question, answer: 1 (image 3)"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        read_visual_genome(path)


@pytest.mark.parametrize(("content", "kind"), [({"qas": []}, "an object"), ([], "a list")])
def test_another_layout_is_refused(tmp_path: Path, content: Any, kind: str) -> None:
    with pytest.raises(InputDataError, match=f"holds {kind} without images. Visual Genome's file is .*qa_id"):
        read_visual_genome(write(tmp_path, content))
