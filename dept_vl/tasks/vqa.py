"""Open-ended questions about one image, in the official file formats of VQAv2."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from sys import intern
from typing import Any

from dept_vl.config import TaskSettings
from dept_vl.metrics.bootstrap import bootstrap_interval
from dept_vl.metrics.vqa_accuracy import percentage, processing, vqa_accuracy
from dept_vl.tasks.files import KINDS, Faults, check_types, collector_paused, read_json, refuse
from dept_vl.tasks.task import Task, split_name
from dept_vl.types import Example, Prediction, Scores, Target
from feature_extraction.durable import write_durably
from feature_extraction.errors import InputDataError

ANSWER_TYPES = {"yes/no": "yes_no", "number": "number", "other": "other"}  # in the files: in our metrics
SOFT_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)  # of an answer that 0, 1, 2, 3, or 4 and more annotators gave, as in VL-T5

Row = dict[str, Any]


def build(settings: TaskSettings) -> Task:
    """The task for data whose file names carry the settings' split names."""
    return Task(
        name=settings.name,
        read=partial(read, splits=settings.splits),
        read_files=read_files,
        parse=parse,
        score=score,
        submit=submit,
        read_submission=read_submission,
        submission_name=partial(submission_name, splits=settings.splits),
    )


def read(folder: Path, split: str, *, splits: Mapping[str, str]) -> list[Example]:
    """The questions of one split, with their human answers unless it is a test split without published ones.

    Raises:
        InputDataError: a file is missing, or questions and annotations do not fit; all faults are named together.
    """
    subtype = split_name(splits, split)
    questions = _only_file(folder, f"*OpenEnded_*_{subtype}_questions.json")
    withheld = split.startswith("test") and not list(folder.glob(f"*_{subtype}_annotations.json"))
    annotations = None if withheld else _only_file(folder, f"*_{subtype}_annotations.json")
    return _examples(annotations, questions)


def read_files(annotations: Path, questions: Path | None) -> list[Example]:
    """The annotated questions of two files; without the questions file, examples have no text and no image.

    Raises:
        InputDataError: a file is missing, or questions and annotations do not fit; all faults are named together.
    """
    return _examples(annotations, questions)


def parse(text: str) -> str:
    """The answer is the generated text itself; the score's own processing does the rest."""
    return text.strip()


def score(predictions: Sequence[Prediction], examples: Sequence[Example]) -> Scores:
    """Accuracies as the official script prints them, with a 95 % confidence interval of the overall one.

    They are None, but for the count, where the human answers are withheld.
    """
    answers = dict(predictions)
    per_example: dict[str, float] = {}
    groups: dict[str, list[float]] = {name: [] for name in ("accuracy", *ANSWER_TYPES.values())}
    for example in examples:
        if example.references:
            accuracy = vqa_accuracy(answers[example.example_id], example.references)
            per_example[example.example_id] = accuracy
            slices = example.slices
            for name in ("accuracy", ANSWER_TYPES[slices["answer_type"]], f"per_type/{slices['question_type']}"):
                groups.setdefault(name, []).append(accuracy)
    metrics: dict[str, float | None] = {name: percentage(scores) for name, scores in groups.items()}
    overall = groups["accuracy"]
    low, high = (round(100 * end, 2) for end in bootstrap_interval(overall)) if overall else (None, None)
    return Scores(metrics={**metrics, "n": len(examples), "ci_low": low, "ci_high": high}, per_example=per_example)


def submit(predictions: Sequence[Prediction], path: Path) -> None:
    """Write the results file that the server and the official script take: one row for each question."""
    rows = [json.dumps({"question_id": int(one.example_id), "answer": one.answer}) for one in predictions]
    write_durably(path, ("[" + ",\n ".join(rows) + "]\n").encode())


def read_submission(path: Path) -> list[Prediction]:
    """The answers of a results file, in its order; keys beyond question_id and answer are ignored, as officially.

    Raises:
        InputDataError: it is no list of {"question_id": whole number, "answer": text}; all faults are named together.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputDataError(
            f"{path} holds {KINDS[type(rows)]}, not a list. A results file is "
            '[{"question_id": 1, "answer": "red"}, ...]'
        )
    faults: Faults = defaultdict(list)
    for index, row in enumerate(rows):
        check_types(row, {"question_id": int, "answer": str}, f"row {index}", faults)
    refuse(faults, path)
    return [Prediction(str(row["question_id"]), row["answer"]) for row in rows]


def submission_name(split: str, *, splits: Mapping[str, str]) -> str:
    """The results file's official name, as in v2_OpenEnded_mscoco_test2015_dept_results.json."""
    subtype = split_name(splits, split)
    data_type = "mscoco_" if subtype[-4:].isdigit() else ""  # COCO's splits end in their year
    return f"v2_OpenEnded_{data_type}{subtype}_dept_results.json"


