from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from dept_vl.formats.submission import contents
from dept_vl.formats.submission.label_tsv import check_label_tsv, label_tsv_faults, read_label_tsv, write_label_tsv
from dept_vl.types import Prediction
from feature_extraction.errors import InputDataError

NLI = ("entailment", "not_entailment")
ROWS = [Prediction("0", "entailment"), Prediction("1", "not_entailment"), Prediction("2", "entailment")]
TEXT = "index\tprediction\n0\tentailment\n1\tnot_entailment\n2\tentailment\n"


def faults(text: str, labels: tuple[str, ...] = NLI, *, count: int | None = None, is_whole: bool = True) -> list[str]:
    return label_tsv_faults(text.encode(), labels, None, count=count, is_whole=is_whole)


def test_a_file_is_written_with_a_header_and_read_back(tmp_path: Path) -> None:
    write_label_tsv(tmp_path / "RTE.tsv", ROWS)
    assert (tmp_path / "RTE.tsv").read_text() == TEXT
    assert read_label_tsv(tmp_path / "RTE.tsv", NLI) == ROWS
    assert check_label_tsv(tmp_path / "RTE.tsv", NLI, ["0", "1", "2"]) == []


def test_the_header_is_no_row_of_its_contents(tmp_path: Path) -> None:
    write_label_tsv(tmp_path / "RTE.tsv", ROWS)
    assert contents(tmp_path / "RTE.tsv") == "3 rows"


@pytest.mark.parametrize("text", [TEXT, TEXT.rstrip("\n"), TEXT.replace("\n", "\r\n")])
def test_ends_of_lines_make_no_difference(text: str, tmp_path: Path) -> None:
    (tmp_path / "RTE.tsv").write_bytes(text.encode())
    assert read_label_tsv(tmp_path / "RTE.tsv", NLI) == ROWS
    assert faults(text) == []


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("index\tprediction\n", "", "the first line is not the header 'index\\tprediction': 1 ('0\\tentailment')"),
        ("index", "id", "the first line is not the header 'index\\tprediction': 1 ('id\\tprediction')"),
        ("0\t", "0,", "lines that are not an index, a tab and a prediction: 1 (line 2)"),
        ("1\tnot", "1\t\tnot", "lines that are not an index, a tab and a prediction: 1 (line 3)"),
        ("1\tnot", "\n1\tnot", "blank lines: 1 (line 3)"),
        ("2\t", "2.0\t", "indexes that are no whole number from 0: 1 (line 4: '2.0')"),
        ("2\t", "rte-2\t", "indexes that are no whole number from 0: 1 (line 4: 'rte-2')"),
        ("2\t", "02\t", "indexes that are no whole number from 0: 1 (line 4: '02')"),
        ("0\te", "3\te", "indexes out of order (rows go as in the test file): 1 (line 3)"),
        ("not_", "no_", "predictions other than entailment, not_entailment: 1 (line 3: 'no_entailment')"),
        ("0\te", "0\tE", "predictions other than entailment, not_entailment: 1 (line 2: 'Entailment')"),
        ("0\te", "0\t e", "predictions other than entailment, not_entailment: 1 (line 2: ' entailment')"),
        ("0\tentailment", "0\t0", "predictions other than entailment, not_entailment: 1 (line 2: '0')"),
        ("0\tentailment", "0\t", "predictions other than entailment, not_entailment: 1 (line 2: '')"),
    ],
)
def test_a_fault_is_named_with_its_place_in_checking_and_in_reading(
    before: str, after: str, fault: str, tmp_path: Path
) -> None:
    text = TEXT.replace(before, after, 1)
    assert fault in faults(text)
    (tmp_path / "RTE.tsv").write_text(text)
    with pytest.raises(InputDataError, match=re.escape(f"{tmp_path / 'RTE.tsv'}: {fault}")):
        read_label_tsv(tmp_path / "RTE.tsv", NLI)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty. Write it again"),
        (gzip.compress(TEXT.encode(), mtime=0), "is packed by gzip. Unpack it first"),
        (b"\xef\xbb\xbf" + TEXT.encode(), "begins with a byte order mark"),
        (b"index\tprediction\n0\t\xff\n", "is not in UTF-8 (byte 19 is 0xff)"),
    ],
)
def test_what_is_no_text_is_named(content: bytes, fault: str, tmp_path: Path) -> None:
    (found,) = label_tsv_faults(content, NLI, None)
    assert found.startswith(fault)
    (tmp_path / "RTE.tsv").write_bytes(content)
    with pytest.raises(InputDataError, match=re.escape(f"{tmp_path / 'RTE.tsv'} {fault}")):
        read_label_tsv(tmp_path / "RTE.tsv", NLI)


