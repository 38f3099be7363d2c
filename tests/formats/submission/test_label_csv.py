from __future__ import annotations

import re
from pathlib import Path

import pytest

from dept_vl.formats.submission import check_label_csv, read_label_csv
from dept_vl.types import Prediction
from feature_extraction.errors import InputDataError

GOOD = "dev-1-0-0,True\ndev-1-1-0,False\n"
WANTED = ("dev-1-0-0", "dev-1-1-0")


def faults(path: Path, text: str, wanted: tuple[str, ...] | None = WANTED) -> list[str]:
    path.write_bytes(text.encode())
    return check_label_csv(path, wanted)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.csv"


def test_lines_are_read_in_their_order_with_labels_as_they_stand(path: Path) -> None:
    path.write_text("dev-1-1-0,false\ndev-1-0-0,True")
    assert read_label_csv(path) == [Prediction("dev-1-1-0", "false"), Prediction("dev-1-0-0", "True")]


def test_all_wrong_lines_are_refused_at_once(path: Path) -> None:
    path.write_text("identifier,label\ndev-1-0-0,1\n\ndev-1-1-0")
    message = (
        f"{path}: a header in the place of the first example: 1 ('identifier,label'); labels other than True and "
        "False: 1 (line 2: '1'); blank lines: 1 (line 3); 1 column, not identifier,True: 1 (line 4)"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        read_label_csv(path)


def test_what_is_no_text_is_refused(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(InputDataError, match=re.escape(f"{path} is empty. Write it again")):
        read_label_csv(path)
    assert check_label_csv(path, None) == ["is empty. Write it again"]


@pytest.mark.parametrize("text", [GOOD, GOOD.lower(), GOOD.rstrip(), GOOD.replace("\n", "\r\n"), GOOD.upper().lower()])
@pytest.mark.parametrize("wanted", [WANTED, None])
def test_a_good_file_has_no_fault(path: Path, text: str, wanted: tuple[str, ...] | None) -> None:
    assert faults(path, text, wanted) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("identifier,prediction\n" + GOOD, "a header in the place of the first example: 1 ('identifier,prediction')"),
        (GOOD.replace(",", ", "), "spaces around a field, not identifier,True: 2 (line 1, line 2)"),
        (GOOD.replace("True", "True "), "spaces around a field, not identifier,True: 1 (line 1)"),
        (GOOD.replace("True", "1"), "labels other than True and False: 1 (line 1: '1')"),
        (GOOD.replace("True", "yes"), "labels other than True and False: 1 (line 1: 'yes')"),
        (GOOD.replace("True", ""), "labels other than True and False: 1 (line 1: '')"),
        (GOOD.replace("\n", "\n\n", 1), "blank lines: 1 (line 2)"),
        (GOOD + "\n", "blank lines: 1 (line 3)"),
        (GOOD.replace(",", "\t"), "a tab or semicolon, not identifier,True: 2 (line 1, line 2)"),
        (GOOD.replace(",", ";"), "a tab or semicolon, not identifier,True: 2 (line 1, line 2)"),
        (GOOD.replace("True", '"True"'), "quotes, not identifier,True: 1 (line 1)"),
        (GOOD.replace("True", "True,0.9"), "3 columns, not identifier,True: 1 (line 1)"),
        (GOOD.replace(",True", ""), "1 column, not identifier,True: 1 (line 1)"),
        (
            GOOD.replace("0-0,", "0-0.png,"),
            "an image's name in the place of the example's identifier: 1 (line 1: dev-1-0-0.png)",
        ),
        ('[["dev-1-0-0", "True"]]', "holds JSON, not a CSV with lines such as dev-0-0-0,True"),
        (GOOD + GOOD.splitlines()[0], "ids with more than one row: 1 (dev-1-0-0)"),
        (GOOD + "dev-2-0-0,True\n", "ids that the questions do not have: 1 (dev-2-0-0)"),
    ],
)
def test_each_fault_is_named_and_no_other(path: Path, text: str, fault: str) -> None:
    assert faults(path, text) == [fault]


def test_missing_identifiers_and_those_of_another_split_are_named(path: Path) -> None:
    (fault,) = faults(path, GOOD.splitlines()[0])
    assert fault.startswith("missing ids: 1 (dev-1-1-0); it answers only 1 of 2 questions.")
    (fault,) = faults(path, GOOD.replace("dev", "test1"))
    assert fault.startswith("wrong split or phase: none of its ids is among those of the questions, 2 (test1-1-0-0, ")


def test_an_image_s_name_is_a_fault_without_its_ending_too(path: Path) -> None:
    (fault,) = faults(path, "dev-1-0-img0,True\n", None)
    assert fault.startswith("an image's name in the place")
