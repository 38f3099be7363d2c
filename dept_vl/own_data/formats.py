"""Rows as the files that the tasks read."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from dept_vl.formats.vqa_files import SOFT_SCORES
from dept_vl.metrics.vqa_accuracy import normalise, processing
from dept_vl.own_data.rows import OwnRow

ANNOTATORS = 10  # as in VQAv2: the official accuracy of a single annotator's answer is 0
KARPATHY = {"train": "train", "validation": "val", "test": "test"}  # our split name: Karpathy's

Splits = Mapping[str, Sequence[OwnRow]]
Record = dict[str, Any]


def task_files(task: str, splits: Splits) -> dict[str, bytes]:
    """The content of each file of a data folder, by name; equal for equal rows."""
    return {**dict(WRITERS[task](splits)), "task.yaml": _settings(task, splits).encode()}


def _vqa(splits: Splits) -> Iterator[tuple[str, bytes]]:
    """Lists in the format of LXMERT and VL-T5; a question's id is the number of its row."""
    for name, rows in splits.items():
        yield f"{name}.json", _list(map(_vqa_record, rows))


def _vqa_record(row: OwnRow) -> Record:
    answers = [row.answers[number % len(row.answers)] for number in range(max(ANNOTATORS, len(row.answers)))]
    counts = Counter(filter(None, map(processing(answers), answers)))
    return {
        "question_id": row.number,
        "id": row.own_id,
        "img_id": row.image_ids[0],
        "sent": row.text,
        "label": {answer: SOFT_SCORES[min(count, 4)] for answer, count in counts.items()},
        "answers": [{"answer_id": number, "answer": answer} for number, answer in enumerate(answers, start=1)],
        "question_type": " ".join(row.text.lower().split()[:2]),
        "answer_type": _answer_type(Counter(row.answers).most_common(1)[0][0]),
    }


def _answer_type(answer: str) -> str:
    plain = normalise(answer)
    if plain in ("yes", "no"):
        return "yes/no"
    return "number" if re.fullmatch(r"\d+([.:]\d+)?", plain) else "other"


def _gqa(splits: Splits) -> Iterator[tuple[str, bytes]]:
    """Official questions files. Answers are in lower case, as all of GQA's: they are compared as they stand."""
    for name, rows in splits.items():
        yield f"{name}_questions.json", _object({row.own_id: _gqa_record(row) for row in rows})


def _gqa_record(row: OwnRow) -> Record:
    answer = row.answers[0].lower()
    structural = "verify" if answer in ("yes", "no") else "query"
    return {
        "question": row.text,
        "imageId": row.image_ids[0],
        "answer": answer,
        "fullAnswer": answer,
        "isBalanced": True,
        "types": {"structural": structural, "semantic": "", "detailed": ""},
        "groups": {"global": None, "local": ""},
        "entailed": [],
        "equivalent": [],
        "semantic": [],
    }


def _nlvr2(splits: Splits) -> Iterator[tuple[str, bytes]]:
    """Official JSON lines; rows of one split with the same sentence form a group of the consistency."""
    for name, rows in splits.items():
        groups: dict[str, list[OwnRow]] = defaultdict(list)
        for row in rows:
            groups[row.text].append(row)
        identifiers = {
            row.number: f"{name}-{group}-{pair}-0"
            for group, members in enumerate(groups.values())
            for pair, row in enumerate(members)
        }
        yield f"{name}.json", b"".join(_json(_nlvr2_record(row, identifiers[row.number])) + b"\n" for row in rows)


def _nlvr2_record(row: OwnRow, identifier: str) -> Record:
    return {
        "identifier": identifier,
        "id": row.own_id,
        "sentence": row.text,
        "label": row.answers[0],
        "images": list(row.image_ids),
    }


def _captions(splits: Splits) -> Iterator[tuple[str, bytes]]:
    """One file in Karpathy's layout; the rows of an image are joined, and images numbered as they first occur."""
    by_image: dict[str, list[OwnRow]] = defaultdict(list)
    names = {row.number: name for name, rows in splits.items() for row in rows}
    for row in sorted(chain(*splits.values()), key=lambda row: row.number):
        by_image[row.image_ids[0]].append(row)
    images, sentence_count = [], 0
    for image_number, rows in enumerate(by_image.values(), start=1):
        sentences = [
            {"tokens": _words(caption), "raw": caption, "imgid": image_number, "sentid": sentence_id}
            for sentence_id, caption in enumerate(chain(*(row.answers for row in rows)), start=sentence_count)
        ]
        sentence_count += len(sentences)
        images.append(
            {
                "filename": rows[0].images[0].path.name,
                "imgid": image_number,
                "split": KARPATHY[names[rows[0].number]],
                "sentids": [sentence["sentid"] for sentence in sentences],
                "sentences": sentences,
            }
        )
    yield "dataset.json", b'{"dataset": "own", "images": ' + _list(images).rstrip() + b"}\n"


def _words(caption: str) -> list[str]:
    return re.sub(r"[^\w\s]", "", caption.lower()).split()


WRITERS: dict[str, Callable[[Splits], Iterator[tuple[str, bytes]]]] = {
    "vqa": _vqa,
    "caption": _captions,
    "nlvr2": _nlvr2,
    "gqa": _gqa,
}


def _settings(task: str, splits: Splits) -> str:
    """The layer of settings that training lays over those of the task."""
    names = {name: f"karpathy_{KARPATHY[name]}" if task == "caption" else name for name in splits}
    rows = splits["train"]
    lines = [
        "# How this folder differs from the task's own data set; any other setting of the task can be added.",
        "task:",
        f"  splits: {{{', '.join(f'{name}: {source}' for name, source in names.items())}}}",
        f"  images_per_example: {len(rows[0].images)}",
    ]
    if task == "vqa":
        lines.append("  answer_count: null  # a classification head tells all training answers apart")
    if task == "caption":
        captions, images = sum(len(row.answers) for row in rows), len({row.image_ids for row in rows})
        lines.append(f"  passes_per_epoch: {max(1, round(captions / images))}  # each caption once, on average")
    return "\n".join(lines) + "\n"


def _list(records: Iterable[Record]) -> bytes:
    """A JSON list with one record a line."""
    return b"[\n" + b",\n".join(map(_json, records)) + b"\n]\n"


def _object(records: Mapping[str, Record]) -> bytes:
    """A JSON object with one record a line."""
    return b"{\n" + b",\n".join(_json(key) + b": " + _json(record) for key, record in records.items()) + b"\n}\n"


def _json(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()
