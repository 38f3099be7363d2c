"""The leaderboard file of GLUE: a TSV with the header ``index<TAB>prediction``, and the test's rows in their order."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from dept_vl.formats.files import Faults, refuse
from dept_vl.formats.submission.content import decode, id_faults, read_content, read_text, sentences
from dept_vl.types import Prediction
from feature_extraction.durable import write_durably
from feature_extraction.errors import InputDataError

HEADER = "index\tprediction"
JSON = f"holds JSON, not a TSV with the header {HEADER!r}"
LOWEST, HIGHEST = 0.0, 5.0  # of predictions that are numbers (STS-B)
INDEX = re.compile(r"0|[1-9][0-9]*")
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")


def read_label_tsv(path: Path, labels: Sequence[str]) -> list[Prediction]:
    """The predictions of a file: one of the labels each, or without labels any finite number.

    Rows must go up by their indexes; repeated ones are the caller's.

    Raises:
        InputDataError: it is no such file; all faults are named together.
    """
    text = read_text(path)
    if _is_json(text):
        raise InputDataError(f"{path} {JSON}")
    faults: Faults = defaultdict(list)
    predictions = list(_predictions(text, labels, faults))
    refuse(faults, path)
    return predictions


def write_label_tsv(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write a file that ``read_label_tsv`` reads; the example ids are the indexes."""
    rows = (f"{one.example_id}\t{one.answer}\n" for one in predictions)
    write_durably(path, f"{HEADER}\n{''.join(rows)}".encode())


def check_label_tsv(
    path: Path, labels: Sequence[str], wanted: Sequence[str] | None, *, is_whole: bool = True
) -> list[str]:
    """Every fault of a file, as by ``label_tsv_faults``.

    Raises:
        InputDataError: there is no such file.
    """
    return label_tsv_faults(read_content(path), labels, wanted, is_whole=is_whole)


def label_tsv_faults(
    content: bytes,
    labels: Sequence[str],
    wanted: Sequence[str] | None,
    *,
    count: int | None = None,
    is_whole: bool = True,
) -> list[str]:
    """Every fault of a file with this content.

    Without the wanted indexes, they must be 0, 1, 2, ..., up to the count if it is given, unless the file is not the
    whole of a server's.
    """
    text, unreadable = decode(content)
    if unreadable:
        return [unreadable]
    if _is_json(text):
        return [JSON]
    faults: Faults = defaultdict(list)
    predictions = list(_predictions(text, labels, faults))
    if not predictions and not faults:
        return ["has a header, but no rows"]
    if not labels:
        faults[f"predictions outside of {LOWEST:g} to {HIGHEST:g}"] += [
            f"index {one.example_id}: {one.answer}"
            for one in predictions
            if NUMBER.fullmatch(one.answer) and not LOWEST <= float(one.answer) <= HIGHEST
        ]
    indexes = [one.example_id for one in predictions]
    if wanted is None and is_whole:
        wanted = [str(index) for index in range(len(indexes) if count is None else count)]
    return [*sentences(faults), *id_faults(indexes, wanted, "Indexes are 0, 1, 2, ... in the order of the test file")]


def _is_json(text: str) -> bool:
    return text.lstrip()[0] in "[{"


def _predictions(text: str, labels: Sequence[str], faults: Faults) -> Iterator[Prediction]:
    """What can be made out of each row, whatever is wrong with it, so that an index is not said to be missing too."""
    lines = re.split(r"\r?\n", text)
    lines = lines if lines[-1] else lines[:-1]
    begin = 0 if re.match(r"[0-9]+\s*[\t,]", lines[0]) else 1
    if lines[0] != HEADER:
        faults[f"the first line is not the header {HEADER!r}"].append(repr(lines[0]))
    previous = -1
    for number, line in enumerate(lines[begin:], start=begin + 1):
        place = f"line {number}"
        if not line.strip():
            faults["blank lines"].append(place)
            continue
        fields = re.split(r"[\t,]", line)
        if len(fields) != 2 or "\t" not in line:
            faults["lines that are not an index, a tab and a prediction"].append(place)
        index, prediction = (*fields, "")[:2]
        if not INDEX.fullmatch(index):
            faults["indexes that are no whole number from 0"].append(f"{place}: {index!r}")
            continue
        if int(index) < previous:
            faults["indexes out of order (rows go as in the test file)"].append(place)
        previous = int(index)
        if labels and prediction not in labels:
            faults[f"predictions other than {', '.join(labels)}"].append(f"{place}: {prediction!r}")
        if not labels and not (NUMBER.fullmatch(prediction) and math.isfinite(float(prediction))):
            faults["predictions that are no finite number"].append(f"{place}: {prediction!r}")
        yield Prediction(index, prediction)
