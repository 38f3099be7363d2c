"""Questions on texts: SQuAD v1.1's JSON, MRQA 2019's JSON lines, and the hub's rows of both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dept_vl.formats.files import Faults, check_types, collector_paused, read_json, refuse
from dept_vl.formats.rows import read_rows
from feature_extraction.errors import InputDataError

Row = Mapping[str, Any]


class Question(NamedTuple):
    """A question on a text."""

    question_id: str
    question: str
    context: str
    answers: tuple[str, ...]  # all that are accepted, as often as the file has them; none where they are withheld
    starts: tuple[int, ...]  # of SQuAD's answers, in characters of the context
    article: str  # what must not be in two parts of a data set: SQuAD's article, MRQA's context


@collector_paused()
def read_questions(path: Path) -> list[Question]:
    """The questions of a file of any of the three kinds, in its order.

    MRQA's first line is a header and no question. Its gold are the "answers", of which the "detected_answers" that its
    models are trained on are the places in the context.

    Raises:
        InputDataError: there is no such file, or it has other contents; all faults are named together.
    """
    faults: Faults = defaultdict(list)
    if path.suffix == ".json":
        questions = list(_squad(read_json(path), path, faults))
    else:
        questions = [one for line, row in read_rows(path).items() for one in _json_line(row, f"line {line}", faults)]
    unanswered = [one.question_id for one in questions if not one.answers]
    if len(unanswered) < len(questions):
        faults["questions without an answer, which this data set does not ask (SQuAD 2.0 does)"] += unanswered
    refuse(faults, path)
    if not questions:
        raise InputDataError(f"{path} has no questions. Download or write it again")
    return questions


def _squad(content: Any, path: Path, faults: Faults) -> Iterator[Question]:  # noqa: ANN401 - from JSON
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise InputDataError(f'{path} is not in the form of SQuAD v1.1: an object with a list of articles as "data"')
    for number, article in enumerate(content["data"]):
        place = f"article {number}"
        if check_types(article, {"paragraphs": list}, place, faults):
            for paragraph in article["paragraphs"]:
                if check_types(paragraph, {"context": str, "qas": list}, place, faults):
                    for asked in paragraph["qas"]:
                        row = {**asked, "context": paragraph["context"]} if isinstance(asked, dict) else asked
                        yield from _question(row, "id", article.get("title", place), place, faults)


def _json_line(row: Row, place: str, faults: Faults) -> Iterator[Question]:
    """The questions of a line of MRQA, or the hub's one."""
    if "qas" in row:
        if check_types(row, {"context": str, "qas": list}, place, faults):
            for asked in row["qas"]:
                full = {**asked, "context": row["context"]} if isinstance(asked, dict) else asked
                yield from _question(full, "qid", row["context"], place, faults)
    elif "header" not in row:
        id_key = "id" if "id" in row else "key"  # SQuAD's, MRQA's
        yield from _question(row, id_key, row.get("title", row.get("context")), place, faults)


def _question(row: Any, id_key: str, article: Any, place: str, faults: Faults) -> Iterator[Question]:  # noqa: ANN401 - from JSON
    if not check_types(row, {id_key: str, "question": str, "context": str}, place, faults):
        return
    answers: Any = row.get("answers") or []
    starts: Any = []
    if isinstance(answers, dict):  # the hub's SQuAD: a list of texts and one of places
        answers, starts = answers.get("text"), answers.get("answer_start", [])
    elif isinstance(answers, list) and answers and isinstance(answers[0], dict):
        wanted = {"text": str, "answer_start": int}
        answers = [one for one in answers if check_types(one, wanted, f"{place}, {row[id_key]}", faults)]
        answers, starts = [one["text"] for one in answers], [one["answer_start"] for one in answers]
    if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
        faults['"answers" is not a list of texts'].append(f"{place}, {row[id_key]}")
        return
    yield Question(row[id_key], row["question"], row["context"], tuple(answers), tuple(starts), str(article))
