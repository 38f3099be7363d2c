"""The leaderboard file that is one JSON list of objects, each with an id and an answer."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dept_vl.formats.files import KINDS, Faults, check_types, collector_paused, read_json, refuse
from dept_vl.formats.submission.content import decode, id_faults, read_content, sentences
from dept_vl.types import Prediction
from feature_extraction.durable import write_durably
from feature_extraction.errors import InputDataError

LONGEST_ANSWER = 1_000  # characters; human captions of COCO have up to about 250
UNUSUAL = re.compile(r"[<\[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")  # only such answers are looked at
UNUSUAL_ANSWERS = {
    "answers with special tokens of a model (<pad>, </s>, <unk>, <extra_id_0>, ...)": re.compile(
        r"<pad>|</?s>|<unk>|<extra_id_\d+>|<\|\w+\|>|\[(?:PAD|CLS|SEP|UNK)\]"
    ),
    "answers with a line break": re.compile(r"[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]"),
    "answers with a control character": re.compile(r"[\x00-\x08\x0e-\x1b\x1f\x7f]"),
    "answers with half a character (a lone surrogate), which UTF-8 cannot hold": re.compile(r"[\ud800-\udfff]"),
}


class JsonList(NamedTuple):
    """The rows of such a file."""

    id_key: str
    id_type: type  # int or str
    answer_key: str
    example: str  # of a whole file, for messages: [{"question_id": 1, "answer": "red"}, ...]
    whole: str = ""  # a sentence: which ids the server wants; said of a file that has others
    lower_case: bool = False  # answers are compared, as they are, with lower-case ones

    @property
    def types(self) -> dict[str, type]:
        """The keys of a row, and the types of their values."""
        return {self.id_key: self.id_type, self.answer_key: str}


def read_json_list(path: Path, rows: JsonList) -> list[Prediction]:
    """The answers of a file, in its order; further keys are ignored, and repeated ids are the caller's.

    Raises:
        InputDataError: it is no such list; all faults are named together.
    """
    found = read_json(path)
    if not isinstance(found, list):
        raise InputDataError(f"{path} holds {KINDS[type(found)]}, not a list. A results file is {rows.example}")
    faults: Faults = defaultdict(list)
    for index, row in enumerate(found):
        check_types(row, rows.types, f"row {index}", faults)
    refuse(faults, path)
    return [Prediction(str(row[rows.id_key]), row[rows.answer_key]) for row in found]


def write_json_list(path: Path, rows: JsonList, predictions: Sequence[Prediction]) -> None:
    """Write a file that ``read_json_list`` reads: a row in a line, equal bytes for equal predictions."""
    lines = [
        json.dumps({rows.id_key: rows.id_type(one.example_id), rows.answer_key: one.answer}) for one in predictions
    ]
    write_durably(path, ("[" + ",\n ".join(lines) + "]\n").encode())


def check_json_list(path: Path, rows: JsonList, wanted: Sequence[str] | None) -> list[str]:
    """Every fault of a file; without the wanted ids, missing and extra ones cannot be told.

    Raises:
        InputDataError: there is no such file.
    """
    return json_list_faults(read_content(path), rows, wanted)


@collector_paused()
def json_list_faults(content: bytes, rows: JsonList, wanted: Sequence[str] | None) -> list[str]:
    """Every fault of a file with this content."""
    text, unreadable = decode(content)
    if unreadable:
        return [unreadable]
    strict = _Strict()
    try:
        found = json.loads(text, parse_constant=strict.constant, object_pairs_hook=strict.object)
    except json.JSONDecodeError as error:
        return [f"{_no_json(text, error)}. A results file is {rows.example}"]
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        return [f"is not JSON that a server reads: {error}. A results file is {rows.example}"]
    if not isinstance(found, list) or not found:
        kind = "a list without rows" if found == [] else f"{KINDS[type(found)]}, not a list"
        keys = f" (its keys: {', '.join(list(found)[:5])})" if isinstance(found, dict) else ""
        return [f"holds {kind}{keys}. A results file is {rows.example}"]
    faults: Faults = defaultdict(list)
    ids = list(_ids(found, rows, faults))
    return [*strict.faults(), *sentences(faults), *_key_hints(found, rows), *id_faults(ids, wanted, rows.whole)]


class _Strict:
    """Hooks of the JSON reader, which alone takes what other readers refuse."""

    def __init__(self) -> None:
        self.constants: Counter[str] = Counter()
        self.repeated: Counter[str] = Counter()

    def constant(self, name: str) -> None:
        self.constants[name] += 1

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            self.repeated.update(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return found

    def faults(self) -> Iterator[str]:
        yield from (f"{name}, which is no JSON: {count:,} times" for name, count in self.constants.items())
        yield from (f'rows with "{key}" more than once: {count:,}' for key, count in self.repeated.items())


def _no_json(text: str, error: json.JSONDecodeError) -> str:
    """What a text is that JSON's reader stops at."""
    place = f"line {error.lineno:,}, column {error.colno:,}"
    start, end, here = text.lstrip()[0], text.rstrip()[-1], text[error.pos : error.pos + 1]
    if error.msg == "Extra data" and start == "{":
        return f"holds JSON lines (a second value begins at {place}) instead of one list"
    if error.msg == "Extra data" and start == "[":
        return f"goes on after the end of its list, at {place}. Join the lists to one"
    if start == "[" and end != "]":
        return f"is cut off: it ends in {text.rstrip()[-20:]!r} without a ]. Write or copy it again"
    if here == "'":
        return f"has single quotes, as Python prints ({place}), and is not JSON. Write it with json.dump"
    if here in ("]", "}") or error.msg.startswith("Illegal trailing comma"):
        return f"is not JSON: a comma too many before {place}"
    if error.msg.startswith("Invalid control character"):
        return f"is not JSON: a bare line break or control character in a text at {place}. Write it with json.dump"
    return f"is not JSON: {error.msg} at {place}. It begins with {text.strip()[:40]!r}"


