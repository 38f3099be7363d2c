"""Questions on a scene with one short answer, in the official file formats of GQA."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from sys import intern
from typing import Any

from dept_vl.formats.files import KINDS, Faults, check_types, collector_paused, read_json, refuse, refuse_repeated
from dept_vl.formats.lxmert import read_lxmert
from dept_vl.formats.submission import JsonList, check_json_list, read_json_list, write_json_list
from dept_vl.metrics.gqa import Annotation, Choices, gqa_scores, reasoning_steps
from dept_vl.settings import TaskSettings
from dept_vl.tasks.task import OfficialFiles, Task, split_name
from dept_vl.types import Example, Prediction, Scores, Target
from feature_extraction.errors import InputDataError

QUESTION = {"question": str, "imageId": str}  # all that a question of a test split has
ANNOTATION = {"answer": str, "isBalanced": bool, "types": dict, "groups": dict, "entailed": list, "semantic": list}
ANSWERED = QUESTION | ANNOTATION
TYPES = {"structural": str, "semantic": str, "detailed": str}
QUESTIONS_FILE = '{"05451384": {"question": "Is it red?", "imageId": "2382986", ...}, ...}'
CHOICES_FILE = '{"05451384": {"valid": ["yes", "no"], "plausible": ["yes", "no"]}, ...}'
RESULTS = JsonList(
    id_key="questionId",
    id_type=str,
    answer_key="prediction",
    example='[{"questionId": "05451384", "prediction": "yes"}, ...]',
    whole="The server wants all questions of submission_all_questions.json, of test and challenge together",
    lower_case=True,
)

Row = dict[str, Any]


def build(settings: TaskSettings) -> Task:
    """The task for data whose file names begin with the settings' split names."""
    return Task(
        name=settings.name,
        read=partial(read, splits=settings.splits),
        read_files=read_files,
        parse=parse,
        score=score,
        submit=submit,
        read_submission=read_submission,
        check_submission=check_submission,
        submission_name=partial(submission_name, splits=settings.splits),
        file_options=("choices",),
        ignores_unknown=True,
    )


@collector_paused()
def read(folder: Path, split: str, *, splits: Mapping[str, str]) -> list[Example]:
    """The questions of one split, with their answers unless these are withheld.

    The split's name is one source, or several joined by "+". A source NAME is NAME_questions.json, or the folder
    NAME_questions with its parts NAME_questions_0.json and so on, or LXMERT's NAME.json. Where val_choices.json, or
    that of another tier, lies beside the tier's questions, validity and plausibility can be scored, except for splits
    to train on, which are read without.

    Raises:
        InputDataError: a file is missing, or is no such file; the faults of all files are named together.
    """
    sources = {name: _source(folder, name) for name in split_name(splits, split).split("+")}
    faults = [_missing(folder, name, split) for name, paths in sources.items() if not paths]
    choices: dict[str, dict[str, Choices]] = {}
    # Training has no use for them, and a file of them is larger than its questions.
    for tier in [] if split.startswith("train") else dict.fromkeys(map(_tier, sources)):
        for path in _parts(folder, f"{tier}_choices"):
            with _noted(faults):
                choices[tier] = choices.get(tier, {}) | _choices(path)
    examples: list[Example] = []
    for name, paths in sources.items():
        for path in paths:
            with _noted(faults):
                examples += _examples(path, choices.get(_tier(name)))
    if faults:
        raise InputDataError("; ".join(faults))
    if sum(map(len, sources.values())) > 1:
        refuse_repeated(examples, f"ids that are in more than one file of {split_name(splits, split)}", folder)
    return examples


@collector_paused()
def read_files(files: OfficialFiles) -> list[Example]:
    """The questions of an official file, or of one of LXMERT's; with their choices, if the file of these is given.

    What none of the questions has but its answer need not be there: the figures that take it are null. Without
    "isBalanced", all count.

    Raises:
        InputDataError: a file is missing, or is no such file; the faults of both files are named together.
    """
    faults: list[str] = []
    choices, examples = None, []
    if files.choices:
        with _noted(faults):
            choices = _choices(files.choices)
    with _noted(faults):
        examples = _examples(files.annotations, choices, needed=())
    if faults:
        raise InputDataError("; ".join(faults))
    return examples


def parse(text: str) -> str:
    """The text in lower case, as all official answers are: they are compared as they stand."""
    return text.strip().lower()


