"""The eight tasks of GLUE, in the official TSV files or the hub's rows.

Texts are "field: value" pieces joined by spaces, and labels digits, as in DePT; ``template: t5`` has T5's task prefix,
order of fields and label words. An answer is a label's name as the server wants it; a generated text that means none
stays as it is and counts as wrong, and the leaderboard file has the first label in its place.

STS-B is trained on its scores rounded to steps of 0.2, and evaluated against the unrounded ones. An answer that is no
number counts as -1, as with T5. ``legacy`` does as ATTEMPT, MPT and DePT did: targets have steps of 0.1 (their rounding
to 0.2 had no effect), they are the gold scores too, and correlations with a constant are 0.

Ids are the rows' numbers in their file, from 0, or "idx" of the hub's rows. The two differ in MRPC's train and dev.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dept_vl.formats.files import Faults, check_types, collector_paused, refuse, refuse_repeated
from dept_vl.formats.rows import TABLES, HubSource, Row, find_file, finite_number, read_gold, read_label, read_rows
from dept_vl.formats.submission import check_zip
from dept_vl.formats.submission.content import read_content
from dept_vl.formats.submission.label_tsv import check_label_tsv, label_tsv_faults, read_label_tsv, write_label_tsv
from dept_vl.metrics.classification import label_scores, pearson, spearman
from dept_vl.settings import TaskSettings
from dept_vl.tasks.family import label_of, labels_only, member_of
from dept_vl.tasks.splits import split_source, take
from dept_vl.tasks.task import OfficialFiles, Task, split_name
from dept_vl.types import Example, Prediction, Scores, Target

DIGITS = ("0", "1")
NLI = ("entailment", "not_entailment")
MNLI = ("entailment", "neutral", "contradiction")
PAIR = ("sentence1", "sentence2")
HIGHEST = 5.0  # score of STS-B; the lowest is 0
NO_NUMBER = -1.0  # what an answer without a number counts as


class Member(NamedTuple):
    """One of the tasks."""

    file: str  # the server's name for it
    fields: tuple[str, ...]  # the texts, in the template's order, by the hub's column names
    labels: tuple[str, ...]  # as the server writes them, in the hub's order; none: a number from 0 to 5
    words: tuple[str, ...] = ()  # T5's for the labels; none: the same
    metrics: tuple[str, ...] = ("accuracy",)
    columns: Mapping[str, str] = {}  # official column: the hub's, where they differ
    bare: tuple[str, ...] = ()  # columns of those official files that have no header


class ServerFile(NamedTuple):
    """One of the files that the server takes."""

    labels: tuple[str, ...]  # none: a number
    rows: int  # of the test


MEMBERS = {
    "cola": Member(
        file="CoLA",
        fields=("sentence",),
        labels=DIGITS,
        words=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        bare=("source", "label", "mark", "sentence"),
    ),
    "sst2": Member(file="SST-2", fields=("sentence",), labels=DIGITS, words=("negative", "positive")),
    "mrpc": Member(
        file="MRPC",
        fields=PAIR,
        labels=DIGITS,
        words=("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        columns={"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"},
    ),
    "stsb": Member(file="STS-B", fields=PAIR, labels=(), columns={"score": "label"}),
    "qqp": Member(
        file="QQP",
        fields=("question1", "question2"),
        labels=DIGITS,
        words=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        columns={"is_duplicate": "label"},
    ),
    "mnli": Member(
        file="MNLI",
        fields=("premise", "hypothesis"),
        labels=MNLI,
        columns={"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},
    ),
    "qnli": Member(file="QNLI", fields=("question", "sentence"), labels=NLI),
    "rte": Member(file="RTE", fields=PAIR, labels=NLI),
}
SERVER_FILES = {
    "CoLA.tsv": ServerFile(DIGITS, 1_063),
    "SST-2.tsv": ServerFile(DIGITS, 1_821),
    "MRPC.tsv": ServerFile(DIGITS, 1_725),
    "STS-B.tsv": ServerFile((), 1_379),
    "QQP.tsv": ServerFile(DIGITS, 390_965),
    "MNLI-m.tsv": ServerFile(MNLI, 9_796),
    "MNLI-mm.tsv": ServerFile(MNLI, 9_847),
    "QNLI.tsv": ServerFile(NLI, 5_463),
    "RTE.tsv": ServerFile(NLI, 3_000),
    "WNLI.tsv": ServerFile(DIGITS, 146),
    "AX.tsv": ServerFile(MNLI, 1_104),
}
HUB = {
    name: HubSource("nyu-mll/glue", name, {"train": "train", "dev": "validation", "test": "test"}) for name in MEMBERS
} | {
    "mnli": HubSource(
        "nyu-mll/glue",
        "mnli",
        {
            "train": "train",
            "dev_matched": "validation_matched",
            "dev_mismatched": "validation_mismatched",
            "test_matched": "test_matched",
            "test_mismatched": "test_mismatched",
        },
    )
}


def build(settings: TaskSettings) -> Task:
    """The task that the settings' name says.

    Raises:
        UsageError: GLUE has no such task.
    """
    member = member_of(MEMBERS, settings)
    names = _label_words(member, settings)
    scorer = partial(label_scores, labels=member.labels, metrics=member.metrics)
    if not member.labels:
        scorer = partial(score_numbers, constant=0.0 if settings.legacy else None)
    return Task(
        name=settings.name,
        read=partial(read, settings=settings),
        read_files=partial(read_files, settings=settings),
        parse=partial(parse, names=names, are_numbers=not member.labels),
        score=scorer,
        submit=partial(submit, labels=member.labels),
        read_submission=partial(read_label_tsv, labels=member.labels),
        check_submission=partial(check_submission, settings=settings),
        submission_name=partial(submission_name, settings=settings),
        labels=tuple(names),
        graded=not member.labels,
        score_validation=None if member.labels else partial(score_numbers, constant=0.0),  # a young model's is constant
        hub=HUB[settings.name],
    )


@collector_paused()
def read(folder: Path, split: str, *, settings: TaskSettings) -> list[Example]:
    """The examples of one split, or of a part of an official file, in the file's order.

    The split's source is NAME of NAME.tsv or NAME.txt, or of the hub's split in SPLIT.rows.jsonl, or NAME/part.

    Raises:
        InputDataError: the file is missing, or its rows are no such examples; all faults are named together.
    """
    source = split_source(split_name(settings.splits, split), split)
    names = (f"{source.file}.tsv", f"{source.file}.txt", HUB[settings.name].rows_file(source.file))
    return take(_examples(find_file(folder, names, split), settings), source.part)


@collector_paused()
def read_files(files: OfficialFiles, *, settings: TaskSettings) -> list[Example]:
    """The examples of an official file, or the references of JSON lines with "idx" and "label".

    Raises:
        InputDataError: there is no such file, or its rows are no such examples; all faults are named together.
    """
    if files.annotations.suffix in TABLES:
        return _examples(files.annotations, settings)
    return read_gold(files.annotations, MEMBERS[settings.name].labels)


def parse(text: str, *, names: Mapping[str, str], are_numbers: bool) -> str:
    """The name of the label that a generated text means, or the text itself; numbers are brought into 0 to 5."""
    number = finite_number(text) if are_numbers else None
    return label_of(text, names) if number is None else f"{max(0.0, min(HIGHEST, number)):.3f}"


def score_numbers(
    predictions: Sequence[Prediction], examples: Sequence[Example], *, constant: float | None = None
) -> Scores:
    """Pearson's and Spearman's correlation, times 100, and the share of answers that are no number.

    A correlation with a constant is ``constant``. An example's own score is 1 - |error| / 5, at least 0. There is no
    confidence interval, which is one of a mean.
    """
    labelled = [example for example in examples if example.references]
    answers = {one.example_id: finite_number(one.answer) for one in predictions}
    gold = [float(example.references[0]) for example in labelled]
    given = [NO_NUMBER if (number := answers[one.example_id]) is None else number for one in labelled]
    metrics: dict[str, float | None] = {}
    reasons = {}
    for name, correlation in (("pearson", pearson), ("spearman", spearman)):
        found = correlation(gold, given) if labelled else None
        if labelled and found is None:
            found = constant
            reasons[name] = "the answers, or the gold scores, are all the same"
        metrics[name] = None if found is None else 100 * found
    metrics["invalid"] = 100 * sum(one is None for one in answers.values()) / len(answers) if answers else None
    return Scores(
        metrics={**metrics, "n": len(examples)},
        per_example={
            example.example_id: max(0.0, 1 - abs(one - other) / HIGHEST)
            for example, one, other in zip(labelled, gold, given, strict=True)
        },
        reasons={} if constant is not None else reasons,
    )


def submit(predictions: Sequence[Prediction], path: Path, *, labels: Sequence[str]) -> None:
    """Write the server's TSV; numbers have three decimals."""
    if labels:
        given = labels_only(predictions, path, labels.__contains__, instead=labels[0])
    else:
        numbers = labels_only(predictions, path, _is_number, instead="0.000")
        given = [one._replace(answer=f"{float(one.answer):.3f}") for one in numbers]
    write_label_tsv(path, given)


