"""The leaderboard file of SuperGLUE: JSON lines, each with an index and a label."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dept_vl.formats.files import KINDS, Faults, check_types, refuse
from dept_vl.formats.rows import label_name
from dept_vl.formats.submission.content import decode, id_faults, read_content, read_text, sentences
from dept_vl.types import Prediction
from feature_extraction.durable import write_durably

NESTED_EXAMPLE = '{"idx": 0, "passage": {"questions": [{"idx": 0, "answers": [{"idx": 0, "label": 1}]}]}}'


class LabelJsonl(NamedTuple):
    """The lines of such a file: ``{"idx": 0, "label": "true"}``; nested ones have a passage's questions and answers.

    Ids of nested labels are "passage-question-answer", by their indices.
    """

    labels: tuple[str, ...] = ()  # the only ones there are, in the order of their numbers; none: any text
    label_type: type = str  # int: labels are written as numbers
    nested: bool = False

    @property
    def example(self) -> str:
        """A line, for messages."""
        label = (self.labels or ("an answer",))[-1]
        return NESTED_EXAMPLE if self.nested else json.dumps({"idx": 0, "label": self.label_type(label)})


def read_label_jsonl(path: Path, form: LabelJsonl) -> list[Prediction]:
    """The labels of a file by their names, in its order; further keys are ignored, and repeated ids are the caller's.

    A label may be its name, number or boolean. What is none of the labels is given as it stands.

    Raises:
        InputDataError: it is no such file; all faults are named together.
    """
    text = read_text(path)
    faults: Faults = defaultdict(list)
    predictions = []
    for example_id, label in _labels(text, form, faults):
        if type(label) not in (str, int, bool):
            faults[f'"label" is {KINDS[type(label)]}. Lines are such as {form.example}'].append(example_id)
        given = label if isinstance(label, str) else json.dumps(label)
        predictions.append(Prediction(example_id, label_name(label, form.labels) or given))
    refuse(faults, path)
    return predictions


def write_label_jsonl(path: Path, form: LabelJsonl, predictions: Sequence[Prediction]) -> None:
    """Write a file that ``read_label_jsonl`` reads; indices are those of the ids, in the order in which they come."""
    rows: Iterable[Mapping[str, Any]]
    if form.nested:
        rows = _nest(predictions, form.label_type)
    else:
        rows = ({"idx": int(one.example_id), "label": form.label_type(one.answer)} for one in predictions)
    write_durably(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def check_label_jsonl(path: Path, form: LabelJsonl, wanted: Sequence[str] | None) -> list[str]:
    """Every fault of a file; without the wanted ids, missing and extra ones cannot be told.

    Raises:
        InputDataError: there is no such file.
    """
    return label_jsonl_faults(read_content(path), form, wanted)


def label_jsonl_faults(
    content: bytes, form: LabelJsonl, wanted: Sequence[str] | None, *, count: int | None = None
) -> list[str]:
    """Every fault of a file with this content; ``count`` is the number of labels it is to have."""
    text, unreadable = decode(content)
    if unreadable:
        return [unreadable]
    if text.lstrip().startswith("["):
        return [f"holds a JSON list, not lines such as {form.example}"]
    faults: Faults = defaultdict(list)
    ids = []
    for example_id, label in _labels(text, form, faults):
        ids.append(example_id)
        if type(label) is not form.label_type:
            faults[f'"label" is {KINDS[type(label)]}, not {KINDS[form.label_type]}'].append(example_id)
        elif form.labels and str(label) not in form.labels:
            faults[f"labels other than {', '.join(form.labels)}"].append(f"{example_id}: {json.dumps(label)}")
    found = [*sentences(faults), *id_faults(ids, wanted)]
    if count not in (None, len(ids)):
        found.append(f"the number of its labels is {len(ids):,}, but that of the test set is {count:,}")
    return found


def _labels(text: str, form: LabelJsonl, faults: Faults) -> Iterator[tuple[str, Any]]:
    """Ids and labels of all lines that have them, so that one with a wrong label is not said to be missing as well."""
    lines = text.split("\n")
    for number, line in enumerate(lines[: -1 if not lines[-1].strip() else None], start=1):
        place = f"line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            faults[f"lines that are no JSON such as {form.example}" if line.strip() else "blank lines"].append(place)
            continue
        if form.nested:
            yield from _nested_labels(row, place, faults)
        elif _is_label(row, place, faults):
            yield str(row["idx"]), row["label"]


def _nested_labels(row: Any, place: str, faults: Faults) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - from JSON
    if not check_types(row, {"idx": int, "passage": dict}, place, faults):
        return
    if not check_types(row["passage"], {"questions": list}, f"{place}, passage", faults):
        return
    for question in row["passage"]["questions"]:
        if check_types(question, {"idx": int, "answers": list}, f"{place}, question", faults):
            for answer in question["answers"]:
                if _is_label(answer, f"{place}, answer", faults):
                    yield f"{row['idx']}-{question['idx']}-{answer['idx']}", answer["label"]


def _is_label(row: Any, place: str, faults: Faults) -> bool:  # noqa: ANN401 - from JSON
    if not check_types(row, {"idx": int}, place, faults):
        return False
    if "label" not in row:
        faults['no "label"'].append(place)
    return "label" in row


def _nest(predictions: Sequence[Prediction], label_type: type) -> list[dict[str, Any]]:
    """Labels by passage and question, each where its first answer comes."""
    passages: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for one in predictions:
        passage, question, answer = map(int, one.example_id.split("-"))
        answers = passages.setdefault(passage, {}).setdefault(question, [])
        answers.append({"idx": answer, "label": label_type(one.answer)})
    return [
        {
            "idx": passage,
            "passage": {"questions": [{"idx": question, "answers": answers} for question, answers in one.items()]},
        }
        for passage, one in passages.items()
    ]