def score(predictions: Sequence[Prediction], examples: Sequence[Example]) -> Scores:
    """The figures of the official script, on the questions of the balanced set among the examples.

    ``n`` counts all examples, and ``per_example`` has all whose answers are not withheld.
    """
    questions = {one.example_id: one.facts for one in examples if isinstance(one.facts, Annotation)}
    scores = gqa_scores(dict(predictions), questions)
    return scores._replace(metrics={**scores.metrics, "n": len(examples)})


def submit(predictions: Sequence[Prediction], path: Path) -> None:
    """Write the results file that the server and the official script take: one row for each question."""
    write_json_list(path, RESULTS, predictions)


@collector_paused()
def read_submission(path: Path) -> list[Prediction]:
    """The answers of a results file, in its order.

    Raises:
        InputDataError: it is no list of {"questionId": text, "prediction": text}; all faults are named together.
    """
    return read_json_list(path, RESULTS)


@collector_paused()
def check_submission(path: Path, questions: Path | None) -> list[str]:
    """What the server would refuse or count as wrong; with an official questions file, also by its ids.

    Raises:
        InputDataError: there is no such file, or the questions file is none.
    """
    return check_json_list(path, RESULTS, None if questions is None else list(_questions(questions)))


def submission_name(split: str, *, splits: Mapping[str, str]) -> str:
    """The results file's name, as in gqa_submission_all_dept_results.json; there is no official one."""
    return f"gqa_{split_name(splits, split)}_dept_results.json"


def _source(folder: Path, name: str) -> list[Path]:
    """The files of one source: the official ones, or else LXMERT's."""
    return _parts(folder, f"{name}_questions") or [path for path in (folder / f"{name}.json",) if path.is_file()]


def _parts(folder: Path, name: str) -> list[Path]:
    """The file of this name, or the parts that it comes in if it is large, or nothing."""
    whole = folder / f"{name}.json"
    return [whole] if whole.is_file() else sorted((folder / name).glob(f"{name}_*.json"))


def _tier(source: str) -> str:
    return source.partition("_")[0]


def _missing(folder: Path, name: str, split: str) -> str:
    there = ", ".join(sorted(path.name for path in folder.glob("*.json")))
    return (
        f"{folder} has no {name}_questions.json, no folder {name}_questions of its parts, and no {name}.json of "
        f"LXMERT. JSON files there: {there or 'none'}. Put the official file there, or set task.splits.{split} to the "
        "name in yours"
    )


@contextmanager
def _noted(faults: list[str]) -> Iterator[None]:
    """What is wrong with a file is said with the faults of the others."""
    try:
        yield
    except InputDataError as error:
        faults.append(str(error))


def _examples(
    path: Path, choices: Mapping[str, Choices] | None, *, needed: Iterable[str] = tuple(QUESTION)
) -> list[Example]:
    if _is_lxmert(path):
        return _lxmert_examples(path)
    questions = _questions(path)
    rows = [row for row in questions.values() if isinstance(row, dict)]
    given = {key for row in rows for key in row}
    faults: Faults = defaultdict(list)
    if "answer" in given:
        wanted = {key: kind for key, kind in ANSWERED.items() if key in given or key in needed}
        types = {key for row in rows if isinstance(row.get("types"), dict) for key in row["types"]}
        wanted_types = {key: kind for key, kind in TYPES.items() if key in types}
        examples = [
            _answered_example(question_id, row, choices)
            for question_id, row in questions.items()
            if _check_answered(question_id, row, wanted, wanted_types, choices, faults)
        ]
    else:
        examples = [
            Example(question_id, row["question"], _image(row["imageId"]))
            for question_id, row in questions.items()
            if check_types(row, QUESTION, question_id, faults)
        ]
    refuse(faults, path)
    return examples


def _check_answered(
    question_id: str,
    row: Any,  # noqa: ANN401 - from JSON
    wanted: Mapping[str, type],
    wanted_types: Mapping[str, type],
    choices: Mapping[str, Choices] | None,
    faults: Faults,
) -> bool:
    """Whether a question with an answer is as it should be, and has what others of its file have."""
    if not check_types(row, wanted, question_id, faults):
        return False
    if "types" in wanted and not check_types(row["types"], wanted_types, f"types of {question_id}", faults):
        return False
    wrong = []
    if not isinstance(row.get("groups", {"global": None}).get("global", 0), str | None):
        wrong.append('"groups" has no "global" that is text or null')
    if not all(isinstance(one, str) for one in row.get("entailed", [])):
        wrong.append('"entailed" is not a list of ids as texts')
    if not all(isinstance(step, str) for step in row.get("semantic", [])):
        wrong.append('"semantic" is not a list of {"operation": ..., "argument": ..., ...}')
    if row.get("isBalanced", True) and choices is not None and question_id not in choices:
        wrong.append("balanced questions without choices in the file of these")
    for fault in wrong:
        faults[fault].append(question_id)
    return not wrong


