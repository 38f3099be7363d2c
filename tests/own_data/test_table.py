from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from dept_vl.formats.files import Faults
from dept_vl.own_data.table import Column, Line, keys_of, read_lines, texts
from feature_extraction.errors import InputDataError

ANSWERS = Column(("answers", "answer", "label"), many=True)
ANSWER = Column(("answer", "label"))
IMAGES = Column(("images", "image"), many=True)


def read(path: Path, content: str | bytes) -> tuple[list[Line], Faults]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    faults: Faults = defaultdict(list)
    lines = read_lines(path, faults)
    return lines, defaultdict(list, {fault: places for fault, places in faults.items() if places})


def said(cells: dict[str, object], column: Column, separator: str | None = None) -> tuple[list[str], Faults]:
    faults: Faults = defaultdict(list)
    return texts(Line(7, cells, separator), column, faults), faults


def test_json_lines_keep_their_numbers_over_empty_ones(tmp_path: Path) -> None:
    lines, faults = read(tmp_path / "a.jsonl", '{"a": 1}\n\n  \r\n{"a": "é"}\r\n')
    assert [(line.number, line.cells) for line in lines] == [(1, {"a": 1}), (4, {"a": "é"})]
    assert not faults


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert read(tmp_path / "a.jsonl", '\ufeff{"a": 1}')[0][0].cells == {"a": 1}
    assert read(tmp_path / "a.csv", "\ufeffa,b\n1,2\n")[0][0].cells == {"a": "1", "b": "2"}


def test_all_lines_that_are_no_json_object_are_named(tmp_path: Path) -> None:
    lines, faults = read(tmp_path / "a.jsonl", '{"a": 1}\n{"a": \n[1]\n{"a": NaN}\n"a"\n')
    assert len(lines) == 1
    assert faults == {"lines that are no JSON object": ["line 2", "line 3", "line 4", "line 5"]}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_header_tells_what_separates_the_fields_of_csv(tmp_path: Path, delimiter: str) -> None:
    content = delimiter.join(["image", "question", "answer"]) + "\n" + delimiter.join(["1", '"a, b; c\td"', "x"]) + "\n"
    ((line,), faults) = read(tmp_path / "a.CSV", content)
    assert line.cells == {"image": "1", "question": "a, b; c\td", "answer": "x"}
    assert not faults


def test_a_csv_record_over_several_lines_has_the_number_of_its_first(tmp_path: Path) -> None:
    lines, _ = read(tmp_path / "a.csv", 'a,b\r\n1,"x\r\ny"\r\n\r\n2,z\r\n')
    assert [(line.number, line.cells["b"]) for line in lines] == [(2, "x\r\ny"), (5, "z")]


def test_all_csv_lines_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    lines, faults = read(tmp_path / "a.csv", 'a,b\n1\n1,2,3\n"x"y,2\n1,2\n3,"open\n')
    assert [line.number for line in lines] == [5]
    assert faults == {
        "lines with more or fewer fields than the 2 of the header": ["line 2", "line 3"],
        "lines that are no CSV (',' expected after '\"')": ["line 4"],
        "lines that are no CSV (unexpected end of data)": ["line 6"],
    }


def test_columns_with_the_same_name_are_named(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", "a,b,a\n")[1] == {"several columns are called": ["a"]}


@pytest.mark.parametrize("name", ["a.json", "a.xlsx", "a"])
def test_other_kinds_of_files_are_refused_with_what_to_save(tmp_path: Path, name: str) -> None:
    message = f"{tmp_path / name} ends neither in .csv nor in .jsonl. Save the table as CSV in UTF-8 with a header line"
    with pytest.raises(InputDataError, match=re.escape(message)):
        read_lines(tmp_path / name, defaultdict(list))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"No file .*a.csv. Check the path"):
        read_lines(tmp_path / "a.csv", defaultdict(list))


def test_names_of_columns_are_found_however_they_are_spelled() -> None:
    assert keys_of(ANSWER, ("The Answer", "Answer ", "LABEL")) == [["Answer "], ["LABEL"]]
    assert keys_of(Column(("imageid",)), ("Image-ID",)) == [["Image-ID"]]
    assert keys_of(ANSWER, ("answer1", "anser")) == []


def test_numbered_columns_come_in_the_order_of_their_numbers() -> None:
    assert keys_of(ANSWERS, ("answer_10", "answer_2", "Answer 1")) == [["Answer 1", "answer_2", "answer_10"]]
    assert keys_of(IMAGES, ("image2", "image", "image1")) == [["image", "image1", "image2"]]
    assert keys_of(IMAGES, ("right", "left")) == [["left", "right"]]
    assert keys_of(IMAGES, ("image_right", "Left Image")) == [["Left Image", "image_right"]]


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        ({"answers": ["red", "blue"]}, ["red", "blue"]),
        ({"answers": "red"}, ["red"]),
        ({"answers": [], "answer": "red"}, ["red"]),
        ({"answers": None, "label": " red\n"}, ["red"]),
        ({"answer1": "red", "answer2": "", "answer3": "blue"}, ["red", "blue"]),
        ({"answers": 3}, ["3"]),
        ({"answers": [3.0, 2.5, True]}, ["3", "2.5", "true"]),
        ({"answers": "a|b"}, ["a|b"]),
        ({"answers": "  "}, []),
        ({"question": "red"}, []),
    ],
)
def test_texts_come_from_the_first_column_that_says_anything(cells: dict[str, object], found: list[str]) -> None:
    assert said(cells, ANSWERS) == (found, {})


def test_in_csv_a_bar_separates_several_texts_of_a_column_of_many() -> None:
    assert said({"answers": "red | dark red|blue"}, ANSWERS, "|") == (["red", "dark red", "blue"], {})
    assert said({"answer": "a|b"}, ANSWER, "|") == (["a|b"], {})


@pytest.mark.parametrize(
    ("cells", "fault"),
    [
        ({"answer": {"red": 1}}, '"answer" is an object, not text'),
        ({"answer": [["red"]]}, '"answer" is a list, not text'),
        ({"answer": ["red", "blue"]}, 'more than one "answer"'),
        ({"answer": "\udce9"}, '"answer" is not UTF-8 text (save the table as UTF-8)'),
    ],
)
def test_what_is_no_text_is_a_fault(cells: dict[str, object], fault: str) -> None:
    assert said(cells, ANSWER)[1] == {fault: ["line 7"]}


def test_an_empty_text_among_several_is_a_fault() -> None:
    fault = {'an empty text among several of "answers"': ["line 7"]}
    assert said({"answers": "red||blue"}, ANSWERS, "|")[1] == fault
    assert said({"answers": ["red", " "]}, ANSWERS)[1] == fault


def test_text_in_another_encoding_is_found_where_it_stands(tmp_path: Path) -> None:
    lines, faults = read(tmp_path / "a.csv", "question,answer\nok,café\n".encode("latin-1"))
    assert not faults
    texts(lines[0], ANSWER, faults)
    assert faults == {'"answer" is not UTF-8 text (save the table as UTF-8)': ["line 2"]}
    ((line,), faults) = read(tmp_path / "a.jsonl", json.dumps({"answer": "\ud800"}))
    texts(line, ANSWER, faults)
    assert faults == {'"answer" is not UTF-8 text (save the table as UTF-8)': ["line 1"]}
