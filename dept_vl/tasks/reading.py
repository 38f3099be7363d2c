"""Reading comprehension: MRQA 2019's NaturalQuestions, HotpotQA, SearchQA and NewsQA, and SQuAD v1.1.

An answer is generated, and compared with all accepted ones as the official scripts do. The text is "question: ...
context: ..." in both templates; where it is longer than ``max_text_length`` tokens, the context's end is cut off.
Training draws one of a question's distinct answers.

Differences from DePT's code, whose way ``legacy`` takes:

- DePT, as T5, puts spaces around punctuation in all texts and answers. The official score then finds "1 , 000" wrong
  where "1,000" is right; so DePT's scores compare spaced texts. Here texts are as they are.
- DePT trains on, and compares with, the first answer only, cut to 20 tokens. Here all answers count. ``legacy`` cuts
  what is trained on and generated (``max_target_length``), but not what it is compared with.
- DePT's target of SQuAD is the text of its whole record of answers: {'text': ['Denver Broncos'], 'answer_start': [177]}

A split's source is a file, with one or more parts to take of it: those of ``splits``, which go by questions as DePT's,
or the same with _of_articles, as in xquad.en/first_half_of_articles and xquad.en/second_half_of_articles/first_half. By
articles, no context (SQuAD: no article) is in two parts.

The official script of MRQA counts a question without prediction as wrong; ``evaluate`` refuses such a file and names
the questions. Answers to unknown questions are ignored, as there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from dept_vl.formats.files import refuse_repeated
from dept_vl.formats.reading_files import Question, read_questions
from dept_vl.formats.rows import HubSource, find_file
from dept_vl.formats.submission.answer_object import check_answer_object, read_answer_object, write_answer_object
from dept_vl.metrics.span import span_scores
from dept_vl.settings import TaskSettings
from dept_vl.tasks.family import member_of
from dept_vl.tasks.splits import split_source, take
from dept_vl.tasks.task import OfficialFiles, Task, split_name
from dept_vl.types import Example, Prediction, Scores, Target

MRQA_FILES = {"nq": "NaturalQuestionsShort", "hotpotqa": "HotpotQA", "searchqa": "SearchQA", "newsqa": "NewsQA"}
MRQA_SPLITS = {"train": "train", "dev": "validation"}
HUB = {
    "nq": HubSource("lucadiliello/naturalquestionsshortqa", None, MRQA_SPLITS),
    "hotpotqa": HubSource("lucadiliello/hotpotqa", None, MRQA_SPLITS),
    "searchqa": HubSource("lucadiliello/searchqa", None, MRQA_SPLITS),
    "newsqa": HubSource("lucadiliello/newsqa", None, MRQA_SPLITS),
    "squad": HubSource("rajpurkar/squad", "plain_text", {"train-v1.1": "train", "dev-v1.1": "validation"}),
}
OF_ARTICLES = "_of_articles"  # behind a part's name: the part of the articles


def build(settings: TaskSettings) -> Task:
    """The task that the settings' name says.

    Raises:
        UsageError: it is none of these.
    """
    name, hub = settings.name, member_of(HUB, settings)
    return Task(
        name=name,
        read=partial(read, name=name, splits=settings.splits, legacy=settings.legacy),
        read_files=read_files,
        parse=parse,
        score=score,
        submit=submit,
        read_submission=read_answer_object,
        check_submission=check_submission,
        submission_name=partial(submission_name, name=name, splits=settings.splits),
        ignores_unknown=True,
        hub=hub,
    )


def read(folder: Path, split: str, *, name: str, splits: Mapping[str, str], legacy: bool) -> list[Example]:
    """The questions of a split, or of the parts of a file that its source names.

    The file is SQuAD's NAME.json, or MRQA's NAME.jsonl.gz, also as NAME/HotpotQA.jsonl.gz and unpacked; where there is
    none, the hub's rows are read.

    Raises:
        InputDataError: the file is missing, or its contents are no such questions; all faults are named together.
        UsageError: the source names a part that there is not.
    """
    source = split_name(splits, split)
    file, *parts = source.split("/")
    for part in parts:
        split_source(f"{file}/{part.removesuffix(OF_ARTICLES)}", split)  # is there such a part?
    if name in MRQA_FILES:
        stems = (file, f"{file}/{MRQA_FILES[name]}")
        names = [f"{stem}{suffix}" for stem in stems for suffix in (".jsonl.gz", ".jsonl")]
    else:
        names = [f"{file}.json"]
    path = find_file(folder, (*names, HUB[name].rows_file(file)), split)
    questions = read_questions(path)
    for part in parts:
        questions = _take(questions, part)
    examples = [_legacy_example(one) if legacy else _example(one) for one in questions]
    refuse_repeated(examples, "more than one question with the same id", path)
    return examples


def read_files(files: OfficialFiles) -> list[Example]:
    """The questions of one official file, with all accepted answers.

    Raises:
        InputDataError: there is no such file, or its contents are no such questions; all faults are named together.
    """
    examples = [_example(one) for one in read_questions(files.annotations)]
    refuse_repeated(examples, "more than one question with the same id", files.annotations)
    return examples


def parse(text: str) -> str:
    """The generated text without outer spaces."""
    return text.strip()


def score(predictions: Sequence[Prediction], examples: Sequence[Example]) -> Scores:
    """F1 and exact match, in percent, each with the best of the accepted answers."""
    return span_scores(dict(predictions), {one.example_id: one.references for one in examples})


def submit(predictions: Sequence[Prediction], path: Path) -> None:
    """Write the JSON object that the official scripts take: each question's id with its answer."""
    write_answer_object(path, predictions)


