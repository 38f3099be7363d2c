from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from dept_vl.formats.files import Faults, refuse
from dept_vl.formats.rows import HubSource, find_file, finite_number, label_name, read_gold, read_label, read_rows
from feature_extraction.errors import InputDataError

NLI = ("entailment", "not_entailment")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_table_has_a_header_and_no_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.tsv", 'index\tsentence\tlabel\n7\tHe said " no .\t0\n8\tNo "quotes" , "\t1\n')
    assert read_rows(path) == {
        2: {"index": "7", "sentence": 'He said " no .', "label": "0", "idx": 0},
        3: {"index": "8", "sentence": 'No "quotes" , "', "label": "1", "idx": 1},
    }


def test_columns_are_named_for_a_table_without_header_only(tmp_path: Path) -> None:
    columns = ("source", "label", "mark", "sentence")
    bare = write(tmp_path / "train.tsv", "gj04\t1\t\tIt rains.\ngj04\t0\t*\tRains it.")
    assert [row["sentence"] for row in read_rows(bare, columns=columns).values()] == ["It rains.", "Rains it."]
    headed = write(tmp_path / "test.tsv", "index\tsentence\n0\tIt rains.\n")
    assert read_rows(headed, columns=columns) == {2: {"index": "0", "sentence": "It rains.", "idx": 0}}


def test_names_are_changed_where_a_file_has_them(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.txt", "Quality\t#1 String\n1\tIt rains.\n")
    assert read_rows(path, names={"#1 String": "sentence1", "Quality": "label", "score": "none"}) == {
        2: {"sentence1": "It rains.", "label": "1", "idx": 0}
    }


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_byte_order_marks_line_ends_and_blank_lines_make_no_difference(tmp_path: Path, mark: bytes, end: bytes) -> None:
    path = write(tmp_path / "dev.tsv", mark + end.join([b"sentence\tlabel", b"a\t0", b"", b"b \t1", b""]))
    assert [(row["sentence"], row["label"], row["idx"]) for row in read_rows(path).values()] == [
        ("a", "0", 0),
        ("b ", "1", 1),
    ]


def test_unusual_line_separators_are_characters_of_a_text(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\x0cd\x1ce"
    assert read_rows(write(tmp_path / "dev.tsv", f"sentence\n{text}\n"))[2]["sentence"] == text
    assert read_rows(write(tmp_path / "dev.jsonl", json.dumps({"s": text}, ensure_ascii=False)))[1]["s"] == text


def test_a_csv_has_quotes_and_rows_over_several_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "test.csv", '"1","He said ""no"",\nand left."\n"2","Fine."\n')
    rows = read_rows(path, columns=("label", "text"))
    assert rows == {
        1: {"label": "1", "text": 'He said "no",\nand left.', "idx": 0},
        3: {"label": "2", "text": "Fine.", "idx": 1},
    }


def test_json_lines_may_be_packed(tmp_path: Path) -> None:
    rows = [{"idx": 3, "label": True}, {"idx": 5, "label": None}]
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    for name, content in (("val.jsonl", lines), ("val.jsonl.gz", gzip.compress(lines)), ("gold.json", b"\n" + lines)):
        assert list(read_rows(write(tmp_path / name, content)).values()) == rows


def test_a_table_may_be_packed(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.tsv.gz", gzip.compress(b"sentence\nIt rains.\n"))
    assert read_rows(path) == {2: {"sentence": "It rains.", "idx": 0}}


def test_torn_rows_are_left_out_where_they_may_be_and_the_others_keep_their_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "train.tsv", "id\tquestion\tlabel\n5\ta\t0\n6\tb\nc\t1\n7\td\t1\n")
    rows = read_rows(path, drop_short=True)
    assert {line: (row["question"], row["idx"]) for line, row in rows.items()} == {2: ("a", 0), 5: ("d", 3)}
    assert "train.tsv: rows left out, as a line break in a text has broken them: 2 (3, 4)" in capsys.readouterr().err
    with pytest.raises(InputDataError, match=r"train.tsv: lines with fewer fields than columns: 2 \(3, 4\)"):
        read_rows(path)


def test_rows_with_too_many_fields_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.tsv", "sentence\tlabel\na\tb\t1\n")
    with pytest.raises(
        InputDataError, match=r"dev.tsv: lines with more fields than the columns sentence, label: 1 \(2"
    ):
        read_rows(path)


def test_a_csv_that_ends_inside_quotes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "test.csv", '"1","a"\n"2","b')
    with pytest.raises(InputDataError, match=r"test.csv: no CSV \(unexpected end of data\): 1 \(line 2\)"):
        read_rows(path, columns=("label", "text"))


