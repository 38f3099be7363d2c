"""WinoGrande, Yelp-2, SciTail and PAWS-Wiki, in their official files or the hub's rows.

Texts are "field: value" pieces joined by spaces, and labels digits, as in DePT; ``template: t5`` puts the task's name
before them and has label words, in the manner of T5, which was not trained on these sets. An answer is a label's name;
a generated text that means none stays as it is and counts as wrong, and the file to submit has the first label in its
place.

DePT's code differs in two tasks, and ``legacy`` does as it does:

- WinoGrande: it shows the first option twice and never the second, so that its examples cannot be solved.
- Yelp: it takes the first 100,000 of the shuffled training examples after those held out; and it leaves the two
  characters by which the files write a line break in the texts. Here they are line breaks, and no example is left out.

SciTail's validation and test are halves of the development set, as in DePT; its own test set is the split
official-test. Only WinoGrande has a leaderboard; predictions of the others are written as for GLUE.

Ids are the rows' numbers in their file, from 0. WinoGrande's leaderboard file has no ids, so there they are the places
among the split's examples.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dept_vl.formats.files import Faults, check_types, collector_paused, refuse, refuse_repeated
from dept_vl.formats.rows import HubSource, Row, Rows, find_file, read_rows
from dept_vl.formats.submission.label_columns import check_label_columns, read_label_columns, write_label_columns
from dept_vl.formats.submission.label_tsv import check_label_tsv, read_label_tsv, write_label_tsv
from dept_vl.metrics.classification import label_scores
from dept_vl.settings import TaskSettings
from dept_vl.tasks.family import label_of, labels_only, member_of
from dept_vl.tasks.splits import Source, shuffled, split_source, take
from dept_vl.tasks.task import OfficialFiles, Task, split_name
from dept_vl.types import Example, Prediction, Target
from feature_extraction.errors import InputDataError

LEGACY_YELP = 100_000  # training examples
WITHHELD = ("", "-1", "-")  # labels that are none; "-" is SNLI's where annotators did not agree
WINOGRANDE = "winogrande"


class Member(NamedTuple):
    """One of the tasks."""

    fields: Mapping[str, str]  # the template's name of a text: the hub's column
    labels: tuple[str, ...]  # as submissions write them, in the order of their digits
    words: tuple[str, ...]  # for the labels, in template t5
    meanings: Mapping[str, str]  # label of a file, in small letters: which of the labels it is
    files: tuple[str, ...]  # the official names, NAME standing for a split's source
    submission: str  # the name of its file
    key: str = "label"  # the hub's column of the label
    bare: tuple[str, ...] = ()  # columns of official tables, which have no header
    columns: Mapping[str, str] = {}  # other names of columns: ours
    t5_fields: Mapping[str, str] = {}  # in template t5, where they differ
    legacy_fields: Mapping[str, str] = {}


CSV_CLASSES = {"1": "0", "2": "1"}  # of Yelp's official files: the hub's numbers
DIGITS = {"0": "0", "1": "1", "false": "0", "true": "1"}
MEMBERS = {
    WINOGRANDE: Member(
        fields={"sentence": "sentence", "option0": "option1", "option1": "option2"},
        t5_fields={"sentence": "sentence", "option1": "option1", "option2": "option2"},
        legacy_fields={"sentence": "sentence", "option0": "option1", "option1": "option1"},
        key="answer",
        columns={"label": "answer"},
        labels=("1", "2"),
        words=("1", "2"),
        meanings={"1": "1", "2": "2"},
        files=("NAME.jsonl",),
        submission="predictions.lst",
    ),
    "yelp": Member(
        fields={"sentence": "text"},
        labels=("0", "1"),
        words=("negative", "positive"),
        meanings=DIGITS | {"negative": "0", "positive": "1"},
        files=("NAME.csv",),
        bare=("label", "text"),
        submission="Yelp-2.tsv",
    ),
    "scitail": Member(
        fields={"premise": "premise", "hypothesis": "hypothesis"},
        labels=("entails", "neutral"),
        words=("entailment", "neutral"),
        meanings={"entails": "entails", "entailment": "entails", "0": "entails", "neutral": "neutral", "1": "neutral"},
        files=(
            *("scitail_1.0_NAME.tsv", "tsv_format/scitail_1.0_NAME.tsv"),
            *("scitail_1.0_NAME.txt", "snli_format/scitail_1.0_NAME.txt"),
        ),
        bare=("premise", "hypothesis", "label"),
        columns={"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},  # of the SNLI format
        submission="SciTail.tsv",
    ),
    "paws": Member(
        fields={"sentence1": "sentence1", "sentence2": "sentence2"},
        labels=("0", "1"),
        words=("not_equivalent", "equivalent"),
        meanings=DIGITS,
        files=("NAME.tsv",),
        submission="PAWS-Wiki.tsv",
    ),
}
_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
HUB = {
    WINOGRANDE: HubSource(
        "allenai/winogrande", "winogrande_xl", {"train_xl": "train", "dev": "validation", "test": "test"}
    ),
    "yelp": HubSource("fancyzhx/yelp_polarity", "plain_text", {"train": "train", "test": "test"}),
    "scitail": HubSource("allenai/scitail", "snli_format", _SPLITS),
    "paws": HubSource("google-research-datasets/paws", "labeled_final", _SPLITS),
}


def build(settings: TaskSettings) -> Task:
    """The task that the settings' name says.

    Raises:
        UsageError: there is no such task here.
    """
    member = member_of(MEMBERS, settings)
    names = dict(zip(_label_texts(member, settings), member.labels, strict=True))
    is_winogrande = settings.name == WINOGRANDE
    return Task(
        name=settings.name,
        read=partial(read, settings=settings),
        read_files=partial(read_files, settings=settings),
        parse=partial(label_of, names=names),
        score=partial(label_scores, labels=member.labels),
        submit=partial(submit, settings=settings),
        read_submission=read_label_columns if is_winogrande else partial(read_label_tsv, labels=member.labels),
        check_submission=partial(check_submission, settings=settings),
        submission_name=partial(submission_name, settings=settings),
        labels=tuple(names),
        hub=HUB[settings.name],
    )


@collector_paused()
def read(folder: Path, split: str, *, settings: TaskSettings) -> list[Example]:
    """The examples of one split, or of a part of an official file, in the file's order.

    The split's source is NAME of the official file's name, or of the hub's split in SPLIT.rows.jsonl, or NAME/part.

    Raises:
        InputDataError: the file is missing, or its rows are no such examples; all faults are named together.
    """
    source = split_source(split_name(settings.splits, split), split)
    official = [name.replace("NAME", source.file) for name in MEMBERS[settings.name].files]
    path = find_file(folder, [*official, HUB[settings.name].rows_file(source.file)], split)
    examples = _part(_examples(path, settings, has_texts=True), source, settings)
    if settings.name == WINOGRANDE:
        examples = [replace(example, example_id=str(place)) for place, example in enumerate(examples)]
    return examples


@collector_paused()
def read_files(files: OfficialFiles, *, settings: TaskSettings) -> list[Example]:
    """The examples of an official file, or the references of JSON lines with "idx" and "label".

    Raises:
        InputDataError: there is no such file, or its rows are no such examples; all faults are named together.
    """
    return _examples(files.annotations, settings, has_texts=False)


def submit(predictions: Sequence[Prediction], path: Path, *, settings: TaskSettings) -> None:
    """Write WinoGrande's leaderboard file, or for the others a TSV as GLUE's."""
    labels = MEMBERS[settings.name].labels
    write = write_label_columns if settings.name == WINOGRANDE else write_label_tsv
    write(path, labels_only(predictions, path, labels.__contains__, instead=labels[0]))


def check_submission(path: Path, questions: Path | None, *, settings: TaskSettings) -> list[str]:
    """What is wrong with a file; with the official questions, also whether it has exactly their rows.

    Our own files of other splits, as in SciTail_dev_first_half.tsv, may leave out rows.

    Raises:
        InputDataError: there is no such file, or the official file cannot be read.
    """
    wanted = None
    if questions is not None:
        wanted = [one.example_id for one in read_files(OfficialFiles(questions), settings=settings)]
    if settings.name == WINOGRANDE:
        return check_label_columns(path, None if wanted is None else len(wanted))
    member = MEMBERS[settings.name]
    is_whole = not path.name.startswith(f"{Path(member.submission).stem}_")
    return check_label_tsv(path, member.labels, wanted, is_whole=is_whole)


def submission_name(split: str, *, settings: TaskSettings) -> str:
    """The name of the official test's file, as in predictions.lst; another split's has its source, as a suffix."""
    source = split_source(split_name(settings.splits, split), split)
    name = Path(MEMBERS[settings.name].submission)
    return name.name if source == Source("test") else f"{name.stem}_{source.name}{name.suffix}"


def _label_texts(member: Member, settings: TaskSettings) -> tuple[str, ...]:
    """What is generated for each label."""
    return member.words if settings.template == "t5" else tuple(map(str, range(len(member.labels))))


def _part(examples: Sequence[Example], source: Source, settings: TaskSettings) -> list[Example]:
    if not (settings.legacy and settings.name == "yelp" and source == Source("train", "rest")):
        return take(examples, source.part)
    rest = len(take(examples, source.part))
    chosen = shuffled(len(examples))[-rest:][:LEGACY_YELP]
    return [examples[index] for index in sorted(chosen)]


def _examples(path: Path, settings: TaskSettings, *, has_texts: bool) -> list[Example]:
    """The examples of a file, which may have ids and labels alone if it need not have texts."""
    member = MEMBERS[settings.name]
    columns = dict.fromkeys(member.fields.values(), str)
    rows = _rows(path, settings, tuple(columns) if has_texts else ())
    has_texts = has_texts or any(column in row for row in rows.values() for column in columns)
    withheld = has_texts and not any(member.key in row for row in rows.values())
    meanings = CSV_CLASSES if path.suffix == ".csv" else member.meanings
    texts = dict(zip(member.labels, _label_texts(member, settings), strict=True))
    faults: Faults = defaultdict(list)
    examples = []
    for line, row in rows.items():
        if check_types(row, {"idx": int, **(columns if has_texts else {})}, f"line {line}", faults):
            references = () if withheld else _references(row, member.key, meanings, f"line {line}", faults)
            example = Example(
                example_id=str(row["idx"]),
                text=_text(row, member, settings) if has_texts else "",
                image_ids=(),
                references=references,
                targets=tuple(Target(texts[name], 1.0) for name in references),
            )
            examples.append(example)
    refuse(faults, path)
    refuse_repeated(examples, 'more than one row with the same "idx"', path)
    return examples


def _rows(path: Path, settings: TaskSettings, wanted: Sequence[str]) -> Rows:
    """The rows of a file of any kind, with our columns and "idx"."""
    member = MEMBERS[settings.name]
    columns = (member.key,) if path.suffix == ".lst" else member.bare
    is_table = False if path.suffix == ".txt" else None  # SciTail's SNLI format has JSON lines
    rows = read_rows(path, columns=columns, names=member.columns, wanted=wanted, is_table=is_table)
    for place, row in enumerate(rows.values()):
        row.setdefault("idx", place)
        if settings.name == "yelp" and not settings.legacy and isinstance(row.get("text"), str):
            row["text"] = row["text"].replace("\\n", "\n")
    labels = path.with_name(f"{path.stem}-labels.lst")
    if settings.name == WINOGRANDE and labels.is_file() and not any(member.key in row for row in rows.values()):
        answers = read_rows(labels, columns=(member.key,))
        if len(answers) != len(rows):
            raise InputDataError(
                f"{labels} has {len(answers):,} labels, but {path.name} has {len(rows):,} rows. Download both again"
            )
        for row, answer in zip(rows.values(), answers.values(), strict=True):
            row[member.key] = answer[member.key]
    return rows


def _references(row: Row, key: str, meanings: Mapping[str, str], place: str, faults: Faults) -> tuple[str, ...]:
    """The label's name; none where it is withheld: null, empty, or a hub's -1."""
    if key not in row:
        faults[f'no "{key}"'].append(place)
        return ()
    label = row[key]
    text = "" if label is None else str(label).strip().lower()
    if text in meanings:
        return (meanings[text],)
    if text not in WITHHELD:
        faults[f'"{key}" is none of {", ".join(meanings)}'].append(f"{place}: {json.dumps(label, default=str)}")
    return ()


def _text(row: Row, member: Member, settings: TaskSettings) -> str:
    fields, prefix = member.fields, ""
    if settings.template == "t5":
        fields, prefix = member.t5_fields or member.fields, f"{settings.name} "
    elif settings.legacy:
        fields = member.legacy_fields or member.fields
    return prefix + " ".join(f"{name}: {row[column]}" for name, column in fields.items())