def check_submission(path: Path, questions: Path | None) -> list[str]:
    """What the official script would fail on or count as wrong; with an official file, also by its questions' ids.

    Raises:
        InputDataError: there is no such file, or the official one cannot be read.
    """
    wanted = None if questions is None else [one.example_id for one in read_files(OfficialFiles(questions))]
    return check_answer_object(path, wanted)


def submission_name(split: str, *, name: str, splits: Mapping[str, str]) -> str:
    """The file's name, as in nq_dev_predictions.json; there is no official one."""
    return f"{name}_{split_name(splits, split).replace('/', '_')}_predictions.json"


def pad_punctuation(text: str) -> str:
    """The text with spaces around all but letters, their marks, digits and "_", as T5 and DePT have it."""
    padded = re.sub(r"[^\w\s]", lambda found: found[0] if _is_mark(found[0]) else f" {found[0]} ", text)
    return re.sub(r"\s+", " ", padded)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character).startswith("M")


def _take(questions: Sequence[Question], part: str) -> list[Question]:
    if not part.endswith(OF_ARTICLES):
        return take(questions, part)
    articles = list(dict.fromkeys(one.article for one in questions))
    chosen = set(take(articles, part.removesuffix(OF_ARTICLES)))
    return [one for one in questions if one.article in chosen]


def _example(one: Question) -> Example:
    answers = tuple(dict.fromkeys(one.answers))
    return Example(
        example_id=one.question_id,
        text=f"question: {one.question} context: {one.context}",
        image_ids=(),
        references=answers,
        targets=tuple(Target(answer, 1.0) for answer in answers),
    )


def _legacy_example(one: Question) -> Example:
    record = str({"text": list(one.answers), "answer_start": list(one.starts)})
    answers = [pad_punctuation(record if one.starts else answer).strip() for answer in one.answers[:1]]
    return Example(
        example_id=one.question_id,
        text=f"question: {pad_punctuation(one.question)} context: {pad_punctuation(one.context)}",
        image_ids=(),
        references=tuple(answers),
        targets=tuple(Target(answer, 1.0) for answer in answers),
    )
