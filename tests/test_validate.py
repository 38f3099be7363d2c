"""Good leaderboard files of all tasks pass; each of a corpus of faults is named."""

from __future__ import annotations

import codecs
import gzip
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dept_vl.command_line import run
from dept_vl.validate import main
from feature_extraction.errors import UsageError

Change = Callable[[Path], Path | None]  # spoils a good file; or makes another one, and says where
VQA_IDS = (262144000, 262144001, 262144002, 393220000, 393220001)
GQA_IDS = ("0071234", "201307251", "201640614", "202225914")
NLVR2_IDS = ("dev-850-0-0", "dev-850-1-0", "dev-850-2-0", "dev-413-0-1")
IMAGES = {"val2014": (42, 73, 74), "test2014": (1, 14, 16)}
SINGLE = "captions_{}_dept_results.json"


class Mutation(NamedTuple):
    """A fault that a file may have."""

    task: str
    change: Change
    named: str  # part of the message that only this fault has
    count: int  # of the faults that the message names


MUTATIONS: list[Mutation] = []


def fault(tasks: str, named: str, count: int = 1) -> Callable[[Change], Change]:
    """Add the mutation to the corpus, for each of the tasks."""

    def add(change: Change) -> Change:
        MUTATIONS.extend(Mutation(task, change, named, count) for task in tasks.split())
        return change

    return add


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def edit(path: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the rows of a JSON list in place."""
    rows = json.loads(path.read_text())
    change(rows)
    write(path, rows)


def replace(path: Path, old: str, new: str) -> None:
    """Change a text file at one place."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def pack(path: Path, members: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def edit_member(path: Path, split: str, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the rows of one of the lists in an archive."""
    files = members(path)
    rows = json.loads(files[SINGLE.format(split)])
    change(rows)
    pack(path, (files | {SINGLE.format(split): json.dumps(rows).encode()}).items())


@pytest.fixture
def good(tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """A faultless file of a task, or one of a single split ("caption-single"), and its official questions."""

    def make(task: str) -> tuple[Path, Path]:
        return {"vqa": _vqa, "gqa": _gqa, "nlvr2": _nlvr2, "caption": _caption, "caption-single": _single}[task](
            tmp_path
        )

    return make


def _vqa(folder: Path) -> tuple[Path, Path]:
    questions = folder / "v2_OpenEnded_mscoco_test2015_questions.json"
    head = {"info": {}, "license": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "test2015"}
    rows = [{"question_id": one, "image_id": one // 1000, "question": "What is it?"} for one in VQA_IDS]
    write(questions, {**head, "questions": rows})
    submission = folder / "results.json"
    answers = ("red", "", "2", "café", "yes")
    pairs = zip(VQA_IDS, answers, strict=True)
    submission.write_text(json.dumps([{"question_id": one, "answer": answer} for one, answer in pairs], indent=1))
    return submission, questions


def _gqa(folder: Path) -> tuple[Path, Path]:
    questions = folder / "submission_all_questions.json"
    write(questions, {one: {"question": "Is it red?", "imageId": "n1", "isBalanced": True} for one in GQA_IDS})
    submission = folder / "results.json"
    write(submission, [{"questionId": one, "prediction": "yes"} for one in GQA_IDS])
    return submission, questions


def _nlvr2(folder: Path) -> tuple[Path, Path]:
    questions = folder / "dev.json"
    rows = [{"identifier": one, "sentence": "There are two dogs.", "label": "True"} for one in NLVR2_IDS]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    submission = folder / "results.csv"
    submission.write_text("".join(f"{one},{index % 2 == 0}\n" for index, one in enumerate(NLVR2_IDS)))
    return submission, questions


def _caption(folder: Path) -> tuple[Path, Path]:
    _single(folder)
    rows = {split: [{"image_id": one, "caption": "a red bus"} for one in ids] for split, ids in IMAGES.items()}
    pack(folder / "results.zip", ((SINGLE.format(split), json.dumps(one).encode()) for split, one in rows.items()))
    return folder / "results.zip", folder / "annotations"


def _single(folder: Path) -> tuple[Path, Path]:
    annotations = folder / "annotations"
    annotations.mkdir()
    images = {
        split: [{"id": one, "file_name": f"COCO_{split}_{one:012d}.jpg", "height": 4, "width": 4} for one in ids]
        for split, ids in IMAGES.items()
    }
    captions = [{"id": 10 + one, "image_id": one, "caption": "A bus."} for one in IMAGES["val2014"]]
    head = {"info": {}, "licenses": []}
    write(annotations / "captions_val2014.json", {**head, "images": images["val2014"], "annotations": captions})
    write(annotations / "image_info_test2014.json", {**head, "images": images["test2014"], "categories": []})
    submission = folder / SINGLE.format("test2014")
    write(submission, [{"image_id": one, "caption": "a red bus"} for one in IMAGES["test2014"]])
    return submission, annotations / "image_info_test2014.json"


# ---------------------------------------------------------------------------------- what is no list of rows in UTF-8


@fault("vqa gqa caption-single", "holds JSON lines (a second value begins at line 2, column 1) instead of one list")
def json_lines(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row) for row in json.loads(path.read_text())))


@fault("vqa gqa caption-single", "holds an object, not a list (its keys: ")
def an_object_of_answers_by_id(path: Path) -> None:
    write(path, {str(next(iter(row.values()))): list(row.values())[1] for row in json.loads(path.read_text())})


@fault("vqa", "holds an object, not a list (its keys: results)")
def the_list_inside_an_object(path: Path) -> None:
    write(path, {"results": json.loads(path.read_text())})


@fault("vqa", "goes on after the end of its list, at line ")
def two_lists(path: Path) -> None:
    path.write_text(path.read_text() * 2)


@fault("vqa gqa caption-single", "is cut off: it ends in ")
def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@fault("vqa", "has single quotes, as Python prints (line 1, column 3)")
def printed_by_python(path: Path) -> None:
    path.write_text(str(json.loads(path.read_text())))


@fault("vqa", "is not JSON: a comma too many before line ")
def a_comma_too_many(path: Path) -> None:
    path.write_text(path.read_text().rstrip().removesuffix("]") + ",]")


@fault("vqa", "is not JSON: a bare line break or control character in a text at line ")
def a_bare_line_break(path: Path) -> None:
    replace(path, "red", "red\nbus")


@fault("vqa", "is not JSON: Expecting value at line 1, column 1. It begins with 'question_id,answer")
def a_csv_for_a_json(path: Path) -> None:
    path.write_text("question_id,answer\n1,red\n")


@fault("vqa nlvr2 caption-single", "is empty. Write it again")
def an_empty_file(path: Path) -> None:
    path.write_bytes(b"")


@fault("vqa", "holds a list without rows")
def an_empty_list(path: Path) -> None:
    write(path, [])


@fault("vqa gqa nlvr2", "is packed by gzip. Unpack it first")
def packed_by_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


@fault("vqa gqa nlvr2", "is a zip archive. Unpack it first")
def packed_by_zip(path: Path) -> None:
    pack(path, [(path.name, path.read_bytes())])


@fault("vqa nlvr2", "begins with a byte order mark")
def a_byte_order_mark(path: Path) -> None:
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())


@fault("vqa nlvr2", "is in UTF-16 or UTF-32")
def in_utf_16(path: Path) -> None:
    path.write_bytes(path.read_text().encode("utf-16"))


@fault("vqa", "is not in UTF-8 (byte ")
def in_latin_1(path: Path) -> None:
    path.write_bytes(json.dumps(json.loads(path.read_text()), ensure_ascii=False).encode("latin-1"))


@fault("vqa", "NaN, which is no JSON: 5 times")
def a_score_that_is_no_number(path: Path) -> None:
    edit(path, lambda rows: [row.update(score=float("nan")) for row in rows])


@fault("vqa", 'rows with "answer" more than once: 1')
def an_answer_twice_in_a_row(path: Path) -> None:
    replace(path, '"answer": "red"', '"answer": "red", "answer": "red"')


# ---------------------------------------------------------------------------------------------------- keys and types


@fault("vqa", 'write "question_id" instead of "questionId"', 3)
def the_id_s_key_of_gqa(path: Path) -> None:
    edit(path, lambda rows: [row.update(questionId=row.pop("question_id")) for row in rows])


@fault("gqa", 'write "questionId" instead of "question_id"', 3)
def the_id_s_key_of_vqa(path: Path) -> None:
    edit(path, lambda rows: [row.update(question_id=row.pop("questionId")) for row in rows])


@fault("gqa", 'no "prediction": 4', 2)
def an_answer_for_a_prediction(path: Path) -> None:
    edit(path, lambda rows: [row.update(answer=row.pop("prediction")) for row in rows])


@fault("caption-single", 'write "image_id" instead of "imageId"', 3)
def the_image_s_key_in_camel_case(path: Path) -> None:
    edit(path, lambda rows: [row.update(imageId=row.pop("image_id")) for row in rows])


@fault("caption-single", 'write "caption" instead of "Caption"', 3)
def a_key_in_capitals(path: Path) -> None:
    edit(path, lambda rows: [row.update(Caption=row.pop("caption")) for row in rows])


@fault("vqa", "a list instead of an object with question_id, answer: 5")
def pairs_for_objects(path: Path) -> None:
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([list(row.values()) for row in rows]))


