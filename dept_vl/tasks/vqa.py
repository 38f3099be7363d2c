"""Open-ended questions about one image, in the official file formats of VQAv2."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from sys import intern
from typing import Any

from dept_vl.config import TaskSettings
from dept_vl.metrics.bootstrap import bootstrap_interval
from dept_vl.metrics.vqa_accuracy import percentage, processing, vqa_accuracy
from dept_vl.tasks.task import Task, count_and_first, read_json, split_name
from dept_vl.types import Example, Prediction, Scores, Target
from feature_extraction.durable import write_durably
from feature_extraction.errors import InputDataError

ANSWER_TYPES = {"yes/no": "yes_no", "number": "number", "other": "other"}  # in the files: in our metrics
SOFT_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)  # of an answer that 0, 1, 2, 3, or 4 and more annotators gave, as in VL-T5

Row = dict[str, Any]
Faults = defaultdict[str, list[object]]  # what is wrong: the question ids where it is


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
    per_example = {
        example.example_id: vqa_accuracy(answers[example.example_id], example.references)
        for example in examples
        if example.references
    }
    by_answer_type: defaultdict[str, list[float]] = defaultdict(list)
    by_question_type: defaultdict[str, list[float]] = defaultdict(list)
    for example in examples:
        if example.references:
            by_answer_type[example.slices["answer_type"]].append(per_example[example.example_id])
            by_question_type[example.slices["question_type"]].append(per_example[example.example_id])
    overall = list(per_example.values())
    low, high = bootstrap_interval(overall) if overall else (None, None)
    metrics: dict[str, float | None] = {"accuracy": percentage(overall)}
    metrics |= {key: percentage(by_answer_type[name]) for name, key in ANSWER_TYPES.items()}
    metrics |= {f"per_type/{name}": percentage(scores) for name, scores in sorted(by_question_type.items())}
    metrics |= {"n": len(examples), "ci_low": low and round(100 * low, 2), "ci_high": high and round(100 * high, 2)}
    return Scores(metrics=metrics, per_example=per_example)


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
            f'{path} holds {_kind(rows)}, not a list. A results file is [{{"question_id": 1, "answer": "red"}}, ...]'
        )
    faults: Faults = defaultdict(list)
    for index, row in enumerate(rows):
        _check_types(row, {"question_id": int, "answer": str}, index, faults)
    _raise(faults, path)
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


def _examples(annotations_path: Path | None, questions_path: Path | None) -> list[Example]:
    annotations = _annotations(annotations_path) if annotations_path else None
    questions, image_prefix = _questions(questions_path) if questions_path else ({}, "")
    faults: Faults = defaultdict(list)
    if annotations is not None and questions_path:
        faults["questions without an annotation"] = [one for one in questions if one not in annotations]
        faults["annotations without a question"] = [one for one in annotations if one not in questions]
        both = annotations.keys() & questions.keys()
        faults["questions whose image_id is not their annotation's"] = [
            one for one in questions if one in both and questions[one]["image_id"] != annotations[one]["image_id"]
        ]
    _raise(faults, questions_path, annotations_path)

    examples = []
    slices: dict[tuple[str, str], Mapping[str, str]] = {}  # shared, since there are few
    for question_id in annotations if annotations is not None else questions:
        question = questions.get(question_id)
        example = {
            "example_id": str(question_id),
            "text": question["question"] if question else "",
            "image_ids": (f"{image_prefix}{question['image_id']:012d}",) if question else (),
        }
        if annotations is not None:
            row = annotations[question_id]
            types = (row["question_type"], row["answer_type"])
            references = tuple(intern(answer["answer"]) for answer in row["answers"])
            example |= {
                "references": references,
                "targets": _targets(references),
                "slices": slices.setdefault(types, dict(zip(("question_type", "answer_type"), types, strict=True))),
            }
        examples.append(Example(**example))
    return examples


def _targets(references: tuple[str, ...]) -> tuple[Target, ...]:
    counts = Counter(map(processing(references), references))
    return tuple(Target(answer, SOFT_SCORES[min(count, 4)]) for answer, count in counts.items())


def _questions(path: Path) -> tuple[dict[int, Row], str]:
    """The questions by id, and what the ids of their images begin with."""
    content = _content(path, "questions")
    faults: Faults = defaultdict(list)
    data_type, subtype = content.get("data_type"), content.get("data_subtype")
    if not isinstance(data_type, str) or not isinstance(subtype, str):
        faults['missing or wrong, in the head of the file: "data_type" or "data_subtype"'] = [f"{data_type}, {subtype}"]
    wanted = {"question_id": int, "image_id": int, "question": str}
    rows = _by_id(content["questions"], wanted, faults)
    _raise(faults, path)
    if data_type == "mscoco":  # test-dev questions are on images of the test set
        return rows, f"COCO_{str(subtype).replace('test-dev', 'test')}_"
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
        elif any(one in answers[:place] for place, one in enumerate(answers)):
            # The official script would put both aside, and give a score that no one means.
            faults["two answers are equal in every field; give each its own answer_id"].append(question_id)
        if row["answer_type"] not in ANSWER_TYPES:
            faults[f'"answer_type" is none of {", ".join(ANSWER_TYPES)}'].append(question_id)
    _raise(faults, path)
    return rows


def _content(path: Path, key: str) -> Row:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise InputDataError(
            f'{path} has no list of {key}. An official file is {{"data_type": ..., "{key}": [...], ...}}; '
            "check that questions and annotations are not exchanged"
        )
    return content


def _by_id(rows: list[Any], wanted: Mapping[str, type], faults: Faults) -> dict[int, Row]:
    """The well-formed rows by question id; what is wrong with the others is added to ``faults``."""
    found: dict[int, Row] = {}
    for index, row in enumerate(rows):
        if _check_types(row, wanted, index, faults):
            if row["question_id"] in found:
                faults["duplicate question_id"].append(row["question_id"])
            found[row["question_id"]] = row
    return found


def _check_types(row: Any, wanted: Mapping[str, type], index: int, faults: Faults) -> bool:  # noqa: ANN401 - from JSON
    """Whether the values have the wanted types exactly: true is no number, and "1" no question id."""
    wrong = list(_wrong_types(row, wanted))
    for fault in wrong:
        faults[fault].append(f"row {index}")
    return not wrong


def _wrong_types(row: Any, wanted: Mapping[str, type]) -> Iterator[str]:  # noqa: ANN401 - from JSON
    if not isinstance(row, dict):
        yield f"{_kind(row)} instead of an object with {', '.join(wanted)}"
        return
    for key, kind in wanted.items():
        if key not in row:
            yield f'no "{key}"'
        elif type(row[key]) is not kind:
            yield f'"{key}" is {_kind(row[key])}, not {_KINDS[kind]}'


_KINDS = {
    int: "a whole number",
    str: "text",
    list: "a list",
    dict: "an object",
    float: "a number",
    bool: "true or false",
}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "null")


def _raise(faults: Faults, *paths: Path | None) -> None:
    found = [f"{fault}: {count_and_first(ids)}" for fault, ids in faults.items() if ids]
    if found:
        raise InputDataError(f"{' and '.join(str(path) for path in paths if path)}: " + "; ".join(found))


def _only_file(folder: Path, pattern: str) -> Path:
    if not folder.is_dir():
        raise InputDataError(f"No folder {folder}. Give the folder with the official question and annotation files")
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        similar = found or sorted(folder.glob("*.json"))
        raise InputDataError(
            f"{folder} has {len(found)} files {pattern}, and exactly one is needed. "
            f"There {'are' if similar else 'is'} {', '.join(path.name for path in similar) or 'no JSON file'}. "
            "Put the official file there, or set task.splits to the name in yours"
        )
    return found[0]