def test_lines_that_are_no_objects_are_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.jsonl", '{"idx": 0}\n[1]\n{"idx":\n')
    with pytest.raises(InputDataError, match=r"dev.jsonl: lines that are no JSON object: 2 \(2, 3\)"):
        read_rows(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dev.tsv", b"sentence\tlabel\n", "has no rows. Download or write it again"),
        ("dev.jsonl", b"\n", "has no rows. Download or write it again"),
        ("dev.tsv", b"sentence\na\nb\xff\n", "is not in UTF-8: line 3. Download it again"),
        ("dev.jsonl.gz", b"{}", "is no whole gzip file: Not a gzipped file (b'{}'). Download it again"),
        ("dev.jsonl.gz", gzip.compress(b'{"a": 1}' * 99, mtime=0)[:-20], "is no whole gzip file"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(InputDataError, match=re.escape(f"{path} {message}")):
        read_rows(path)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"No file .*dev.tsv. Check the path"):
        read_rows(tmp_path / "dev.tsv")
    with pytest.raises(InputDataError, match=rf"{tmp_path} is a folder, not a file of rows. Give the file in it"):
        read_rows(tmp_path)


def test_a_table_without_a_wanted_column_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "dev.tsv", "question1\tquestion2\tis_duplicate\na\tb\t0\n")
    read_rows(path, names={"is_duplicate": "label"}, wanted=("question1", "label"))
    message = f"{path} has no column sentence and no column label. It has: question1, question2, is_duplicate. Is it "
    with pytest.raises(InputDataError, match=re.escape(message)):
        read_rows(path, wanted=("sentence", "label"))


def test_official_files_go_before_those_of_a_hub(tmp_path: Path) -> None:
    names = ("dev.tsv", HubSource("nyu-mll/glue", "rte", {"dev": "validation"}).rows_file("dev"))
    hub = write(tmp_path / "validation.rows.jsonl", "{}")
    assert find_file(tmp_path, names, "validation") == hub
    official = write(tmp_path / "dev.tsv", "")
    assert find_file(tmp_path, names, "validation") == official


