"""Whether a sentence is true of its images, in the official file formats of NLVR2.

Two photos a sentence is NLVR2's own; a record that lists its ``images`` may have any number of them.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dept_vl.formats.files import Faults, check_types, collector_paused, refuse, refuse_repeated
from dept_vl.formats.lxmert import read_lxmert
from dept_vl.formats.submission import check_label_csv, read_label_csv
from dept_vl.metrics.bootstrap import percent_interval
from dept_vl.settings import TaskSettings
from dept_vl.tasks.task import OfficialFiles, Task, split_name
from dept_vl.types import Example, Prediction, Scores, Target
from feature_extraction.durable import write_durably
from feature_extraction.errors import InputDataError

LABELS = ("true", "false")
IDENTIFIER = re.compile(r'[^-,"\s]+(-[^-,"\s]+){3}')  # split-set-pair-sentence
SUBSETS = ("balanced", "unbalanced")  # official lists of a split's records, in files of their own

Row = dict[str, Any]


def build(settings: TaskSettings) -> Task:
    """The task for data whose files carry the settings' split names."""
    return Task(
        name=settings.name,
        read=partial(read, splits=settings.splits),
        read_files=read_files,
        parse=parse,
        score=score,
        submit=submit,
        read_submission=read_label_csv,  # capitals of labels do not count, as officially
        check_submission=check_submission,
        submission_name=partial(submission_name, splits=settings.splits),
        labels=LABELS,
        ignores_unknown=True,
    )


@collector_paused()
def read(folder: Path, split: str, *, splits: Mapping[str, str]) -> list[Example]:
    """The records of one split: of NAME.json, or of several such files where the split's name joins them by "+".

    A file is an official one (JSON lines) or a list of LXMERT's. Where balanced_NAME.json and unbalanced_NAME.json
    lie beside it or in the folders balanced/ and unbalanced/, as officially, examples know their subset.

    Raises:
        InputDataError: a file is missing, or its records are no such examples; all faults of a file are named together.
    """
    paths = [folder / f"{name}.json" for name in split_name(splits, split).split("+")]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        there = ", ".join(sorted(path.name for path in folder.glob("*.json")))
        raise InputDataError(
            f"{folder} has no {' and no '.join(missing)}. JSON files there: {there or 'none'}. Put the official file "
            f"there, or set task.splits.{split} to the name of yours"
        )
    examples = [example for path in paths for example in _examples(path)]
    refuse_repeated(examples, "duplicate identifier", folder)
    return examples


@collector_paused()
def read_files(files: OfficialFiles) -> list[Example]:
    """The records of one official file, or of one of LXMERT's.

    Raises:
        InputDataError: there is no such file, or its records are no such examples; all faults are named together.
    """
    examples = _examples(files.annotations)
    refuse_repeated(examples, "duplicate identifier", files.annotations)
    return examples


def parse(text: str) -> str:
    """Map generated text to "true" or "false"; any other text counts as "false"."""
    return "true" if text.strip().lower() == "true" else "false"


def score(predictions: Sequence[Prediction], examples: Sequence[Example]) -> Scores:
    """Accuracy, and consistency: the share of sentence groups of which every member is right.

    Both are the official script's fractions times 100, unrounded. They are None, but for the count, where the labels
    are withheld, and the accuracies on the subsets where the data folder does not have their lists. A 95 % confidence
    interval is given for the accuracy.
    """
    answers = dict(predictions)
    labelled = [example for example in examples if example.references]
    right = {one.example_id: answers[one.example_id].lower() == one.references[0] for one in labelled}
    groups: dict[str, list[bool]] = defaultdict(list)
    for example in labelled:
        groups[example.slices["group"]].append(right[example.example_id])
    metrics = {
        "accuracy": _percentage(list(right.values())),
        "consistency": _percentage([all(members) for members in groups.values()]),
    }
    reasons = {}
    for subset in SUBSETS:
        metrics[f"{subset}_accuracy"] = _percentage([right[one.example_id] for one in labelled if subset in one.slices])
        if labelled and metrics[f"{subset}_accuracy"] is None:
            reasons[f"{subset}_accuracy"] = f"there is no {subset}_NAME.json beside the annotations NAME.json"
    return Scores(
        metrics={**metrics, "n": len(examples), **percent_interval(list(right.values()))},
        per_example={example_id: float(one) for example_id, one in right.items()},
        reasons=reasons,
    )


def submit(predictions: Sequence[Prediction], path: Path) -> None:
    """Write the CSV that the official script takes: identifier,True or identifier,False, without a header."""
    write_durably(path, "".join(f"{one.example_id},{one.answer.capitalize()}\n" for one in predictions).encode())


