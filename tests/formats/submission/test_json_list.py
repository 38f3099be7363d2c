from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dept_vl.formats.submission import JsonList, check_json_list, json_list_faults, read_json_list
from dept_vl.types import Prediction
from feature_extraction.errors import InputDataError

EXAMPLE = '[{"question_id": 1, "answer": "red"}, ...]'
ROWS = JsonList("question_id", int, "answer", EXAMPLE)
TEXT_IDS = JsonList("questionId", str, "prediction", '[{"questionId": "01", ...}]', lower_case=True)
GOOD = [{"question_id": 1, "answer": "red"}, {"question_id": 2, "answer": ""}]
A_LIST = f". A results file is {EXAMPLE}"


def faults(content: Any, rows: JsonList = ROWS, wanted: tuple[str, ...] | None = ("1", "2")) -> list[str]:
    """The faults of a text, of bytes, or of what is written as JSON."""
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    return json_list_faults(text if isinstance(text, bytes) else text.encode(), rows, wanted)


def changed(index: int, **changes: Any) -> list[dict[str, Any]]:
    """GOOD, but for one row."""
    return [{**row, **(changes if place == index else {})} for place, row in enumerate(GOOD)]


def test_a_list_is_read_in_its_order_with_ids_as_text(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('[{"question_id": 2, "answer": "", "score": 0.5}, {"question_id": 1, "answer": "red"}]')
    assert read_json_list(path, ROWS) == [Prediction("2", ""), Prediction("1", "red")]


def test_leading_zeros_of_text_ids_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('[{"questionId": "007", "prediction": "red"}]')
    assert read_json_list(path, TEXT_IDS) == [Prediction("007", "red")]


def test_repeated_ids_are_left_to_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD[0], GOOD[0]]))
    assert len(read_json_list(path, ROWS)) == 2


def test_all_wrong_rows_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"question_id": "1", "answer": 2}, {"question_id": 2}, 3]))
    message = (
        f'{path}: "question_id" is text, not a whole number: 1 (row 0); "answer" is a whole number, not text: 1 (row '
        '0); no "answer": 1 (row 1); a whole number instead of an object with question_id, answer: 1 (row 2)'
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        read_json_list(path, ROWS)


def test_what_is_no_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("null")
    with pytest.raises(InputDataError, match=re.escape(f"{path} holds null, not a list{A_LIST}")):
        read_json_list(path, ROWS)


def test_a_file_and_its_content_have_the_same_faults(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("null")
    assert check_json_list(tmp_path / "results.json", ROWS, None) == faults("null")


@pytest.mark.parametrize("wanted", [("1", "2"), ("2", "1"), None])
def test_a_good_file_has_no_fault(wanted: tuple[str, ...] | None) -> None:
    assert faults(GOOD, wanted=wanted) == []
    assert faults(changed(0, score=0.5, answer="x < y [sic] é\t☺"), wanted=wanted) == []


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            '{"question_id": 1}\n{"question_id": 2}\n',
            "holds JSON lines (a second value begins at line 2, column 1) inst",
        ),
        ("[1]\n[2]", "goes on after the end of its list, at line 2, column 1. Join the lists to one"),
        (
            '[{"question_id": 1, "ans',
            "is cut off: it ends in 'uestion_id\": 1, \"ans' without a ]. Write or copy it ag",
        ),
        (
            "[{'question_id': 1}]",
            "has single quotes, as Python prints (line 1, column 3), and is not JSON. Write it wit",
        ),
        ('[{"question_id": 1},]', "is not JSON: a comma too many before line 1, column "),
        ('[{"answer": "a\nb"}]', "is not JSON: a bare line break or control character in a text at line 1, column "),
        (
            "question_id,answer\n1,red",
            "is not JSON: Expecting value at line 1, column 1. It begins with 'question_id,a",
        ),
        ("[" * 100_000 + "]", "is not JSON that a server reads: "),
        ("[" + "1" * 5_000 + "]", "is not JSON that a server reads: Exceeds the limit"),
        ('{"1": "red", "2": ""}', "holds an object, not a list (its keys: 1, 2)"),
        ('"text"', "holds text, not a list"),
        ("[]", "holds a list without rows"),
    ],
)
def test_what_is_no_list_of_rows_is_named_with_an_example(content: str, fault: str) -> None:
    (found,) = faults(content)
    assert found.startswith(fault)
    assert found.endswith(A_LIST)


