from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dept_vl.formats.submission.answer_object import check_answer_object, read_answer_object, write_answer_object
from dept_vl.types import Prediction
from feature_extraction.errors import InputDataError

EXAMPLE = 'A prediction file is {"56be4db0acb8001400a502ec": "Denver Broncos", ...}'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "predictions.json"


def test_what_is_written_is_one_json_object_and_is_read_again(path: Path) -> None:
    predictions = [Prediction("b", 'Łódź, "the city"'), Prediction("a", "")]
    write_answer_object(path, predictions)
    assert json.loads(path.read_bytes()) == {"b": 'Łódź, "the city"', "a": ""}
    assert len(path.read_text().splitlines()) == 2
    assert read_answer_object(path) == predictions
    assert check_answer_object(path, ["a", "b"]) == []


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "is empty. Write it again"),
        ("{", f"is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1). {EXAMPLE}"),
        ('["a"]', f"holds a list, not an object. {EXAMPLE}"),
        ("{}", f"holds no answers. {EXAMPLE}"),
    ],
)
def test_what_is_no_such_object_is_refused(path: Path, content: str, fault: str) -> None:
    path.write_text(content)
    assert check_answer_object(path, ["a"]) == [fault]
    with pytest.raises(InputDataError, match=re.escape(f"{path} {fault}")):
        read_answer_object(path)


def test_answers_are_texts(path: Path) -> None:
    path.write_text('{"a": null, "b": ["x"], "c": {"text": "x"}, "d": "x"}')
    faults = [
        "answers that are null, not text: 1 (a)",
        "answers that are a list, not text: 1 (b)",
        "answers that are an object, not text: 1 (c)",
    ]
    assert check_answer_object(path, None) == faults
    with pytest.raises(InputDataError, match=re.escape("; ".join(faults))):
        read_answer_object(path)


def test_repeated_missing_and_unknown_ids_are_named(path: Path) -> None:
    path.write_text('{"a": "x", "a": "y", "c": "z"}')
    assert read_answer_object(path) == [Prediction("a", "x"), Prediction("a", "y"), Prediction("c", "z")]
    assert check_answer_object(path, ["a", "b"]) == [
        "ids with more than one row: 1 (a)",
        "missing ids: 1 (b)",
        "ids that the questions do not have: 1 (c)",
    ]
