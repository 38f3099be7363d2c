from __future__ import annotations

import gc
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from dept_vl.formats.files import Faults, check_types, collector_paused, count_and_first, read_json, refuse
from feature_extraction.errors import InputDataError


def test_json_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"answer": "café"}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"answer": "café"}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"No file .*a.json. Check the path"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputDataError, match=rf"{tmp_path} is a folder, not a JSON file. Give the file in it"):
        read_json(tmp_path)


@pytest.mark.parametrize("content", [b'{"a": 1}\n{"a": 2}\n', b'[{"a": 1', b"", b'"\xff"', b"[" * 100_000])
def test_json_lines_cut_empty_undecodable_and_bottomless_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputDataError, match=r"a.json is not one JSON value in UTF-8: .*Download or write it again"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"id": "1", "text": "a"}, '"id" is text, not a whole number'),
        ({"id": True, "text": "a"}, '"id" is a boolean, not a whole number'),
        ({"id": 1.0, "text": "a"}, '"id" is a fraction, not a whole number'),
        ({"id": None, "text": "a"}, '"id" is null, not a whole number'),
        ({"id": 1, "text": ["a"]}, '"text" is a list, not text'),
        ({"id": 1, "text": {}}, '"text" is an object, not text'),
        ({"id": 1}, 'no "text"'),
        ([1, "a"], "a list instead of an object with id, text"),
    ],
)
def test_each_wrong_type_is_said(row: Any, fault: str) -> None:
    faults: Faults = defaultdict(list)
    assert not check_types(row, {"id": int, "text": str}, "row 7", faults)
    assert faults == {fault: ["row 7"]}


def test_right_types_with_further_keys_are_no_fault() -> None:
    faults: Faults = defaultdict(list)
    assert check_types({"id": 1, "text": "a", "more": None}, {"id": int, "text": str}, "row 0", faults)
    assert not faults


def test_all_faults_are_in_one_message_with_counts_and_first_places() -> None:
    faults: Faults = defaultdict(list, {"no id": ["row 1"], "fine": [], "duplicates": list(range(1000, 3000))})
    message = "a.json and b.json: no id: 1 (row 1); duplicates: 2,000 (1000, 1001, 1002, 1003, 1004, ...)"
    with pytest.raises(InputDataError, match=f"^{re.escape(message)}$"):
        refuse(faults, Path("a.json"), None, Path("b.json"))


def test_no_fault_is_no_error() -> None:
    refuse(defaultdict(list, {"fine": []}), "a.json")


def test_few_ids_are_all_named() -> None:
    assert count_and_first([3, 1]) == "2 (3, 1)"


def test_the_collector_is_afterwards_as_before() -> None:
    with collector_paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
