"""Rows of SuperGLUE's official files, brought to the form of the hub's (aps/super_glue): one for each label or answer.

Each function takes the row of a line. A row that has the hub's form already is given as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from dept_vl.formats.files import Faults, check_types
from dept_vl.formats.rows import Row

IDS = ("paragraph", "question", "answer")  # of MultiRC's answers
INDICES = re.compile(r"\d+(-\d+)*")


def as_it_is(row: Row, line: int, faults: Faults) -> Iterator[Row]:
    """The row itself."""
    yield row


def target_spans(row: Row, line: int, faults: Faults) -> Iterator[Row]:
    """A row of WSC with its two spans beside the text."""
    target = row.get("target")
    yield {**row, **target} if isinstance(target, dict) else row


def passage_answers(row: Row, line: int, faults: Faults) -> Iterator[Row]:
    """The answers to all questions on a passage of MultiRC."""
    passage = row.get("passage")
    if not isinstance(passage, dict):
        yield row
    elif check_types(passage, {"questions": list}, f"line {line}, passage", faults):
        for question in passage["questions"]:
            if check_types(question, {"answers": list}, f"line {line}, question", faults):
                for answer in question["answers"]:
                    if check_types(answer, {"idx": int}, f"line {line}, answer", faults):
                        indices = [one.get("idx") for one in (row, question, answer)]
                        yield {
                            "paragraph": passage.get("text"),
                            "question": question.get("question"),
                            "answer": answer.get("text"),
                            "idx": dict(zip(IDS, indices, strict=True)),
                            "label": answer.get("label"),
                        }


def passage_queries(row: Row, line: int, faults: Faults) -> Iterator[Row]:
    """The queries on a passage of ReCoRD, with the passage's entities and their accepted answers, each once."""
    if "qas" not in row:
        yield row
        return
    passage: Any = row.get("passage")
    right = check_types(row, {"qas": list}, f"line {line}", faults)
    if not (check_types(passage, {"text": str, "entities": list}, f"line {line}, passage", faults) and right):
        return
    entities = [
        passage["text"][span["start"] : span["end"] + 1]
        for span in passage["entities"]
        if check_types(span, {"start": int, "end": int}, f"line {line}, entity", faults)
    ]
    for query in row["qas"]:
        if check_types(query, {"query": str}, f"line {line}, query", faults):
            answers = query.get("answers", [])
            if not isinstance(answers, list):
                answers = [answers]
            yield {
                "passage": passage["text"],
                "query": query["query"],
                "entities": list(dict.fromkeys(entities)),
                "answers": [
                    answer["text"]
                    for answer in answers
                    if check_types(answer, {"text": str}, f"line {line}, answer", faults)
                ],
                "idx": {"query": query.get("idx")},
            }


def example_id(row: Row, line: int, faults: Faults) -> str:
    """A row's index as text; those of a MultiRC answer joined by "-": paragraph, question and answer."""
    index = row.get("idx")
    if isinstance(index, dict):
        parts = [index.get(key) for key in (IDS if IDS[0] in index else ("query",))]
        if all(type(part) is int for part in parts):
            return "-".join(map(str, parts))
    elif type(index) is int or (isinstance(index, str) and INDICES.fullmatch(index)):
        return str(index)
    faults['"idx" is no whole number, nor are all of its parts'].append(f"line {line}")
    return ""