def test_json_and_a_header_alone_are_named() -> None:
    assert faults('{"idx": 0, "label": "entailment"}\n') == [
        "holds JSON, not a TSV with the header 'index\\tprediction'"
    ]
    assert faults("index\tprediction\n") == ["has a header, but no rows"]


def test_indexes_begin_with_0_and_leave_none_out_but_in_a_part_of_a_split() -> None:
    text = TEXT.replace("2\te", "7\te")
    hint = "Indexes are 0, 1, 2, ... in the order of the test file"
    assert faults(text) == [
        "missing ids: 1 (2)",
        f"ids that the questions do not have: 1 (7). {hint}",
    ]
    assert faults(text, is_whole=False) == []
    one = "index\tprediction\n1\tentailment\n2\tentailment\n"
    assert faults(one) == ["missing ids: 1 (0)", f"ids that the questions do not have: 1 (2). {hint}"]


def test_a_cut_off_file_is_found_by_its_count_or_the_questions() -> None:
    assert faults(TEXT) == []
    expected = "missing ids: 2 (3, 4); it answers only 3 of 5 questions. Is it another split or phase, or cut off?"
    for found in (faults(TEXT, count=5), label_tsv_faults(TEXT.encode(), NLI, list("01234"))):
        assert found == [f"{expected} Indexes are 0, 1, 2, ... in the order of the test file"]


def test_repeated_indexes_are_named() -> None:
    assert "ids with more than one row: 1 (0)" in faults(TEXT.replace("1\tn", "0\tn"))


def test_numbers_are_finite_and_a_server_wants_them_from_0_to_5(tmp_path: Path) -> None:
    rows = ("3.800", "5", "0", "1e-3", "-0.2", "5.2")
    text = "index\tprediction\n" + "".join(f"{index}\t{row}\n" for index, row in enumerate(rows))
    assert faults(text, ()) == ["predictions outside of 0 to 5: 2 (index 4: -0.2, index 5: 5.2)"]
    (tmp_path / "STS-B.tsv").write_text(text)
    assert [one.answer for one in read_label_tsv(tmp_path / "STS-B.tsv", ())] == list(rows)
    wrong = ("nan", "inf", "1e999", "1_0", "3,8", "high", "")
    text = "index\tprediction\n" + "".join(f"{index}\t{row}\n" for index, row in enumerate(wrong))
    (tmp_path / "STS-B.tsv").write_text(text)
    with pytest.raises(InputDataError, match=r"STS-B.tsv: predictions that are no finite number: 6 \(line 2: 'nan'"):
        read_label_tsv(tmp_path / "STS-B.tsv", ())


def test_json_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "RTE.tsv").write_text('{"idx": 0, "label": "entailment"}\n')
    with pytest.raises(InputDataError, match=r"RTE.tsv holds JSON, not a TSV with the header 'index\\tprediction'"):
        read_label_tsv(tmp_path / "RTE.tsv", NLI)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    for function in (lambda path: read_label_tsv(path, NLI), lambda path: check_label_tsv(path, NLI, None)):
        with pytest.raises(InputDataError, match=r"No file .*RTE.tsv. Check the path"):
            function(tmp_path / "RTE.tsv")