@fault("vqa", '"question_id" is text, not a whole number: 5')
def ids_as_text(path: Path) -> None:
    edit(path, lambda rows: [row.update(question_id=str(row["question_id"])) for row in rows])


@fault("gqa", '"questionId" is a whole number, not text: 3')
def ids_as_numbers(path: Path) -> None:
    edit(path, lambda rows: [row.update(questionId=int(row["questionId"])) for row in rows[1:]])


@fault("gqa", "missing ids: 1 (0071234)", 3)
def leading_zeros_lost(path: Path) -> None:
    edit(path, lambda rows: rows[0].update(questionId=int(rows[0]["questionId"])))


@fault("caption-single", '"image_id" is text, not a whole number: 3')
def image_ids_as_text(path: Path) -> None:
    edit(path, lambda rows: [row.update(image_id=str(row["image_id"])) for row in rows])


@fault("vqa", '"question_id" is a fraction, not a whole number: 5')
def ids_as_fractions(path: Path) -> None:
    edit(path, lambda rows: [row.update(question_id=float(row["question_id"])) for row in rows])


@fault("vqa", '"question_id" is a boolean, not a whole number: 1', 2)
def an_id_that_is_true(path: Path) -> None:
    edit(path, lambda rows: rows[0].update(question_id=True))


