"""The leaderboard file that is a CSV without header: ``identifier,True`` or ``identifier,False`` in a line."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from dept_vl.formats.files import Faults, refuse
from dept_vl.formats.submission.content import decode, id_faults, read_content, read_text, sentences
from dept_vl.types import Prediction

LABELS = ("True", "False")  # as in NLVR2's data; its scorer compares them lower-cased


def read_label_csv(path: Path, labels: Sequence[str] = LABELS) -> list[Prediction]:
    """The answers of a file, in its order; capitals of labels make no difference, and repeated ids are the caller's.

    Raises:
        InputDataError: it is no such file; all faults are named together.
    """
    text = read_text(path)
    faults: Faults = defaultdict(list)
    predictions = list(_predictions(text, labels, faults))
    refuse(faults, path)
    return predictions


def check_label_csv(path: Path, wanted: Sequence[str] | None, labels: Sequence[str] = LABELS) -> list[str]:
    """Every fault of a file; without the wanted ids, missing and extra ones cannot be told.

    Raises:
        InputDataError: there is no such file.
    """
    text, unreadable = decode(read_content(path))
    if unreadable:
        return [unreadable]
    if text.lstrip()[0] in "[{":
        return [f"holds JSON, not a CSV with lines such as dev-0-0-0,{labels[0]}"]
    faults: Faults = defaultdict(list)
    ids = [one.example_id for one in _predictions(text, labels, faults)]
    return [*sentences(faults), *id_faults(ids, wanted)]


def _predictions(text: str, labels: Sequence[str], faults: Faults) -> Iterator[Prediction]:
    """What can be made out of each line, whatever is wrong with it, so that an id is not said to be missing as well."""
    form = f"not identifier,{labels[0]}"
    known = {label.lower() for label in labels}
    lines = re.split(r"\r\n|\r|\n", text)
    for number, line in enumerate(lines[: -1 if not lines[-1] else None], start=1):
        place = f"line {number}"
        if not line.strip():
            faults["blank lines"].append(place)
            continue
        fields = re.split(r"[,;\t]", line)
        identifier, label = (field.strip(" \"'") for field in (*fields, "")[:2])
        if number == 1 and not re.search(r"\d", identifier):
            faults["a header in the place of the first example"].append(repr(line))
            continue
        if '"' in line or "'" in line:
            faults[f"quotes, {form}"].append(place)
        if "\t" in line or ";" in line:
            faults[f"a tab or semicolon, {form}"].append(place)
        if len(fields) != 2:
            faults[f"{len(fields)} {'column' if len(fields) == 1 else 'columns'}, {form}"].append(place)
        if any(field != field.strip(" ") for field in fields):
            faults[f"spaces around a field, {form}"].append(place)
        if re.search(r"-img\d|\.png$", identifier):
            faults["an image's name in the place of the example's identifier"].append(f"{place}: {identifier}")
        if len(fields) > 1 and label.lower() not in known:
            faults[f"labels other than {' and '.join(labels)}"].append(f"{place}: {label!r}")
        yield Prediction(identifier.removesuffix(".png"), label)
