"""The official files of VQAv2: questions and annotations, and the examples that they make together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

from dept_vl.formats.files import Faults, check_types, collector_paused, read_json, refuse
from dept_vl.metrics.vqa_accuracy import processing
from dept_vl.types import Example, Target
from feature_extraction.errors import InputDataError

ANSWER_TYPES = {"yes/no": "yes_no", "number": "number", "other": "other"}  # in the files: in our metrics
SOFT_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)  # of an answer that 0, 1, 2, 3, or 4 and more annotators gave, as in VL-T5

Row = dict[str, Any]


class Questions(NamedTuple):
    """The questions of an official file by id, and what else it says."""

    rows: dict[int, Row]
    subtype: str  # the split's official name
    image_prefix: str  # what the ids of the images begin with


class Annotation(NamedTuple):
    """What is kept of an annotation: a file's own records take four times the memory."""

    image_id: int
    references: tuple[str, ...]
    slices: Mapping[str, str]


@collector_paused()
def read_official(annotations_path: Path | None, questions_path: Path | None) -> list[Example]:
    """The examples of two official files; without the questions, they have no text and no image.

    Raises:
        InputDataError: a file is missing, or questions and annotations do not fit; all faults are named together.
    """
    annotations = read_annotations(annotations_path) if annotations_path else {}
    questions, _, image_prefix = read_questions(questions_path) if questions_path else Questions({}, "", "")
    if annotations_path and questions_path:
        faults: Faults = defaultdict(list)
        faults["questions without an annotation"] = [one for one in questions if one not in annotations]
        faults["annotations without a question"] = [one for one in annotations if one not in questions]
        faults["questions whose image_id is not their annotation's"] = [
            one for one in questions if one in annotations and questions[one]["image_id"] != annotations[one].image_id
        ]
        refuse(faults, questions_path, annotations_path)
    return [_example(one, questions.get(one), image_prefix, annotations.get(one)) for one in annotations or questions]


def _example(question_id: int, question: Row | None, image_prefix: str, annotation: Annotation | None) -> Example:
    references = annotation.references if annotation else ()
    counts = Counter(map(processing(references), references))
    return Example(
        example_id=str(question_id),
        text=question["question"] if question else "",
        image_ids=(f"{image_prefix}{question['image_id']:012d}",) if question else (),
        references=references,
        targets=tuple([_target(*one) for one in counts.items()]),
        slices=annotation.slices if annotation else {},
    )


@cache  # most are the same few
def _target(answer: str, annotators: int) -> Target:
    return Target(answer, SOFT_SCORES[min(annotators, 4)])


def read_questions(path: Path) -> Questions:
    """An official question file.

    Raises:
        InputDataError: there is no such file, or it is in another layout; all faults are named together.
    """
    content = _content(path, "questions")
    faults: Faults = defaultdict(list)
    check_types(content, {"data_type": str, "data_subtype": str}, "the file", faults)
    rows = _by_id(content["questions"], {"question_id": int, "image_id": int, "question": str}, faults)
    refuse(faults, path)
    data_type, subtype = content["data_type"], content["data_subtype"]
    if data_type == "mscoco":  # its test-dev questions are on images of the test set
        return Questions(rows, subtype, f"COCO_{subtype.replace('test-dev', 'test')}_")
    return Questions(rows, subtype, f"{data_type}_{subtype}_")


def read_annotations(path: Path) -> dict[int, Annotation]:
    """An official annotation file, by question id.

    Raises:
        InputDataError: there is no such file, or it is in another layout; all faults are named together.
    """
    content = _content(path, "annotations")
    faults: Faults = defaultdict(list)
    wanted = {"question_id": int, "image_id": int, "question_type": str, "answer_type": str, "answers": list}
    rows = _by_id(content["annotations"], wanted, faults)
    found = {}
    for question_id, row in rows.items():
        references = _references(row["answers"])
        if not references:
            faults['"answers" is not a list of {"answer": text, ...}'].append(question_id)
        elif _has_equal(row["answers"]):
            # The official script would put both aside at once: a score that no one means.
            faults["two answers are equal in every field (each has its own answer_id officially)"].append(question_id)
        if row["answer_type"] not in ANSWER_TYPES:
            faults[f'"answer_type" is none of {", ".join(ANSWER_TYPES)}'].append(question_id)
        found[question_id] = Annotation(row["image_id"], references, _slices(row["question_type"], row["answer_type"]))
    refuse(faults, path)
    return found


def _references(answers: list[Any]) -> tuple[str, ...]:
    """The answers' texts; none if one is missing."""
    try:
        return tuple([intern(one["answer"]) for one in answers])
    except (KeyError, TypeError):
        return ()


def _has_equal(answers: list[Row]) -> bool:
    """Whether two records are equal; where a file leaves out all answer_ids, an answer's place tells it from others."""
    ids = {str(one.get("answer_id", place)) for place, one in enumerate(answers)}
    return len(ids) < len(answers) and any(
        "answer_id" in one and one in answers[:place] for place, one in enumerate(answers)
    )


@cache  # one record for each pair of types, not for each question
def _slices(question_type: str, answer_type: str) -> Mapping[str, str]:
    return {"question_type": question_type, "answer_type": answer_type}


def _content(path: Path, key: str) -> Row:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get(key), list) or not content[key]:
        raise InputDataError(
            f'{path} has no list of {key}. An official file is {{"data_type": ..., "{key}": [...], ...}}. '
            "Check that it is whole, and that questions and annotations are not exchanged"
        )
    return content


def _by_id(rows: list[Any], wanted: Mapping[str, type], faults: Faults) -> dict[int, Row]:
    """The well-formed rows by question id; what is wrong with the others is added to ``faults``."""
    found: dict[int, Row] = {}
    for index, row in enumerate(rows):
        if check_types(row, wanted, f"row {index}", faults):
            if row["question_id"] in found:
                faults["duplicate question_id"].append(row["question_id"])
            found[row["question_id"]] = row
    return found