def check_submission(path: Path, questions: Path | None) -> list[str]:
    """What the official script would refuse or silently count as wrong; with the official records, also by their ids.

    Raises:
        InputDataError: the official records cannot be read.
    """
    identifiers = None if questions is None else [one.example_id for one in read_files(OfficialFiles(questions))]
    return check_label_csv(path, identifiers)


def submission_name(split: str, *, splits: Mapping[str, str]) -> str:
    """The file's name, as in nlvr2_test1_dept_results.csv; there is no official one."""
    return f"nlvr2_{split_name(splits, split)}_dept_results.csv"


def read_records(path: Path) -> dict[str, Row]:
    """The objects of a file of JSON lines, by their place in it.

    Raises:
        InputDataError: there is no such file, or a line is something else; all such lines are named together.
    """
    faults: Faults = defaultdict(list)
    rows = {}
    for number, line in enumerate(_bytes(path).split(b"\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                rows[f"line {number}"] = row
            else:
                faults["lines that are no JSON object in UTF-8 (an official file has one record a line)"].append(number)
    refuse(faults, path)
    if not rows:
        raise InputDataError(f"{path} is empty. An official file has one JSON object a line. Download it again")
    return rows


def _examples(path: Path) -> list[Example]:
    """The examples of a file of either kind, with their groups and subsets."""
    examples = _lxmert_examples(path) if _bytes(path).lstrip()[:1] == b"[" else _official_examples(path)
    subsets = {subset: _subset(path, subset, examples) for subset in SUBSETS}
    return [
        replace(
            example,
            slices={"group": _group(example.example_id)}
            | {subset: "yes" for subset, members in subsets.items() if example.example_id in members},
        )
        for example in examples
    ]


def _lxmert_examples(path: Path) -> list[Example]:
    examples = read_lxmert(path, id_key="identifier", id_type=str, image_keys=("img0", "img1"), label_type=int)
    faults: Faults = defaultdict(list)
    for example in examples:
        _check_identifier(example.example_id, faults)
    refuse(faults, path)
    return [replace(example, references=tuple(target.text for target in example.targets)) for example in examples]


def _official_examples(path: Path) -> list[Example]:
    rows = read_records(path)
    withheld = not any("label" in row for row in rows.values())
    wanted = {"identifier": str, "sentence": str, **({} if withheld else {"label": str})}
    faults: Faults = defaultdict(list)
    examples = []
    for place, row in rows.items():
        if check_types(row, wanted, place, faults):
            _check_identifier(row["identifier"], faults)
            label = row.get("label", LABELS[0]).lower()
            if label not in LABELS:
                faults['"label" is neither "True" nor "False"'].append(row["identifier"])
            examples.append(
                Example(
                    example_id=row["identifier"],
                    text=row["sentence"],
                    image_ids=_image_ids(row, faults),
                    references=() if withheld else (label,),
                    targets=() if withheld else (Target(label, 1.0),),
                )
            )
    refuse(faults, path)
    return examples


def _image_ids(row: Row, faults: Faults) -> tuple[str, ...]:
    """The images that the record lists, or the two that the official names give it, left and right."""
    if "images" in row:
        listed = row["images"]
        if isinstance(listed, list) and listed and all(isinstance(one, str) for one in listed):
            return tuple(listed)
        faults['"images" is not a list of image ids'].append(row["identifier"])
    images = row["identifier"].rpartition("-")[0]
    return f"{images}-img0", f"{images}-img1"


def _group(identifier: str) -> str:
    """What the scenes of one sentence have in common: all fields but the pair number."""
    split, image_set, _, sentence = identifier.split("-")
    return f"{split}-{image_set}-{sentence}"


def _subset(path: Path, subset: str, examples: Sequence[Example]) -> AbstractSet[str]:
    """The identifiers of an official subset of a file's records; empty where its list is not there."""
    name = f"{subset}_{path.name}"
    found = next((file for file in (path.parent / name, path.parent / subset / name) if file.is_file()), None)
    if found is None:
        return frozenset()
    faults: Faults = defaultdict(list)
    rows = read_records(found)
    members = [row["identifier"] for place, row in rows.items() if check_types(row, {"identifier": str}, place, faults)]
    known = {example.example_id for example in examples}
    faults[f"identifiers that {path.name} does not have"] += [one for one in members if one not in known]
    refuse(faults, found)
    return set(members)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputDataError(f"No file {path}. Check the path") from None


def _check_identifier(identifier: str, faults: Faults) -> None:
    if not IDENTIFIER.fullmatch(identifier):
        faults['"identifier" is not split-set-pair-sentence, as in dev-850-0-0'].append(identifier)


def _percentage(right: Sequence[bool]) -> float | None:
    return 100 * (sum(right) / len(right)) if right else None
