from __future__ import annotations

import codecs
import re
import zipfile
from pathlib import Path

import pytest

from dept_vl.formats.submission.content import check_name, contents, decode, id_faults, read_content, template_of
from feature_extraction.errors import InputDataError

WHOLE = "The server wants all questions of test2015"
TEMPLATES = ("captions_val2014_<alg>_results.json", "captions_test2014_<alg>_results.json")


def test_an_absent_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=re.escape(f"No file {tmp_path / 'none'}. Check the path")):
        read_content(tmp_path / "none")
    with pytest.raises(InputDataError, match=re.escape(f"{tmp_path} is a folder, not a leaderboard file. Give the fi")):
        read_content(tmp_path)


@pytest.mark.parametrize(
    ("content", "meaning"),
    [
        (b"\x1f\x8b\x08", "is packed by gzip. Unpack it first"),
        (b"PK\x03\x04rest", "is a zip archive. Unpack it first"),
        (b"PK\x05\x06rest", "is an empty zip archive. Give the file itself"),
        (b"BZh9", "is packed by bzip2. Unpack it first"),
        (b"\xfd7zXZ\x00", "is packed by xz. Unpack it first"),
        (codecs.BOM_UTF8 + b"[]", "begins with a byte order mark"),
        ("[]".encode("utf-16"), "is in UTF-16 or UTF-32"),
        (codecs.BOM_UTF16_BE + "[]".encode("utf-16-be"), "is in UTF-16"),
        ('["é"]'.encode("latin-1"), 'is not in UTF-8 (byte 2 is 0xe9). Write it with the encoding "utf-8"'),
        (b"", "is empty. Write it again"),
        (b" \n", "is empty. Write it again"),
    ],
)
def test_bytes_that_are_no_text_are_named(content: bytes, meaning: str) -> None:
    assert decode(content)[1].startswith(meaning)


def test_text_is_taken_as_it_is() -> None:
    assert decode("é\r\n".encode()) == ("é\r\n", "")


@pytest.mark.parametrize(
    ("ids", "faults"),
    [
        (["1", "2", "3"], []),
        (["3", "1", "2"], []),
        (["1", "2", "2", "3"], ["ids with more than one row: 1 (2)"]),
        (
            ["1", "3"],
            [
                "missing ids: 1 (2); it answers only 2 of 3 questions. Is it another split or phase, or cut off? "
                + WHOLE
            ],
        ),
        (["1", "2", "3", "4"], ["ids that the questions do not have: 1 (4). " + WHOLE]),
        (["1", "2", "4"], ["missing ids: 1 (3)", "ids that the questions do not have: 1 (4). " + WHOLE]),
        (
            ["4", "5"],
            [
                "wrong split or phase: none of its ids is among those of the questions, 2 (4, 5) against 3 (1, 2, 3). "
                + WHOLE
            ],
        ),
    ],
)
def test_ids_are_compared_with_the_wanted_ones(ids: list[str], faults: list[str]) -> None:
    assert list(id_faults(ids, ["1", "2", "3"], WHOLE)) == faults


def test_what_the_server_wants_is_said_only_if_known() -> None:
    (fault,) = id_faults(["4"], ["1"])
    assert fault.endswith("1 (4) against 1 (1)")
    (fault,) = id_faults(["1"], ["1", "2"])
    assert fault.endswith("or cut off?")


def test_without_wanted_ids_only_repeated_ones_are_faults() -> None:
    assert list(id_faults(["1", "1", "9"], None)) == ["ids with more than one row: 1 (1)"]


def test_a_file_without_any_id_is_not_said_to_lack_them() -> None:
    assert list(id_faults([], ["1"])) == []


def test_a_name_follows_a_template_or_is_a_fault() -> None:
    assert template_of("captions_test2014_my-alg_results.json", TEMPLATES) == (TEMPLATES[1], "my-alg")
    assert check_name(Path("any/captions_val2014_x_y_results.json"), TEMPLATES) == []
    for name in (
        "captions_val2014__results.json",
        "captions_val2014_results.json",
        "captions_val2014_a/b_results.json",
    ):
        assert template_of(name, TEMPLATES) is None
    fault = f"its name is results.json, not {TEMPLATES[0]} or {TEMPLATES[1]}, <alg> being the name of your method"
    assert check_name(Path("folder/results.json"), TEMPLATES) == [fault]


def test_rows_of_each_format_are_counted(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[{},\n {}]\n")
    (tmp_path / "labels.csv").write_text("dev-0-0-0,True\n")
    with zipfile.ZipFile(tmp_path / "results.zip", "w") as archive:
        archive.write(tmp_path / "list.json", "a.json")
        archive.writestr("b.json", "[{}]")
    (tmp_path / "answers.json").write_text('{"q1": "a", "q2": "b"}')
    (tmp_path / "one.jsonl").write_text('{"idx": 0, "label": "true"}')
    assert contents(tmp_path / "answers.json") == "2 answers"
    assert contents(tmp_path / "one.jsonl") == "1 row"
    assert contents(tmp_path / "list.json") == "2 rows"
    assert contents(tmp_path / "labels.csv") == "1 row"
    assert contents(tmp_path / "results.zip") == "a.json with 2 rows and b.json with 1 row"