def _ids(found: Sequence[Any], rows: JsonList, faults: Faults) -> Iterator[str]:
    """The ids of all rows that have any, so that one of a wrong type is not said to be missing as well."""
    id_key, id_type, answer_key = rows.id_key, rows.id_type, rows.answer_key
    blank = []
    for index, row in enumerate(found):
        if check_types(row, rows.types, f"row {index}", faults):
            _check_answer(row[answer_key], row[id_key], rows, faults)
            if not row[answer_key].strip():
                blank.append(row[id_key])
        if isinstance(row, dict) and type(row.get(id_key)) in (id_type, int, str):
            yield str(row[id_key])
    if len(blank) == len(found):
        faults["all answers are blank"] = blank


def _check_answer(answer: str, example_id: object, rows: JsonList, faults: Faults) -> None:
    if UNUSUAL.search(answer):
        for fault, pattern in UNUSUAL_ANSWERS.items():
            if pattern.search(answer):
                faults[fault].append(example_id)
    if len(answer) > LONGEST_ANSWER:
        faults[f"answers of more than {LONGEST_ANSWER:,} characters"].append(example_id)
    if rows.lower_case and answer != answer.strip().lower():
        faults["answers with capitals or outer spaces, which equal no right answer"].append(example_id)


def _key_hints(found: Sequence[Any], rows: JsonList) -> Iterator[str]:
    """Which of its keys the first row with wrong ones means."""
    row = next((one for one in found if isinstance(one, dict) and not rows.types.keys() <= one.keys()), None)
    if row is None:
        return
    foreign = {_letters(key): key for key in row if key not in rows.types}
    for key in rows.types:
        near = difflib.get_close_matches(_letters(key), foreign, n=1, cutoff=0.5)
        if key not in row and near:
            yield f'write "{key}" instead of "{foreign[near[0]]}"'
    yield f"a row has the keys {', '.join(row) or 'none'}, but a results file is {rows.example}"


def _letters(key: str) -> str:
    return re.sub(r"[\W_]", "", key).lower()
