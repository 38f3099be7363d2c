from __future__ import annotations

import re
from pathlib import Path

import pytest

from dept_vl.formats.submission.label_columns import check_label_columns, read_label_columns, write_label_columns
from dept_vl.types import Prediction
from feature_extraction.errors import InputDataError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "predictions.lst"


def test_one_model_s_answers_stand_in_all_five_columns(path: Path) -> None:
    predictions = [Prediction("0", "2"), Prediction("1", "1")]
    write_label_columns(path, predictions)
    assert path.read_bytes() == b"2,2,2,2,2\n1,1,1,1,1\n"
    assert read_label_columns(path) == predictions
    assert check_label_columns(path, 2) == check_label_columns(path, None) == []


def test_of_five_columns_the_last_one_is_read(path: Path) -> None:
    path.write_text("1,1,1,1,2\n2,2,2,2,1\n")
    assert [one.answer for one in read_label_columns(path)] == ["2", "1"]


def test_one_column_is_read_but_is_no_file_for_the_server(path: Path) -> None:
    path.write_text("2\n1\n")
    assert read_label_columns(path) == [Prediction("0", "2"), Prediction("1", "1")]
    assert check_label_columns(path, 2) == [
        "lines without five answers (xs, s, m, l, xl), as in 1,1,2,1,2: 2 (line 1, line 2)"
    ]


def test_windows_line_ends_and_a_missing_last_one_are_no_faults(path: Path) -> None:
    path.write_bytes(b"1,1,1,1,1\r\n2,2,2,2,2")
    assert len(read_label_columns(path)) == 2
    assert check_label_columns(path, 2) == []


def test_all_faults_are_named_together(path: Path) -> None:
    path.write_text("0,0,0,0,0\n\n1,1\n1, 1,1,1,1\n1,1,1,1,1\n")
    faults = [
        "answers other than 1 and 2, without spaces: 2 (line 1: '0,0,0,0,0', line 4: '1, 1,1,1,1')",
        "blank lines: 1 (line 2)",
        "lines without five answers (xs, s, m, l, xl), as in 1,1,2,1,2: 1 (line 3)",
    ]
    assert sorted(check_label_columns(path, None)) == sorted(faults)
    with pytest.raises(InputDataError, match=re.escape(f"{path}: {'; '.join(faults)}")):
        read_label_columns(path)


def test_five_columns_and_one_do_not_mix(path: Path) -> None:
    path.write_text("1,1,1,1,1\n2\n")
    with pytest.raises(InputDataError, match=r"lines with five answers and lines with one: 1 \(line 2\)"):
        read_label_columns(path)


def test_the_number_of_lines_is_that_of_the_questions(path: Path) -> None:
    path.write_text("1,1,1,1,1\n")
    (fault,) = check_label_columns(path, 1_767)
    assert fault == "has 1 lines, but there are 1,767 questions. Is it another split, or cut off?"


def test_bytes_that_are_no_text_are_refused(path: Path) -> None:
    path.write_bytes(b"\xff\xfe1")
    assert check_label_columns(path, None) == ['is in UTF-16 or UTF-32. Write it with the encoding "utf-8"']
    with pytest.raises(InputDataError, match=r"predictions.lst is in UTF-16 or UTF-32"):
        read_label_columns(path)
