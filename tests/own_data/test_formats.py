from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from dept_vl.own_data.formats import WRITERS, task_files
from dept_vl.own_data.rows import FORMS, OwnRow

MakeRow = Callable[..., OwnRow]


def content(files: dict[str, bytes], name: str) -> Any:
    return json.loads(files[name])


def answered(make_row: MakeRow, *answers: str, text: str = "What is it?") -> dict[str, Any]:
    """The record of a question of vqa with these answers."""
    files = task_files("vqa", {"train": [make_row(1, "a", answers=answers, text=text)]})
    (record,) = content(files, "train.json")
    return dict(record)


def test_every_task_has_its_writer() -> None:
    assert set(WRITERS) == set(FORMS)


def test_a_question_of_vqa_is_a_record_of_vl_t5(make_row: MakeRow) -> None:
    record = answered(make_row, "Two", text="How many dogs are there?")
    assert record.pop("answers") == [{"answer_id": number, "answer": "Two"} for number in range(1, 11)]
    assert record == {
        "question_id": 1,
        "id": "1",
        "img_id": "a",
        "sent": "How many dogs are there?",
        "label": {"Two": 1.0},
        "question_type": "how many",
        "answer_type": "number",
    }


def test_fewer_than_ten_answers_are_repeated_in_turn(make_row: MakeRow) -> None:
    record = answered(make_row, "red", "The dark red", "blue")
    assert [one["answer"] for one in record["answers"]] == ["red", "The dark red", "blue"] * 3 + ["red"]
    assert record["label"] == {"red": 1.0, "dark red": 0.9, "blue": 0.9}


def test_ten_and_more_answers_stay_as_they_are(make_row: MakeRow) -> None:
    record = answered(make_row, *["red"] * 8, "blue", "blue", "green", "the")
    assert [one["answer_id"] for one in record["answers"]] == list(range(1, 13))
    assert record["label"] == {"red": 1.0, "blue": 0.6, "green": 0.3}  # nothing is left of "the"


@pytest.mark.parametrize(
    ("answers", "answer_type"),
    [
        (["Yes"], "yes/no"),
        (["no", "no", "maybe"], "yes/no"),
        (["3"], "number"),
        (["two"], "number"),
        (["1,000"], "number"),
        (["2.5"], "number"),
        (["10:30"], "number"),
        (["3 dogs"], "other"),
        (["brown"], "other"),
    ],
)
def test_the_answer_type_is_that_of_the_most_frequent_answer(
    make_row: MakeRow, answers: list[str], answer_type: str
) -> None:
    assert answered(make_row, *answers)["answer_type"] == answer_type


def test_a_question_of_gqa_is_an_official_one(make_row: MakeRow) -> None:
    rows = [make_row(1, "a", own_id="007", answers=("Brown",), text="What color is it?"), make_row(2, "b")]
    questions = content(task_files("gqa", {"train": rows}), "train_questions.json")
    assert list(questions) == ["007", "2"]
    assert questions["007"] == {
        "question": "What color is it?",
        "imageId": "a",
        "answer": "brown",
        "fullAnswer": "brown",
        "isBalanced": True,
        "types": {"structural": "query", "semantic": "", "detailed": ""},
        "groups": {"global": None, "local": ""},
        "entailed": [],
        "equivalent": [],
        "semantic": [],
    }
    assert questions["2"]["types"]["structural"] == "verify"


def test_statements_with_the_same_sentence_are_one_group(make_row: MakeRow) -> None:
    sentences = ["Dogs.", "Cats.", "Dogs."]
    rows = [make_row(n, f"{n}", "x", answers=("True",), text=text) for n, text in enumerate(sentences, start=1)]
    records = [json.loads(line) for line in task_files("nlvr2", {"train": rows})["train.json"].splitlines()]
    assert [record["identifier"] for record in records] == ["train-0-0-0", "train-1-0-0", "train-0-1-0"]
    assert records[1] == {
        "identifier": "train-1-0-0",
        "id": "2",
        "sentence": "Cats.",
        "label": "True",
        "images": ["2", "x"],
    }


def test_captions_are_joined_by_image_in_karpathys_layout(make_row: MakeRow) -> None:
    splits = {
        "train": [make_row(1, "a", answers=("A dog.",)), make_row(3, "a", answers=("It's big!", "Brown"))],
        "validation": [make_row(2, "b", answers=("A cat.",))],
        "test": [make_row(4, "c", answers=("Nothing",))],
    }
    found = content(task_files("caption", splits), "dataset.json")
    assert found["dataset"] == "own"
    first, second, third = found["images"]
    assert first == {
        "filename": "a.jpg",
        "imgid": 1,
        "split": "train",
        "sentids": [0, 1, 2],
        "sentences": [
            {"tokens": ["a", "dog"], "raw": "A dog.", "imgid": 1, "sentid": 0},
            {"tokens": ["its", "big"], "raw": "It's big!", "imgid": 1, "sentid": 1},
            {"tokens": ["brown"], "raw": "Brown", "imgid": 1, "sentid": 2},
        ],
    }
    assert (second["filename"], second["split"], second["sentids"]) == ("b.jpg", "val", [3])
    assert (third["filename"], third["split"], third["sentids"]) == ("c.jpg", "test", [4])


def test_letters_beyond_ascii_stay_readable(make_row: MakeRow) -> None:
    assert "Où est-il ?".encode() in task_files("vqa", {"train": [make_row(1, "é", text="Où est-il ?")]})["train.json"]


def test_the_settings_name_the_splits_that_there_are(make_row: MakeRow) -> None:
    splits = {"train": [make_row(1, "a", "b", "c")], "validation": [make_row(2, "a", "b", "c")]}
    settings = task_files("nlvr2", splits)["task.yaml"].decode()
    assert "splits: {train: train, validation: validation}" in settings
    assert "images_per_example: 3" in settings
    assert "answer_count" not in settings
    assert "answer_count: null" in task_files("vqa", splits)["task.yaml"].decode()
    settings = task_files("caption", splits)["task.yaml"].decode()
    assert "splits: {train: karpathy_train, validation: karpathy_val}" in settings


def test_an_epoch_sees_each_caption_once_on_average(make_row: MakeRow) -> None:
    rows = [
        make_row(1, "a", answers=("1", "2")),
        make_row(2, "a", answers=("3",)),
        make_row(3, "b", answers=("4", "5")),
    ]
    assert "passes_per_epoch: 2 " in task_files("caption", {"train": rows})["task.yaml"].decode()
    assert "passes_per_epoch: 1 " in task_files("caption", {"train": rows[1:2]})["task.yaml"].decode()
    assert "passes_per_epoch" not in task_files("vqa", {"train": rows})["task.yaml"].decode()
