from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from dept_vl.formats.reading_files import Question, read_questions
from feature_extraction.errors import InputDataError

HEADER: object = {"header": {"dataset": "HotpotQA", "split": "dev"}}


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_squad(path: Path, *asked: object) -> Path:
    """A file with one paragraph."""
    article = {"title": "Towns", "paragraphs": [{"context": "Łódź is here.", "qas": list(asked)}]}
    path.write_text(json.dumps({"data": [article], "version": "1.1"}))
    return path


def test_squad_has_articles_of_paragraphs_with_questions(tmp_path: Path) -> None:
    answers = [{"answer_start": 0, "text": "Łódź"}, {"answer_start": 0, "text": "Łódź"}]
    path = write_squad(tmp_path / "dev.json", {"id": "a1", "question": "What?", "answers": answers})
    assert read_questions(path) == [Question("a1", "What?", "Łódź is here.", ("Łódź", "Łódź"), (0, 0), "Towns")]


def test_mrqa_has_lines_of_contexts_behind_a_header(tmp_path: Path) -> None:
    asked = [{"qid": f"q{number}", "question": "Who?", "answers": ["Ann", "ann"]} for number in range(2)]
    path = write_lines(tmp_path / "dev.jsonl", HEADER, {"id": "", "context": "Ann.", "qas": asked})
    expected = [Question(f"q{number}", "Who?", "Ann.", ("Ann", "ann"), (), "Ann.") for number in range(2)]
    assert read_questions(path) == expected
    packed = tmp_path / "dev.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_questions(packed) == expected


def test_gold_is_the_answers_and_not_what_was_detected_in_the_context(tmp_path: Path) -> None:
    asked = {"qid": "q", "question": "?", "answers": ["Ann Lee"], "detected_answers": [{"text": "Ann"}]}
    path = write_lines(tmp_path / "dev.jsonl", {"context": "Ann.", "qas": [asked]})
    assert read_questions(path)[0].answers == ("Ann Lee",)


def test_the_hub_has_a_row_for_each_question(tmp_path: Path) -> None:
    squad = {"id": "a", "title": "Towns", "context": "c", "question": "q"}
    texts = {"text": ["x", "y"], "answer_start": [3, 5]}
    mrqa = {"key": "b", "context": "c", "question": "q", "answers": ["x"], "labels": [{"start": [0], "end": [1]}]}
    path = write_lines(tmp_path / "validation.rows.jsonl", {**squad, "answers": texts}, mrqa)
    assert read_questions(path) == [
        Question("a", "q", "c", ("x", "y"), (3, 5), "Towns"),
        Question("b", "q", "c", ("x",), (), "c"),
    ]


def test_answers_may_be_withheld_of_all_questions_but_not_of_some(tmp_path: Path) -> None:
    asked = [{"id": "a", "question": "?"}, {"id": "b", "question": "?", "answers": []}]
    assert [one.answers for one in read_questions(write_squad(tmp_path / "test.json", *asked))] == [(), ()]
    answered = {"id": "c", "question": "?", "answers": [{"text": "x", "answer_start": 0}]}
    message = "questions without an answer, which this data set does not ask (SQuAD 2.0 does): 2 (a, b)"
    with pytest.raises(InputDataError, match=re.escape(message)):
        read_questions(write_squad(tmp_path / "test.json", *asked, answered))


def test_all_wrong_questions_are_named_at_once(tmp_path: Path) -> None:
    asked = [
        {"id": 1, "question": "?"},
        {"id": "b"},
        {"id": "c", "question": "?", "answers": [{"text": "x"}]},
        {"id": "d", "question": "?", "answers": "x"},
        7,
    ]
    message = (
        'test.json: "id" is a whole number, not text: 1 (article 0); no "question": 1 (article 0); '
        'no "answer_start": 1 (article 0, c); "answers" is not a list of texts: 1 (article 0, d); '
        "a whole number instead of an object with id, question, context: 1 (article 0)"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        read_questions(write_squad(tmp_path / "test.json", *asked))


def test_wrong_lines_of_mrqa_are_named(tmp_path: Path) -> None:
    rows: tuple[object, ...] = (
        HEADER,
        {"context": "c", "qas": [{"qid": "q", "question": "?", "answers": [None]}]},
        {"qas": []},
        {"a": 1},
    )
    message = (
        'dev.jsonl: "answers" is not a list of texts: 1 (line 2, q); no "context": 2 (line 3, line 4); '
        'no "key": 1 (line 4); no "question": 1 (line 4)'
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        read_questions(write_lines(tmp_path / "dev.jsonl", *rows))


@pytest.mark.parametrize("content", [[], {"questions": []}, {"data": {}}])
def test_other_json_is_not_squad(content: object, tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text(json.dumps(content))
    message = 'dev.json is not in the form of SQuAD v1.1: an object with a list of articles as "data"'
    with pytest.raises(InputDataError, match=re.escape(message)):
        read_questions(tmp_path / "dev.json")


def test_articles_and_paragraphs_are_objects(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text(json.dumps({"data": [{"title": "x"}, {"paragraphs": [{"context": "c"}]}]}))
    with pytest.raises(InputDataError, match=r'no "paragraphs": 1 \(article 0\); no "qas": 1 \(article 1\)'):
        read_questions(tmp_path / "dev.json")


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    for path in (write_squad(tmp_path / "dev.json"), write_lines(tmp_path / "dev.jsonl", HEADER)):
        with pytest.raises(InputDataError, match=re.escape(f"{path} has no questions. Download or write it again")):
            read_questions(path)
