from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dept_vl.formats.submission.label_jsonl import (
    LabelJsonl,
    check_label_jsonl,
    label_jsonl_faults,
    read_label_jsonl,
    write_label_jsonl,
)
from dept_vl.types import Prediction
from feature_extraction.errors import InputDataError

BOOLQ = LabelJsonl(("false", "true"))
COPA = LabelJsonl(("0", "1"), label_type=int)
MULTIRC = LabelJsonl(("0", "1"), label_type=int, nested=True)
RECORD = LabelJsonl()
GOOD = '{"idx": 0, "label": "true"}\n{"idx": 1, "label": "false"}\n'
NESTED = [Prediction("0-0-0", "1"), Prediction("0-0-1", "0"), Prediction("0-2-9", "1"), Prediction("7-17-87", "0")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "BoolQ.jsonl"


def test_flat_lines_are_written_with_the_server_s_types_and_read_again(path: Path) -> None:
    write_label_jsonl(path, BOOLQ, [Prediction("0", "true"), Prediction("1", "false")])
    assert path.read_text() == GOOD
    assert read_label_jsonl(path, BOOLQ) == [Prediction("0", "true"), Prediction("1", "false")]
    write_label_jsonl(path, COPA, [Prediction("3", "1")])
    assert path.read_text() == '{"idx": 3, "label": 1}\n'
    write_label_jsonl(path, RECORD, [Prediction("3", "Łódź")])
    assert read_label_jsonl(path, RECORD) == [Prediction("3", "Łódź")]
    assert check_label_jsonl(path, RECORD, ["3"]) == []


def test_nested_lines_keep_the_indices_and_are_read_again(path: Path) -> None:
    write_label_jsonl(path, MULTIRC, NESTED)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {
            "idx": 0,
            "passage": {
                "questions": [
                    {"idx": 0, "answers": [{"idx": 0, "label": 1}, {"idx": 1, "label": 0}]},
                    {"idx": 2, "answers": [{"idx": 9, "label": 1}]},
                ]
            },
        },
        {"idx": 7, "passage": {"questions": [{"idx": 17, "answers": [{"idx": 87, "label": 0}]}]}},
    ]
    assert read_label_jsonl(path, MULTIRC) == NESTED
    assert check_label_jsonl(path, MULTIRC, [one.example_id for one in NESTED]) == []


def test_labels_are_read_by_name_number_or_boolean_and_others_as_they_stand(path: Path) -> None:
    labels = ['"TRUE"', "true", "1", '"1"', '"maybe"', "7"]
    path.write_text("".join(f'{{"idx": {index}, "label": {label}}}\n' for index, label in enumerate(labels)))
    answers = [one.answer for one in read_label_jsonl(path, BOOLQ)]
    assert answers == ["true", "true", "true", "true", "maybe", "7"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD.replace('"true"', "true"), '"label" is a boolean, not text: 1 (0)'),
        (GOOD.replace('"true"', "null"), '"label" is null, not text: 1 (0)'),
        (GOOD.replace("true", "True"), 'labels other than false, true: 1 (0: "True")'),
        (GOOD.replace(', "label": "true"', ""), 'no "label": 1 (line 1)'),
        (GOOD.replace("0", '"0"'), '"idx" is text, not a whole number: 1 (line 1)'),
        (GOOD + "\n" + GOOD.replace("0", "2").replace("1", "3"), "blank lines: 1 (line 3)"),
        ("idx,label\n" + GOOD, 'lines that are no JSON such as {"idx": 0, "label": "true"}: 1 (line 1)'),
        ("7\n" + GOOD, "a whole number instead of an object with idx: 1 (line 1)"),
        (GOOD + GOOD.splitlines()[0], "ids with more than one row: 1 (0)"),
        ("[" + GOOD + "]", 'holds a JSON list, not lines such as {"idx": 0, "label": "true"}'),
        ("", "is empty. Write it again"),
    ],
)
def test_each_fault_is_named_and_no_other(path: Path, text: str, fault: str) -> None:
    path.write_text(text)
    assert check_label_jsonl(path, BOOLQ, None) == [fault]


@pytest.mark.parametrize("text", [GOOD, GOOD.rstrip(), GOOD.replace("\n", "\r\n")])
def test_a_good_file_has_no_fault(path: Path, text: str) -> None:
    path.write_bytes(text.encode())
    assert check_label_jsonl(path, BOOLQ, ["0", "1"]) == []
    assert label_jsonl_faults(text.encode(), BOOLQ, None, count=2) == []


def test_missing_ids_and_a_wrong_number_of_labels_are_named() -> None:
    (fault,) = label_jsonl_faults(GOOD.encode(), BOOLQ, ["0", "1", "2"])
    assert fault.startswith("missing ids: 1 (2); it answers only 2 of 3 questions.")
    assert label_jsonl_faults(GOOD.encode(), BOOLQ, None, count=3245) == [
        "the number of its labels is 2, but that of the test set is 3,245"
    ]


def test_every_place_of_a_nested_line_is_checked(path: Path) -> None:
    lines = (
        {"idx": 0, "label": 1},
        {"idx": 1, "passage": {}},
        {"idx": 2, "passage": {"questions": [7, {"idx": 0, "answers": [{"label": 1}, {"idx": 1}, {"idx": 2}]}]}},
        {"idx": 3, "passage": {"questions": [{"idx": 0, "answers": [{"idx": 0, "label": "1"}]}]}},
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert check_label_jsonl(path, MULTIRC, None) == [
        'no "passage": 1 (line 1)',
        'no "questions": 1 (line 2, passage)',
        "a whole number instead of an object with idx, answers: 1 (line 3, question)",
        'no "idx": 1 (line 3, answer)',
        'no "label": 2 (line 3, answer, line 3, answer)',
        '"label" is text, not a whole number: 1 (3-0-0)',
    ]


def test_all_that_cannot_be_read_is_refused_at_once(path: Path) -> None:
    path.write_text('{"idx": 0, "label": [1]}\n{"idx": 1}\n{\n')
    message = (
        f'{path}: "label" is a list. Lines are such as {{"idx": 0, "label": "true"}}: 1 (0); no "label": 1 (line 2); '
        'lines that are no JSON such as {"idx": 0, "label": "true"}: 1 (line 3)'
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        read_label_jsonl(path, BOOLQ)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputDataError, match=re.escape(f"{path} is in UTF-16 or UTF-32")):
        read_label_jsonl(path, BOOLQ)
