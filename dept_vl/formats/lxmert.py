"""The JSON lists in which LXMERT, and VL-T5 after it, hand on VQAv2, GQA and NLVR2."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from sys import intern
from typing import Any

from dept_vl.formats.files import KINDS, Faults, check_types, collector_paused, read_json, refuse
from dept_vl.types import Example, Target
from feature_extraction.errors import InputDataError

TEXT_KEYS = ("sent", "question")  # the first that a record has
SLICE_KEYS = ("question_type", "answer_type")
TRUTHS = ("false", "true")  # what the labels 0 and 1 of NLVR2 stand for


@collector_paused()
def read_lxmert(
    path: Path,
    *,
    id_key: str = "question_id",
    id_type: type = int,
    image_keys: Sequence[str] = ("img_id",),
    label_type: type = dict,
) -> list[Example]:
    """The records of one list, in its order.

    ``label`` gives the targets: {answer: score} of VQA and GQA as it stands, 0 or 1 of NLVR2 (``label_type`` int) as
    "false" or "true". A label may be empty, where no answer is in LXMERT's vocabulary, or absent in all records, where
    it is withheld. ``answers`` gives the references where the records have any, ``question_type`` and ``answer_type``
    the slices.

    Raises:
        InputDataError: there is no such file, or it is no such list; all faults are named together.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        form = ", ".join(f'"{key}": ...' for key in (id_key, *image_keys, TEXT_KEYS[0], "label"))
        kind = "an empty list" if rows == [] else KINDS[type(rows)]
        raise InputDataError(
            f"{path} holds {kind}. A file of LXMERT or VL-T5 is [{{{form}}}, ...]. Check that it is whole, and that it "
            "is not an official file of the data set under another name"
        )
    faults: Faults = defaultdict(list)
    withheld = not any(isinstance(row, dict) and "label" in row for row in rows)
    wanted = {id_key: id_type, **dict.fromkeys(image_keys, str), **({} if withheld else {"label": label_type})}
    examples: dict[object, Example] = {}
    for index, row in enumerate(rows):
        if check_types(row, wanted, f"row {index}", faults):
            if row[id_key] in examples:
                faults[f"duplicate {id_key}"].append(row[id_key])
            examples[row[id_key]] = Example(
                example_id=str(row[id_key]),
                text=_text(row, index, faults),
                image_ids=tuple(row[key] for key in image_keys),
                references=_answers(row, faults, row[id_key]),
                targets=() if withheld else _targets(row["label"], faults, row[id_key]),
                slices=_slices(*(row.get(key) for key in SLICE_KEYS)),
            )
    refuse(faults, path)
    return list(examples.values())


def _text(row: Mapping[str, Any], index: int, faults: Faults) -> str:
    key = next((key for key in TEXT_KEYS if key in row), TEXT_KEYS[0])
    return str(row[key]) if check_types(row, {key: str}, f"row {index}", faults) else ""


def _targets(label: Any, faults: Faults, place: object) -> tuple[Target, ...]:  # noqa: ANN401 - from JSON
    if isinstance(label, int):
        if label in (0, 1):
            return (Target(TRUTHS[label], 1.0),)
        faults['"label" is neither 0 nor 1'].append(place)
    elif all(type(score) in (int, float) and 0 <= score <= 1 for score in label.values()):
        return tuple(Target(intern(answer), float(score)) for answer, score in label.items() if score)
    else:
        faults['"label" has a score that is no number from 0 to 1'].append(place)
    return ()


def _answers(row: Mapping[str, Any], faults: Faults, place: object) -> tuple[str, ...]:
    """The human answers, which are written as texts or as official records."""
    rows = row.get("answers", [])
    answers = [one.get("answer") if isinstance(one, dict) else one for one in rows] if isinstance(rows, list) else [0]
    texts = tuple(intern(one) for one in answers if isinstance(one, str))
    if len(texts) != len(answers):
        faults['"answers" is not a list of texts or of {"answer": text, ...}'].append(place)
    return texts


@cache  # one record for each pair of types, not for each question
def _slices(*values: object) -> Mapping[str, str]:
    return {key: value for key, value in zip(SLICE_KEYS, values, strict=True) if isinstance(value, str)}