def majority_answer(examples: Sequence[Example]) -> str:
    """The most frequent human answer; of equally frequent ones the first in the alphabet."""
    counts = Counter(answer for example in examples for answer in example.references)
    return min(counts, key=lambda answer: (-counts[answer], answer))


@collector_paused()
def _examples(annotations_path: Path | None, questions_path: Path | None) -> list[Example]:
    annotations = _annotations(annotations_path) if annotations_path else {}
    questions, image_prefix = _questions(questions_path) if questions_path else ({}, "")
    if annotations_path and questions_path:
        faults: Faults = defaultdict(list)
        faults["questions without an annotation"] = [one for one in questions if one not in annotations]
        faults["annotations without a question"] = [one for one in annotations if one not in questions]
        faults["questions whose image_id is not their annotation's"] = [
            one
            for one in questions
            if one in annotations and questions[one]["image_id"] != annotations[one]["image_id"]
        ]
        refuse(faults, questions_path, annotations_path)
    return [_example(one, questions.get(one), image_prefix, annotations.get(one)) for one in annotations or questions]


def _example(question_id: int, question: Row | None, image_prefix: str, annotation: Row | None) -> Example:
    references = tuple(intern(one["answer"]) for one in annotation["answers"]) if annotation else ()
    counts = Counter(map(processing(references), references))
    return Example(
        example_id=str(question_id),
        text=question["question"] if question else "",
        image_ids=(f"{image_prefix}{question['image_id']:012d}",) if question else (),
        references=references,
        targets=tuple(Target(answer, SOFT_SCORES[min(count, 4)]) for answer, count in counts.items()),
        slices=_slices(annotation["question_type"], annotation["answer_type"]) if annotation else {},
    )


@lru_cache  # one record for each pair of types, not for each question
def _slices(question_type: str, answer_type: str) -> Mapping[str, str]:
    return {"question_type": question_type, "answer_type": answer_type}


def _questions(path: Path) -> tuple[dict[int, Row], str]:
    """The questions by id, and what the ids of their images begin with."""
    content = _content(path, "questions")
    faults: Faults = defaultdict(list)
    check_types(content, {"data_type": str, "data_subtype": str}, "the file", faults)
    rows = _by_id(content["questions"], {"question_id": int, "image_id": int, "question": str}, faults)
    refuse(faults, path)
    data_type, subtype = content["data_type"], content["data_subtype"]
    if data_type == "mscoco":  # its test-dev questions are on images of the test set
        return rows, f"COCO_{subtype.replace('test-dev', 'test')}_"
    return rows, f"{data_type}_{subtype}_"


def _annotations(path: Path) -> dict[int, Row]:
    content = _content(path, "annotations")
    faults: Faults = defaultdict(list)
    wanted = {"question_id": int, "image_id": int, "question_type": str, "answer_type": str, "answers": list}
    rows = _by_id(content["annotations"], wanted, faults)
    for question_id, row in rows.items():
        answers = row["answers"]
        if not answers or not all(isinstance(one, dict) and isinstance(one.get("answer"), str) for one in answers):
            faults['"answers" is not a list of {"answer": text, ...}'].append(question_id)
        elif any("answer_id" in one and one in answers[:place] for place, one in enumerate(answers)):
            # The official script would put both aside at once: a score that no one means. Where a file leaves out
            # all answer_ids, an answer's place in the list tells it from the others.
            faults["two answers are equal in every field (each has its own answer_id officially)"].append(question_id)
        if row["answer_type"] not in ANSWER_TYPES:
            faults[f'"answer_type" is none of {", ".join(ANSWER_TYPES)}'].append(question_id)
    refuse(faults, path)
    return rows


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


def _only_file(folder: Path, pattern: str) -> Path:
    if not folder.is_dir():
        raise InputDataError(f"No folder {folder}. Give the folder with the official question and annotation files")
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = [path.name for path in found or sorted(folder.glob("*.json"))]
        raise InputDataError(
            f"{folder} has {len(found)} files {pattern}, but exactly one is needed. JSON files there: "
            f"{', '.join(names) or 'none'}. Put the official file there, or set task.splits to the name in yours"
        )
    return found[0]
