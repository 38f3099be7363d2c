"""The prediction file of SQuAD and MRQA: one JSON object, each question's id with its answer."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dept_vl.formats.files import KINDS, Faults, refuse
from dept_vl.formats.submission.content import decode, id_faults, read_content, sentences
from dept_vl.types import Prediction
from feature_extraction.durable import write_durably
from feature_extraction.errors import InputDataError

EXAMPLE = '{"56be4db0acb8001400a502ec": "Denver Broncos", ...}'


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its repeated keys."""


def read_answer_object(path: Path) -> list[Prediction]:
    """The answers of a file, in its order; an id that comes twice gives two.

    Raises:
        InputDataError: it is no such file; all faults are named together.
    """
    pairs, unreadable = _pairs(read_content(path))
    if unreadable:
        raise InputDataError(f"{path} {unreadable}")
    refuse(_wrong_answers(pairs), path)
    return [Prediction(example_id, answer) for example_id, answer in pairs]


def write_answer_object(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write a file that ``read_answer_object`` reads: an answer in a line, equal bytes for equal predictions."""
    lines = [f"{json.dumps(one.example_id)}: {json.dumps(one.answer)}" for one in predictions]
    write_durably(path, ("{" + ",\n ".join(lines) + "}\n").encode())


def check_answer_object(path: Path, wanted: Sequence[str] | None) -> list[str]:
    """Every fault of a file; without the wanted ids, missing and extra ones cannot be told.

    Raises:
        InputDataError: there is no such file.
    """
    pairs, unreadable = _pairs(read_content(path))
    if unreadable:
        return [unreadable]
    return [*sentences(_wrong_answers(pairs)), *id_faults([example_id for example_id, _ in pairs], wanted)]


def _pairs(content: bytes) -> tuple[_Pairs, str]:
    """Ids and answers, repeated ids too; and if there are none, why."""
    text, unreadable = decode(content)
    if unreadable:
        return _Pairs(), unreadable
    try:
        found = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        return _Pairs(), f"is not JSON: {error}. A prediction file is {EXAMPLE}"
    if not isinstance(found, _Pairs):
        return _Pairs(), f"holds {KINDS[type(found)]}, not an object. A prediction file is {EXAMPLE}"
    return found, "" if found else f"holds no answers. A prediction file is {EXAMPLE}"


def _wrong_answers(pairs: _Pairs) -> Faults:
    faults: Faults = defaultdict(list)
    for example_id, answer in pairs:
        if not isinstance(answer, str):
            kind = "an object" if isinstance(answer, _Pairs) else KINDS[type(answer)]
            faults[f"answers that are {kind}, not text"].append(example_id)
    return faults