@fault("vqa", '"answer" is a whole number, not text: 1')
def a_count_as_a_number(path: Path) -> None:
    edit(path, lambda rows: rows[2].update(answer=2))


@fault("vqa gqa caption-single", " is null, not text: 1")
def no_answer_as_null(path: Path) -> None:
    edit(path, lambda rows: rows[1].update({list(rows[1])[1]: None}))


@fault("vqa", '"answer" is a list, not text: 5')
def answers_as_lists(path: Path) -> None:
    edit(path, lambda rows: [row.update(answer=[row["answer"]]) for row in rows])


@fault("caption-single", '"caption" is a list, not text: 3')
def captions_as_lists_of_beams(path: Path) -> None:
    edit(path, lambda rows: [row.update(caption=[row["caption"]]) for row in rows])


@fault("vqa", '"answer" is a boolean, not text: 1')
def yes_as_true(path: Path) -> None:
    edit(path, lambda rows: rows[4].update(answer=True))


# ----------------------------------------------------------------------------------------------------------- answers


@fault("vqa gqa caption-single", "answers with special tokens of a model")
def special_tokens(path: Path) -> None:
    edit(path, lambda rows: rows[0].update({list(rows[0])[1]: "<pad> yes</s>"}))


@fault("vqa", "answers with special tokens of a model")
def a_sentinel_token(path: Path) -> None:
    edit(path, lambda rows: rows[0].update(answer="<extra_id_0> red"))


@fault("vqa", "answers with special tokens of a model")
def an_unknown_token(path: Path) -> None:
    edit(path, lambda rows: rows[0].update(answer="<unk>"))


@fault("caption-single", "answers with a line break: 1 (1)")
def a_caption_of_two_lines(path: Path) -> None:
    edit(path, lambda rows: rows[0].update(caption="a red bus\na blue bus"))


@fault("caption-single", "answers with a line break: 1 (1)")
def a_line_separator(path: Path) -> None:
    edit(path, lambda rows: rows[0].update(caption="a red bus\u2028a blue bus"))


@fault("vqa", "answers with a control character: 1 (262144000)")
def a_null_byte(path: Path) -> None:
    edit(path, lambda rows: rows[0].update(answer="red\0"))


@fault("vqa", "answers with half a character")
def half_an_emoji(path: Path) -> None:
    edit(path, lambda rows: rows[0].update(answer="\ud83d"))