def check_submission(path: Path, questions: Path | None, *, settings: TaskSettings) -> list[str]:
    """What the server would refuse, in one file or in the zip of all; with the official test file, also by its rows.

    Our own files of other splits, such as RTE_dev_first_half.tsv, may leave out rows.

    Raises:
        InputDataError: there is no such file, or the official test file cannot be read.
    """
    member = MEMBERS[settings.name]
    wanted = None
    if questions is not None:
        wanted = [one.example_id for one in read_files(OfficialFiles(questions), settings=settings)]
    if not read_content(path).startswith(b"PK"):
        return check_label_tsv(path, member.labels, wanted, is_whole=not path.name.startswith(f"{member.file}_"))
    own = None if questions is None else _file_name(questions.stem, member)
    return check_zip(
        path,
        {
            name: partial(label_tsv_faults, labels=one.labels, wanted=wanted if name == own else None, count=one.rows)
            for name, one in SERVER_FILES.items()
        },
    )


def submission_name(split: str, *, settings: TaskSettings) -> str:
    """The server's name for a test's file, as in RTE.tsv; another split's has its source, as in RTE_dev.tsv."""
    source = split_source(split_name(settings.splits, split), split)
    return _file_name(source.name, MEMBERS[settings.name])


def _file_name(source: str, member: Member) -> str:
    server = {"test": member.file, "test_matched": f"{member.file}-m", "test_mismatched": f"{member.file}-mm"}
    return f"{server.get(source, f'{member.file}_{source}')}.tsv"


