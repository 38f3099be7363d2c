"""Open-ended questions about one image, in the official file formats of VQAv2."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from dept_vl.formats.files import count_and_first
from dept_vl.formats.submission import JsonList, check_json_list, read_json_list, write_json_list
from dept_vl.formats.visual_genome import VISUAL_GENOME
from dept_vl.formats.vqa_files import ANSWER_TYPES, read_official, read_questions
from dept_vl.formats.vqa_sources import read_sources, whole_test
from dept_vl.metrics.bootstrap import percent_interval
from dept_vl.metrics.vqa_accuracy import percentage, vqa_accuracy
from dept_vl.settings import TaskSettings
from dept_vl.tasks.task import OfficialFiles, Task, split_name
from dept_vl.types import Example, Prediction, Scores
from feature_extraction.errors import InputDataError, UsageError

ROWS = JsonList("question_id", int, "answer", '[{"question_id": 1, "answer": "red"}, ...]')
NO_REFERENCES = (
    "no human answers: they are withheld, or a list of LXMERT has none and no official annotations beside it"
)
WHOLE = 'The server wants each question of test2015, for the phase test-dev too; what it does not ask is ""'


def build(settings: TaskSettings) -> Task:
    """The task for data whose file names carry the settings' split names."""
    return Task(
        name=settings.name,
        read=partial(read, splits=settings.splits),
        read_files=read_files,
        parse=parse,
        score=score,
        submit=submit,
        read_submission=partial(read_json_list, rows=ROWS),
        check_submission=check_submission,
        submission_name=partial(submission_name, splits=settings.splits),
        file_options=("questions",),
        blank_ids=partial(blank_ids, splits=settings.splits),
    )


def read(folder: Path, split: str, *, splits: Mapping[str, str]) -> list[Example]:
    """The questions of one split, with their human answers unless it is a test split without published ones.

    Raises:
        InputDataError: files are missing, or what they hold does not fit; all faults are named together.
        UsageError: Visual Genome's questions are in a split that is not for training.
    """
    name = split_name(splits, split)
    sources = name.split("+")
    if VISUAL_GENOME in sources and "train" not in split:
        raise UsageError(
            f"task.splits.{split} is {name!r}, but Visual Genome's questions are only for training: they have no human "
            f"answers to score by, and no server takes theirs. Leave out {VISUAL_GENOME}, or give the split a name "
            "with train in it"
        )
    return read_sources(folder, sources, withheld=split.startswith("test"))


def read_files(files: OfficialFiles) -> list[Example]:
    """The annotated questions of two files; without the questions file, examples have no text and no image.

    Raises:
        InputDataError: a file is missing, or questions and annotations do not fit; all faults are named together.
    """
    return read_official(files.annotations, files.questions)


def parse(text: str) -> str:
    """The answer is the generated text itself; the score's own processing does the rest."""
    return text.strip()


def score(predictions: Sequence[Prediction], examples: Sequence[Example]) -> Scores:
    """Accuracies as the official script prints them, with a 95 % confidence interval of the overall one.

    Only examples with human answers count; where there are none, all is None but for the number of examples.
    """
    answers = dict(predictions)
    per_example: dict[str, float] = {}
    groups: dict[str, list[float]] = {name: [] for name in ("accuracy", *ANSWER_TYPES.values())}
    for example in examples:
        if example.references:
            accuracy = vqa_accuracy(answers[example.example_id], example.references)
            per_example[example.example_id] = accuracy
            groups["accuracy"].append(accuracy)
            slices = example.slices  # lists of LXMERT may be without
            if slices.get("answer_type") in ANSWER_TYPES:
                groups[ANSWER_TYPES[slices["answer_type"]]].append(accuracy)
            if "question_type" in slices:
                groups.setdefault(f"per_type/{slices['question_type']}", []).append(accuracy)
    metrics: dict[str, float | None] = {name: percentage(scores) for name, scores in groups.items()}
    overall = groups["accuracy"]
    absent = "no example has an answer_type of this kind" if overall else NO_REFERENCES
    return Scores(
        metrics={**metrics, "n": len(examples), **percent_interval(overall)},
        per_example=per_example,
        reasons={name: absent for name, value in metrics.items() if value is None},
    )


def submit(predictions: Sequence[Prediction], path: Path) -> None:
    """Write the results file that the server and the official script take: one row for each question.

    Raises:
        InputDataError: there are answers to Visual Genome's questions.
    """
    foreign = [one.example_id for one in predictions if not one.example_id.isdecimal()]
    if foreign:
        raise InputDataError(
            f"{path.name} would hold answers to questions that are not VQA's: {count_and_first(foreign)}. A results "
            "file is for a split without Visual Genome"
        )
    write_json_list(path, ROWS, predictions)


def check_submission(path: Path, questions: Path | None) -> list[str]:
    """What the server would refuse or score as wrong; with an official question file, also by the questions' ids.

    Raises:
        InputDataError: a file is missing, or the question file cannot be read.
    """
    if questions is None:
        return check_json_list(path, ROWS, None)
    asked = read_questions(questions)
    if not asked.subtype.startswith("test"):
        return check_json_list(path, ROWS, list(map(str, asked.rows)))
    partly = asked.subtype.startswith("test-dev")
    wanted = whole_test(questions.parent, asked.subtype) if partly else list(map(str, asked.rows))
    return check_json_list(path, ROWS._replace(whole=WHOLE), wanted)


def submission_name(split: str, *, splits: Mapping[str, str]) -> str:
    """The results file's official name, as in v2_OpenEnded_mscoco_test2015_dept_results.json."""
    subtype = split_name(splits, split)
    data_type = "mscoco_" if subtype[-4:].isdigit() else ""  # COCO's splits end in their year
    return f"v2_OpenEnded_{data_type}{subtype}_dept_results.json"


def blank_ids(folder: Path, split: str, *, splits: Mapping[str, str]) -> list[str]:
    """Of a test-dev split, the questions of the whole test set that it does not ask: the server wants a row of each.

    Raises:
        InputDataError: a question file is missing.
    """
    parts = [source for source in split_name(splits, split).split("+") if source.startswith("test-dev")]
    if not parts:
        return []
    asked = {example.example_id for example in read(folder, split, splits=splits)}
    return [one for part in parts for one in whole_test(folder, part) if one not in asked]


def majority_answer(examples: Sequence[Example]) -> str:
    """The most frequent human answer; of equally frequent ones the first in the alphabet."""
    counts = Counter(answer for example in examples for answer in example.references)
    return min(counts, key=lambda answer: (-counts[answer], answer))