@fault("vqa caption-single", "answers of more than 1,000 characters: 1")
def an_endless_answer(path: Path) -> None:
    edit(path, lambda rows: rows[0].update({list(rows[0])[1]: "red " * 500}))


@fault("vqa gqa", "all answers are blank: ")
def blank_answers_only(path: Path) -> None:
    edit(path, lambda rows: [row.update({list(row)[1]: ""}) for row in rows])


@fault("gqa", "answers with capitals or outer spaces, which equal no right answer: 1 (0071234)")
def a_capital(path: Path) -> None:
    edit(path, lambda rows: rows[0].update(prediction="Yes"))


@fault("gqa", "answers with capitals or outer spaces, which equal no right answer: 1 (0071234)")
def a_space_before_the_answer(path: Path) -> None:
    edit(path, lambda rows: rows[0].update(prediction=" yes"))


# --------------------------------------------------------------------------------------------------------------- ids


@fault("vqa gqa caption-single", "ids with more than one row: 1")
def a_row_twice(path: Path) -> None:
    edit(path, lambda rows: rows.append(rows[0]))


@fault("vqa gqa caption-single", "missing ids: 1")
def a_row_missing(path: Path) -> None:
    edit(path, lambda rows: rows.pop())


@fault("vqa", "ids that the questions do not have: 1 (5)")
def a_row_too_many(path: Path) -> None:
    edit(path, lambda rows: rows.append({"question_id": 5, "answer": "red"}))


@fault("gqa", "ids that the questions do not have: 1 (x)")
def a_question_of_another_set(path: Path) -> None:
    edit(path, lambda rows: rows.append({"questionId": "x", "prediction": "red"}))


@fault("vqa", "ids that the questions do not have: 1 (7)", 2)
def an_id_for_another(path: Path) -> None:
    edit(path, lambda rows: rows[0].update(question_id=7))


@fault("vqa", "wrong split or phase: none of its ids is among those of the questions, 5 (262145000, ")
def another_split(path: Path) -> None:
    edit(path, lambda rows: [row.update(question_id=row["question_id"] + 1000) for row in rows])


@fault("gqa", "wrong split or phase: none of its ids is among those of the questions, 4 (val0071234, ")
def another_tier(path: Path) -> None:
    edit(path, lambda rows: [row.update(questionId="val" + row["questionId"]) for row in rows])


@fault("vqa", "it answers only 2 of 5 questions. Is it another split or phase, or cut off? ")
def the_questions_of_test_dev_alone(path: Path) -> None:
    edit(path, lambda rows: rows.__delitem__(slice(2, None)))


# ------------------------------------------------------------------------------------------------------ labels (CSV)


@fault("nlvr2", "a header in the place of the first example: 1 ('identifier,prediction')")
def a_header(path: Path) -> None:
    path.write_text("identifier,prediction\n" + path.read_text())


@fault("nlvr2", "spaces around a field, not identifier,True: 1 (line 1)")
def a_space_after_the_comma(path: Path) -> None:
    replace(path, ",", ", ")


@fault("nlvr2", "labels other than True and False: 4 (line 1: '1', line 2: '0'")
def labels_as_numbers(path: Path) -> None:
    path.write_text(path.read_text().replace("True", "1").replace("False", "0"))


@fault("nlvr2", "labels other than True and False: 4 (line 1: 'yes', line 2: 'no'")
def labels_as_yes_and_no(path: Path) -> None:
    path.write_text(path.read_text().replace("True", "yes").replace("False", "no"))


@fault("nlvr2", "labels other than True and False: 1 (line 1: '')")
def a_label_missing(path: Path) -> None:
    replace(path, "True", "")


@fault("nlvr2", "blank lines: 1 (line 2)")
def a_blank_line(path: Path) -> None:
    replace(path, "\n", "\n\n")


@fault("nlvr2", "a tab or semicolon, not identifier,True: 4")
def tabs(path: Path) -> None:
    path.write_text(path.read_text().replace(",", "\t"))


@fault("nlvr2", "quotes, not identifier,True: 4")
def quotes(path: Path) -> None:
    path.write_text("".join(f'"{line.replace(",", chr(34) + "," + chr(34))}"\n' for line in path.read_text().split()))


@fault("nlvr2", "an image's name in the place of the example's identifier: 4 (line 1: dev-850-0-0.png")
def identifiers_with_png(path: Path) -> None:
    path.write_text(path.read_text().replace(",", ".png,"))


