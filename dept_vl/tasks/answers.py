"""The answer vocabulary of a task: what a classification head tells apart, and what constrained decoding may say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dept_vl.formats.files import read_json
from dept_vl.settings import TaskSettings
from dept_vl.tasks.task import Task
from dept_vl.types import Example
from feature_extraction.errors import InputDataError


def task_answers(task: Task, settings: TaskSettings, examples: Sequence[Example], folder: Path) -> list[str] | None:
    """The answers that the task's settings ask for; None where any text may be an answer.

    They are the task's labels if it has any, or those of ``answer_file``, or the most frequent ones of the training
    examples.

    Raises:
        InputDataError: the answer file is no list of different texts, or the examples have no answers.
    """
    if settings.head == "generation" and not settings.constrained:
        return None
    if task.labels:
        return list(task.labels)
    if settings.answer_file is not None:
        return _read_answers(folder / settings.answer_file)
    answers = answer_vocabulary(examples, settings.answer_count)
    if not answers:
        raise InputDataError(
            f"None of the {len(examples):,} training examples in {folder} has an answer, so that there is none to "
            f"choose from. Set task.head=generation and task.constrained=false, or give annotated training data"
        )
    return answers


def answer_vocabulary(examples: Sequence[Example], count: int | None) -> list[str]:
    """The ``count`` answers that are the best target of most examples, equally frequent ones in alphabetical order.

    The best target is the first of those with the largest weight: the answer that most annotators gave. VQA models
    usually take 3,129 of them.
    """
    best = Counter(
        max(example.targets, key=lambda target: target.weight).text for example in examples if example.targets
    )
    best.pop("", None)  # nothing is no answer
    return sorted(best, key=lambda answer: (-best[answer], answer))[:count]


def _read_answers(path: Path) -> list[str]:
    answers = read_json(path)
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise InputDataError(
            f"{path} is no list of texts. task.answer_file names a JSON file such as trainval_label2ans.json: "
            '["yes", "no", ...]'
        )
    twice = [answer for answer, times in Counter(answers).items() if times > 1]
    if twice:
        raise InputDataError(
            f"{path} has {len(twice):,} answers more than once, first {twice[0]!r}. Each stands for one class: "
            "remove the copies"
        )
    return answers