def test_an_absent_split_is_named_with_the_files_that_are_there(tmp_path: Path) -> None:
    write(tmp_path / "train.tsv", "")
    message = (
        f"{tmp_path} has no dev.tsv and no validation.rows.jsonl. Files there: train.tsv. Put the official file there, "
        "fetch it with python -m dept_vl.fetch, or set task.splits.test to the name of yours"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        find_file(tmp_path, ("dev.tsv", "validation.rows.jsonl"), "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputDataError, match="Files there: none"):
        find_file(tmp_path / "empty", ("dev.tsv",), "test")
    for name, kind in (("train.tsv", "is a file"), ("absent", "is not there")):
        with pytest.raises(InputDataError, match=rf"{name} {kind}. Give the folder that dev.tsv lies in as --data"):
            find_file(tmp_path / name, ("dev.tsv",), "test")


@pytest.mark.parametrize(
    ("value", "labels", "name"),
    [
        ("not_entailment", NLI, "not_entailment"),
        ("Entailment", NLI, "entailment"),
        (1, NLI, "not_entailment"),
        ("1", NLI, "not_entailment"),
        (1.0, NLI, "not_entailment"),
        (True, NLI, None),
        (2, NLI, None),
        ("neutral", NLI, None),
        ([], NLI, None),
        (True, ("0", "1"), "1"),
        (False, ("false", "true"), "false"),
        ("True", ("false", "true"), "true"),
        ("1", ("False", "True"), "True"),
        ("2", ("1", "2"), "2"),
        (1, ("1", "2"), "1"),
    ],
)
def test_a_label_is_a_name_a_number_or_a_boolean(value: object, labels: tuple[str, ...], name: str | None) -> None:
    assert label_name(value, labels) == name


@pytest.mark.parametrize("row", [{}, {"label": None}, {"label": -1}, {"label": "-1"}, {"label": -1.0}, {"label": ""}])
@pytest.mark.parametrize("labels", [NLI, ()])
def test_a_withheld_label_gives_no_reference(row: dict[str, object], labels: tuple[str, ...]) -> None:
    faults: Faults = defaultdict(list)
    assert read_label(row, labels, 1, faults) == ()
    assert not faults


@pytest.mark.parametrize(
    ("value", "reference"),
    [("4.333", "4.333"), (3.799999952316284, "3.8"), (4.333000183105469, "4.333"), (1 / 3, str(1 / 3)), ("0", "0.0")],
)
def test_a_label_without_names_is_the_number_of_the_official_file(value: object, reference: str) -> None:
    assert read_label({"label": value}, (), 1, defaultdict(list)) == (reference,)


def test_labels_that_are_none_are_named_with_their_lines() -> None:
    faults: Faults = defaultdict(list)
    assert read_label({"label": "maybe"}, NLI, 3, faults) == read_label({"label": 2}, NLI, 5, faults) == ()
    message = (
        'dev.tsv: "label" is not one of entailment, not_entailment or its number (0, 1): 2 (line 3: "maybe", line 5: 2)'
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        refuse(faults, "dev.tsv")
    numbers: Faults = defaultdict(list)
    for value in ("high", "nan", "inf"):
        assert read_label({"score": value}, (), 2, numbers, key="score") == ()
    with pytest.raises(InputDataError, match=r'"score" is not a finite number: 3 \(line 2: "high"'):
        refuse(numbers, "dev.tsv")


@pytest.mark.parametrize(
    ("value", "number"), [("3.5", 3.5), (" 2 ", 2), (1, 1), ("nan", None), ("", None), (None, None)]
)
def test_a_finite_number_is_read_from_a_value_or_its_text(value: object, number: float | None) -> None:
    assert finite_number(value) == number


def test_gold_is_json_lines_of_idx_and_label(tmp_path: Path) -> None:
    rows = [{"idx": 4, "label": 1, "more": []}, {"idx": "q-2", "label": "entailment"}, {"idx": 0, "label": -1}]
    path = write(tmp_path / "gold.jsonl", "\n".join(map(json.dumps, rows)))
    gold = read_gold(path, NLI)
    assert [(one.example_id, one.references) for one in gold] == [
        ("4", ("not_entailment",)),
        ("q-2", ("entailment",)),
        ("0", ()),
    ]
    assert {(one.text, one.image_ids) for one in gold} == {("", ())}


def test_gold_with_faults_is_refused(tmp_path: Path) -> None:
    rows = [{"idx": 4, "label": 7}, {"label": 1}, {"idx": 1.5, "label": 1}]
    path = write(tmp_path / "gold.jsonl", "\n".join(map(json.dumps, rows)))
    message = r'"label" is not one of .*: 1 \(line 1: 7\); no "idx": 1 \(line 2\); "idx" is a fraction, not a whole n'
    with pytest.raises(InputDataError, match=message):
        read_gold(path, NLI)
    write(path, '{"idx": 4, "label": 0}\n{"idx": 4, "label": 1}')
    with pytest.raises(InputDataError, match=r'gold.jsonl: more than one line with the same "idx": 1 \(4\)'):
        read_gold(path, NLI)