def test_what_is_no_text_is_named() -> None:
    assert faults(b"\x1f\x8b\x08") == ["is packed by gzip. Unpack it first"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (changed(0, question_id="1"), ['"question_id" is text, not a whole number: 1 (row 0)']),
        (changed(0, answer=None), ['"answer" is null, not text: 1 (row 0)']),
        (changed(0, answer=["red"]), ['"answer" is a list, not text: 1 (row 0)']),
        (
            changed(0, answer="red</s>"),
            ["answers with special tokens of a model (<pad>, </s>, <unk>, <extra_id_0>, .."],
        ),
        (changed(0, answer="<|im_end|>"), ["answers with special tokens of a model"]),
        (changed(0, answer="[SEP]"), ["answers with special tokens of a model"]),
        (changed(0, answer="a\nb"), ["answers with a line break: 1 (1)"]),
        (changed(0, answer="a\u2028b"), ["answers with a line break: 1 (1)"]),
        (changed(0, answer="a\0b"), ["answers with a control character: 1 (1)"]),
        (
            changed(0, answer="a\ud83d"),
            ["answers with half a character (a lone surrogate), which UTF-8 cannot hold: 1"],
        ),
        (changed(0, answer="a" * 1_001), ["answers of more than 1,000 characters: 1 (1)"]),
        (changed(0, answer=" "), ["all answers are blank: 2 (1, 2)"]),
        (changed(0, score=float("nan"), other=[float("-inf")] * 2), ["NaN, which is no JSON: 1 t", "-Infinity, which"]),
        (
            '[{"question_id": 1, "answer": "red", "answer": "red"}, {"question_id": 2, "answer": "a"}]',
            ['rows with "answer" more than once: 1'],
        ),
        ([GOOD[0], GOOD[1], 3], ["a whole number instead of an object with question_id, answer: 1 (row 2)"]),
    ],
)
def test_wrong_rows_are_named_and_nothing_else(content: Any, expected: list[str]) -> None:
    found = faults(content)
    assert len(found) == len(expected)
    assert all(one.startswith(start) for one, start in zip(found, expected, strict=True)), found


def test_a_boolean_is_no_id() -> None:
    found = faults(changed(0, question_id=True), wanted=None)
    assert found == ['"question_id" is a boolean, not a whole number: 1 (row 0)']


def test_wrong_keys_are_named_with_the_nearest_right_ones() -> None:
    found = faults([{"questionId": one, "Answer": "red"} for one in (1, 2)])
    assert found == [
        'no "question_id": 2 (row 0, row 1)',
        'no "answer": 2 (row 0, row 1)',
        'write "question_id" instead of "questionId"',
        'write "answer" instead of "Answer"',
        f"a row has the keys questionId, Answer, but a results file is {EXAMPLE}",
    ]


def test_keys_that_resemble_no_right_one_are_named() -> None:
    found = faults([{}, {"xyz": 1}])
    assert found == ['no "question_id": 2 (row 0, row 1)', 'no "answer": 2 (row 0, row 1)', found[-1]]
    assert found[-1] == f"a row has the keys none, but a results file is {EXAMPLE}"


def test_ids_are_compared_with_the_wanted_ones_and_the_server_s_wish_is_said() -> None:
    whole = ROWS._replace(whole="The server wants all of test2015")
    (found,) = faults(GOOD, whole, ("1", "2", "3"))
    assert found.startswith("missing ids: 1 (3); it answers only 2 of 3 questions.")
    assert found.endswith("The server wants all of test2015")
    assert faults(GOOD, whole, ("8", "9"))[0].startswith("wrong split or phase: ")
    assert faults([*GOOD, GOOD[0]]) == ["ids with more than one row: 1 (1)"]


def test_answers_that_are_compared_with_lower_case_ones_have_no_capitals() -> None:
    rows = [{"questionId": "01", "prediction": "Red"}, {"questionId": "02", "prediction": "red "}]
    fault = "answers with capitals or outer spaces, which equal no right answer: 2 (01, 02)"
    assert faults(rows, TEXT_IDS, ("01", "02")) == [fault]


def test_numbers_lose_the_leading_zeros_of_text_ids() -> None:
    found = faults([{"questionId": one, "prediction": "red"} for one in (1, 20)], TEXT_IDS, ("01", "20"))
    assert found[0] == '"questionId" is a whole number, not text: 2 (row 0, row 1)'
    assert found[1].startswith("missing ids: 1 (01)")