def _examples(path: Path, settings: TaskSettings) -> list[Example]:
    """The examples of a file of either kind."""
    member = MEMBERS[settings.name]
    rows = read_rows(
        path, columns=member.bare, names=member.columns, wanted=member.fields, drop_short=settings.name == "qqp"
    )
    wanted = {**dict.fromkeys(member.fields, str), "idx": int}
    words = {label: word for word, label in _label_words(member, settings).items()}
    faults: Faults = defaultdict(list)
    examples = []
    for line, row in rows.items():
        if check_types(row, wanted, f"line {line}", faults):
            references = read_label(row, member.labels, line, faults)
            if member.labels:
                targets = [words[label] for label in references]
            else:
                targets = [_score_word(float(score), settings) for score in references]
                references = tuple(targets) if settings.legacy else references
            examples.append(
                Example(
                    example_id=str(row["idx"]),
                    text=_text(row, member, settings),
                    image_ids=(),
                    references=references,
                    targets=tuple(Target(word, 1.0) for word in targets),
                )
            )
    refuse(faults, path)
    refuse_repeated(examples, 'more than one row with the same "idx"', path)
    return examples


def _text(row: Row, member: Member, settings: TaskSettings) -> str:
    if settings.template == "t5":
        pieces = " ".join(f"{field}: {row[field]}" for field in sorted(member.fields))
        return f"{settings.name} {pieces}"
    return " ".join(f"{field}: {row[field]}" for field in member.fields)


def _label_words(member: Member, settings: TaskSettings) -> dict[str, str]:
    """What is generated for each label: the label's name. Scores of STS-B are those of its targets."""
    if not member.labels:
        steps = 10 if settings.legacy else 5  # in 1
        return {f"{step / steps:.1f}": f"{step / steps:.3f}" for step in range(int(HIGHEST) * steps + 1)}
    if settings.template == "t5":
        return dict(zip(member.words or member.labels, member.labels, strict=True))
    return {str(number): label for number, label in enumerate(member.labels)}


def _is_number(answer: str) -> bool:
    return finite_number(answer) is not None


def _score_word(score: float, settings: TaskSettings) -> str:
    """The target for a score of STS-B: to 0.2 with ties to the even step, as T5 has it, or as DePT to 0.1."""
    return f"{np.round(score, 1) if settings.legacy else round(score * 5) / 5:.1f}"
