"""Predictions → scores, the official submission file, metrics.json and scores.json: without a model and torch."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from dept_vl.formats.files import Faults, refuse
from dept_vl.tasks.task import OfficialFiles, Task
from dept_vl.types import Example, Prediction, Scores
from feature_extraction.durable import write_durably


def write_evaluation(
    folder: Path,
    task: Task,
    split: str,
    predictions: Sequence[Prediction],
    examples: Sequence[Example],
    *,
    blank_ids: Sequence[str] = (),
) -> Scores:
    """Score a split's predictions and write all files; the order of the predictions makes no difference to a byte.

    ``blank_ids`` are answered "" in the submission file, behind the others.

    Raises:
        InputDataError: the predictions do not cover the examples exactly once.
    """
    check_complete(predictions, examples)
    answers = dict(predictions)
    ordered = [Prediction(example.example_id, answers[example.example_id]) for example in examples]
    scores = task.score(ordered, examples)
    folder.mkdir(parents=True, exist_ok=True)
    blank = [Prediction(example_id, "") for example_id in blank_ids]
    task.submit([*ordered, *blank], folder / task.submission_name(split))
    write_numbers(folder / "scores.json", scores.per_example)
    write_numbers(folder / "metrics.json", scores.metrics)
    return scores


def score_files(task: Task, predictions: Path, files: OfficialFiles) -> Scores:
    """Score an existing submission file against the official annotations.

    Raises:
        InputDataError: a file is not in its official format, or the predictions do not cover it exactly once.
    """
    examples = task.read_files(files)
    answers = task.read_submission(predictions)
    if task.ignores_unknown:
        wanted = {example.example_id for example in examples}
        answers = [one for one in answers if one.example_id in wanted]
    check_complete(answers, examples, source=predictions)
    return task.score(answers, examples)


def check_complete(
    predictions: Sequence[Prediction], examples: Sequence[Example], *, source: object = "These predictions"
) -> None:
    """Refuse anything but exactly one prediction for each example.

    Raises:
        InputDataError: names the missing, unknown and repeated ids of ``source``.
    """
    counts = Counter(prediction.example_id for prediction in predictions)
    wanted = {example.example_id for example in examples}
    faults: Faults = defaultdict(list)
    faults["missing ids"] = [example.example_id for example in examples if example.example_id not in counts]
    faults["ids that the split does not have"] = [one for one in counts if one not in wanted]
    faults["ids with more than one prediction"] = [one for one, count in counts.items() if count > 1]
    refuse(faults, source)


def write_numbers(path: Path, numbers: Mapping[str, float | None]) -> None:
    """Write a flat JSON object, one number or null in a line; a missing folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, (json.dumps(numbers, indent=1, allow_nan=False) + "\n").encode())