@fault("nlvr2", "3 columns, not identifier,True: 1 (line 1)")
def a_third_column(path: Path) -> None:
    replace(path, "True", "True,0.93")


@fault("nlvr2", "1 column, not identifier,True: 1 (line 1)")
def a_column_missing(path: Path) -> None:
    replace(path, ",True", "")


@fault("nlvr2", "ids with more than one row: 1 (dev-850-0-0)")
def a_line_twice(path: Path) -> None:
    path.write_text(path.read_text() + "dev-850-0-0,True\n")


@fault("nlvr2", "missing ids: 1 (dev-413-0-1); it answers only 3 of 4 questions")
def a_line_missing(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


@fault("nlvr2", "ids that the questions do not have: 1 (dev-1-0-0)")
def a_line_too_many(path: Path) -> None:
    path.write_text(path.read_text() + "dev-1-0-0,True\n")


@fault("nlvr2", "wrong split or phase: none of its ids is among those of the questions, 4 (test1-850-0-0, ")
def labels_of_another_split(path: Path) -> None:
    path.write_text(path.read_text().replace("dev", "test1"))


@fault("nlvr2", "holds JSON, not a CSV with lines such as dev-0-0-0,True")
def a_json_for_a_csv(path: Path) -> None:
    write(path, [{"identifier": one, "label": "True"} for one in NLVR2_IDS])


# ---------------------------------------------------------------------------------------------- names and archives


@fault("caption-single", "its name is results.json, not captions_")
def a_name_of_one_s_own(path: Path) -> Path:
    return path.rename(path.with_name("results.json"))


@fault("caption", "no captions_val2014_<alg>_results.json at the archive's top")
def a_split_missing(path: Path) -> None:
    pack(path, [one for one in members(path).items() if "test2014" in one[0]])


@fault("caption", "files in a folder, which belong at the archive's top (pack with zip -j): 2 (results/captions_val", 2)
def a_folder_in_the_archive(path: Path) -> None:
    pack(path, [(f"results/{name}", content) for name, content in members(path).items()])


@fault("caption", "files that macOS adds (take them out with zip -d): 1 (__MACOSX/._captions")
def what_macos_adds(path: Path) -> None:
    pack(path, [*members(path).items(), ("__MACOSX/._" + SINGLE.format("val2014"), b"\0")])


@fault("caption", "files other than captions_")
def a_further_file(path: Path) -> None:
    pack(path, [*members(path).items(), ("readme.txt", b"ours")])


@fault("caption", "absolute paths or paths with ..: 1 (../captions")
def a_path_out_of_the_archive(path: Path) -> None:
    pack(path, [*members(path).items(), ("../" + SINGLE.format("val2014"), b"[]")])


@fault("caption", "the names of its files differ in <alg>: dept and other")
def two_algorithms(path: Path) -> None:
    pack(path, [(name.replace("test2014_dept", "test2014_other"), text) for name, text in members(path).items()])


@fault("caption", "files other than captions_", 2)
def a_member_s_name_of_one_s_own(path: Path) -> None:
    pack(path, [(name.replace("captions_val", "val"), content) for name, content in members(path).items()])


@fault("caption", "is encrypted. Pack it without a password")
def encrypted(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


@fault("caption", "is a damaged or cut off zip archive (File is not a zip file). Pack captions_")
def an_archive_cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@fault("caption", "captions_val2014_dept_results.json: is damaged (Bad CRC-32")
def an_archive_with_a_changed_byte(path: Path) -> None:
    pack(path, members(path).items(), zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"a red bus", b"a rad bus", 1))


@fault("caption", "captions_val2014_dept_results.json: is not packed by deflate")
def an_unusual_packing(path: Path) -> None:
    files = members(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content, zipfile.ZIP_LZMA if "val2014" in name else zipfile.ZIP_DEFLATED)


@fault("caption", "captions_test2014_dept_results.json: missing ids: 1 (16)")
def an_image_of_an_archive_missing(path: Path) -> None:
    edit_member(path, "test2014", lambda rows: rows.pop())


@fault("caption", 'captions_val2014_dept_results.json: "image_id" is text, not a whole number: 3')
def ids_of_an_archive_as_text(path: Path) -> None:
    edit_member(path, "val2014", lambda rows: [row.update(image_id=str(row["image_id"])) for row in rows])


@fault("caption", "captions_val2014_dept_results.json: wrong split or phase: none of its ids", 2)
def splits_exchanged(path: Path) -> None:
    files = members(path)
    pack(path, zip(files, reversed(files.values()), strict=True))


# ------------------------------------------------------------------------------------------------------------- tests


def validate(task: str, submission: Path, questions: Path | None = None) -> int:
    arguments = ["--task", task.removesuffix("-single"), "--submission", str(submission)]
    return run(main, [*arguments, "--questions", str(questions)] if questions else arguments)


def test_the_corpus_has_forty_distinct_faults_at_least() -> None:
    assert len({mutation.change for mutation in MUTATIONS}) >= 40
    assert {mutation.task.removesuffix("-single") for mutation in MUTATIONS} == {"vqa", "gqa", "nlvr2", "caption"}


@pytest.mark.parametrize("mutation", [pytest.param(one, id=f"{one.task}-{one.change.__name__}") for one in MUTATIONS])
def test_each_fault_is_named_with_exit_code_3_and_none_that_is_not_there(
    mutation: Mutation, good: Callable[[str], tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    submission, questions = good(mutation.task)
    submission = mutation.change(submission) or submission
    assert validate(mutation.task, submission, questions) == 3
    captured = capsys.readouterr()
    count = "1 fault" if mutation.count == 1 else f"{mutation.count} faults"
    beginning = f"error: {submission} has {count} for a leaderboard file of {mutation.task.removesuffix('-single')}: "
    assert captured.err.startswith(beginning)
    assert mutation.named in captured.err
    assert captured.out == ""
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("task", ["vqa", "gqa", "nlvr2", "caption", "caption-single"])
def test_a_good_file_passes_and_the_answer_says_what_was_checked(
    task: str, good: Callable[[str], tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    submission, questions = good(task)
    rows = {
        "vqa": "5 rows",
        "gqa": "4 rows",
        "nlvr2": "4 rows",
        "caption": f"{SINGLE.format('val2014')} with 3 rows and {SINGLE.format('test2014')} with 3 rows",
        "caption-single": "3 rows",
    }[task]
    beginning = f"{submission} is a leaderboard file of {task.removesuffix('-single')}: {rows}, "
    assert validate(task, submission, questions) == 0
    assert capsys.readouterr().out == f"{beginning}exactly the ids of {questions}\n"
    assert validate(task, submission) == 0
    assert capsys.readouterr().out == (
        f"{beginning}each id once. Not checked: whether they are all ids of the split, and of no other "
        "(give --questions)\n"
    )


def test_labels_may_be_in_lower_case(good: Callable[[str], tuple[Path, Path]]) -> None:
    submission, questions = good("nlvr2")
    submission.write_text(submission.read_text().lower())
    assert validate("nlvr2", submission, questions) == 0


def test_all_faults_are_named_at_once(
    good: Callable[[str], tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    submission, questions = good("vqa")
    for change in (ids_as_text, special_tokens, a_row_twice, a_row_missing, a_count_as_a_number, a_row_too_many):
        change(submission)
    assert validate("vqa", submission, questions) == 3
    message = capsys.readouterr().err
    for named in ('"question_id" is text, not', '"answer" is a whole number, not text', "have: 1 (5)"):
        assert named in message


def test_a_missing_file_is_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate("vqa", tmp_path / "none.json") == 3
    assert f"No file {tmp_path / 'none.json'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--submission", "f"], "the following arguments are required: --task. See: python -m dept_vl.validate --help"),
        (["--task", "vqa"], "the following arguments are required: --submission"),
        (["--task", "vqq", "--submission", "f"], "vqq.*vqa"),
        (["--task", "vqa", "--submission", "f", "--nonsense"], "nonsense"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        main(arguments)


def test_help_shows_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert "python -m dept_vl.validate --task vqa --submission results.json" in text
    assert "exit codes: 0 done" in text


def test_checking_does_not_load_torch(good: Callable[[str], tuple[Path, Path]]) -> None:
    submission, questions = good("vqa")
    script = (
        "import sys\nfrom dept_vl.command_line import run\nfrom dept_vl.validate import main\n"
        "code = run(main, sys.argv[1:])\nsys.exit(code or 10 * ('torch' in sys.modules))"
    )
    arguments = ["--task", "vqa", "--submission", str(submission), "--questions", str(questions)]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{submission} is a leaderboard file of vqa: 5 rows")