def _answered_example(question_id: str, row: Row, choices: Mapping[str, Choices] | None) -> Example:
    text, answer, types = row.get("question"), intern(row["answer"]), row.get("types", {})
    structural, semantic = types.get("structural"), types.get("semantic") or None  # own data has no semantic ones
    return Example(
        example_id=question_id,
        text=text or "",
        image_ids=_image(row["imageId"]) if "imageId" in row else (),
        references=_reference(answer),
        targets=_target(answer),
        slices=_slices(structural, semantic),
        facts=Annotation(
            answer=answer,
            words=None if text is None else len(text.split()),
            steps=reasoning_steps(row["semantic"]) if "semantic" in row else None,
            structural=structural,
            semantic=semantic,
            detailed=types.get("detailed"),
            group=row["groups"]["global"] if "groups" in row else None,
            entailed=tuple(row["entailed"]) if "entailed" in row else None,
            choices=choices[question_id] if choices is not None else None,
        )
        if row.get("isBalanced", True)
        else _unbalanced(answer),
    )


# A full set has 14 million questions on 85 thousand images, with 2 thousand answers: what repeats is held once.


@cache
def _image(image_id: str) -> tuple[str]:
    return (image_id,)


@cache
def _reference(answer: str) -> tuple[str]:
    return (answer,)


@cache
def _target(answer: str) -> tuple[Target]:
    return (Target(answer, 1.0),)


@cache
def _unbalanced(answer: str) -> Annotation:
    return Annotation(answer, balanced=False)


@cache
def _slices(structural: str | None, semantic: str | None) -> Mapping[str, str]:
    return {name: kind for name, kind in (("structural", structural), ("semantic", semantic)) if kind}


def _is_lxmert(path: Path) -> bool:
    """Whether a file is a list, as LXMERT's are."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip()[:1] == b"["


def _lxmert_examples(path: Path) -> list[Example]:
    examples = read_lxmert(path, id_type=str)
    if not any(example.targets for example in examples):
        return examples
    faults: Faults = defaultdict(list)
    faults['"label" is not {answer: 1.0}'] = [one.example_id for one in examples if len(one.targets) != 1]
    refuse(faults, path)
    return [
        replace(
            example,
            references=_reference(example.targets[0].text),
            facts=Annotation(example.targets[0].text, words=len(example.text.split())),
        )
        for example in examples
    ]


def _questions(path: Path) -> Row:
    """The questions by id, as they stand but for what is never asked of them."""
    content = read_json(path, object_hook=_needed)
    if not isinstance(content, dict) or not content:
        kind = "no question" if content == {} else KINDS[type(content)]
        raise InputDataError(f"{path} holds {kind}. A questions file is {QUESTIONS_FILE}. Check that it is whole")
    return content


def _needed(row: Row) -> Any:  # noqa: ANN401 - also a text
    """What is needed of an object while its file is still being parsed: a full file is too large to be held whole."""
    if "operation" in row and "argument" in row:
        return f"{row['operation']}: {row['argument']}"
    return {key: row[key] for key in ANSWERED if key in row} if "imageId" in row else row


def _choices(path: Path) -> dict[str, Choices]:
    """The choices by question id. A list of answers is held once, however many questions have it.

    Raises:
        InputDataError: there is no such file, or it is none of choices.
    """
    held: dict[tuple[str, ...], tuple[str, ...]] = {}

    def compact(row: Row) -> Any:  # noqa: ANN401 - also a record
        lists = [row.get(kind) for kind in Choices._fields]
        try:
            answers = [tuple(map(intern, one)) for one in lists if isinstance(one, list)]
        except TypeError:  # not all are texts, which is said below
            return row
        return Choices(*(held.setdefault(one, one) for one in answers)) if len(answers) == len(lists) else row

    content = read_json(path, object_hook=compact)
    if not isinstance(content, dict) or not content:
        kind = "no choices" if content == {} else KINDS[type(content)]
        raise InputDataError(f"{path} holds {kind}. A file of choices is {CHOICES_FILE}. Check that it is whole")
    faults: Faults = defaultdict(list)
    faults['choices that are not {"valid": [text, ...], "plausible": [text, ...]}'] = [
        one for one, found in content.items() if not isinstance(found, Choices)
    ]
    refuse(faults, path)
    return content
