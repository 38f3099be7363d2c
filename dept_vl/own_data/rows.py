"""The rows of a table, checked in one pass for everything that training or scoring could not use."""

from __future__ import annotations

import difflib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from dept_vl.formats.files import Faults, count_and_first
from dept_vl.own_data.table import Column, Line, keys_of, read_lines, texts
from feature_extraction.errors import InputDataError
from feature_extraction.images.decoding import ImageFile
from feature_extraction.images.sources import list_images

TRUTHS = {**dict.fromkeys(("true", "1", "yes"), "True"), **dict.fromkeys(("false", "0", "no"), "False")}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}  # in the table: in our words


class Form(NamedTuple):
    """The columns that a task needs: what is seen, what is asked or stated (if anything), and what is to come out."""

    images: Column
    text: Column | None
    answers: Column


_FILES = ("image", "img", "photo", "picture", "filename", "file", "imagefile", "imagepath", "path", "imageid", "imgid")
_IMAGE = Column((*_FILES, "images"))
_QUESTION = Column(("question", "query", "sent", "text"))
_SENTENCE = Column(("sentence", "sent", "statement", "text", "caption", "question"))
_CAPTIONS = Column(("captions", "caption", "sentences", "sentence", "text", "description"), many=True)
FORMS = {
    "vqa": Form(_IMAGE, _QUESTION, Column(("answers", "answer", "labels", "label", "target"), many=True)),
    "caption": Form(_IMAGE, None, _CAPTIONS),
    "nlvr2": Form(Column(("images", *_FILES), many=True), _SENTENCE, Column(("label", "answer", "truth", "target"))),
    "gqa": Form(_IMAGE, _QUESTION, Column(("answer", "answers", "label", "target"))),
}
ID = Column(("id", "questionid", "identifier", "uid", "qid", "exampleid"))
SPLIT = Column(("split", "subset", "partition"))
OPTIONAL = (ID, SPLIT)  # but where there is such a column, each row fills it


@dataclass(frozen=True, slots=True)
class OwnRow:
    """One row of the table."""

    number: int  # 1 for the first row
    line: int  # of the file, where the row begins
    own_id: str  # as the table says, or else the row's number
    images: tuple[ImageFile, ...]
    text: str  # question or statement; empty for captions
    answers: tuple[str, ...]  # answers or captions; for nlvr2 "True" or "False"
    split: str | None  # where the table says it

    @property
    def image_ids(self) -> tuple[str, ...]:
        """The images as a feature store calls them."""
        return tuple(image.image_id for image in self.images)

    @property
    def place(self) -> str:
        """Where the row is, for messages."""
        return f"line {self.line}"


class OwnTable(NamedTuple):
    """The rows of a table in its order, and what is odd about it but no fault."""

    rows: list[OwnRow]
    notes: list[str]


def read_table(path: Path, task: str, image_source: Path) -> OwnTable:
    """The rows of a CSV or JSONL file, with their images found in a folder.

    Raises:
        InputDataError: there are no rows, or anything is wrong with one; all faults are named together.
    """
    faults: Faults = defaultdict(list)
    lines = read_lines(path, faults)
    keys = tuple(dict.fromkeys(key for line in lines for key in line.cells))
    form = FORMS[task]
    columns = [column for column in (*form, *OPTIONAL) if column and keys_of(column, keys)]
    images = _Images(image_source)
    rows = [_row(number, line, form, columns, images, faults) for number, line in enumerate(lines, start=1)]
    if task == "nlvr2":
        rows = list(_with_truth(rows, faults))
    _check_ids(rows, faults)
    notes = [*_unused(columns, keys), *_repetitions(rows, form, faults), *_leaks(rows, form, faults)]

    found = [f"{fault}: {count_and_first(places)}" for fault, places in faults.items() if places]
    found += [_absence(column, keys) for column in form if column and column not in columns and lines]
    found += images.faults()
    if not lines and not found:
        found = ["there are no rows"]
    if found:
        raise InputDataError(f"{path}: {'; '.join(found)}. Nothing was written: correct this and run the command again")
    return OwnTable(rows, notes)


class _Images:
    """The images of a folder, found by id, file name or path; what is not found is kept for one message."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._folder = source if source.is_dir() else source.parent
        self._missing: dict[str, None] = {}
        self._fault: str | None = None
        self._images: list[ImageFile] = []
        try:
            self._images = list_images(source)
        except InputDataError as error:
            self._fault = str(error)
        files = [image for image in self._images if image.part is None]
        self._by_name = {image.part.name: image for image in self._images if image.part is not None}
        self._by_name |= {image.path.name: image for image in files}
        self._by_name |= {image.image_id: image for image in self._images}
        self._by_path = {os.path.normpath(image.path): image for image in files}

    def find(self, name: str) -> ImageFile:
        """The image of a table's entry, which is an id, a file name, or a path relative to the folder."""
        path = os.path.normpath(self._folder / name.replace("\\", "/"))
        image = self._by_name.get(name) or self._by_path.get(path)
        if image is None:
            self._missing[name] = None
        return image or ImageFile(name, Path(path))

    def faults(self) -> Iterator[str]:
        """What is wrong with the folder, or else with the entries."""
        if self._fault:
            yield self._fault
        elif self._missing:
            yield (
                f"images that are not in {self._source}, which has {len(self._images):,} such as "
                f"{self._images[0].path.name}: {count_and_first(list(self._missing))}"
            )


def _row(number: int, line: Line, form: Form, columns: Sequence[Column], images: _Images, faults: Faults) -> OwnRow:
    """The row of a line; what it lacks in one of the columns is a fault."""
    said = {column: texts(line, column, faults) for column in columns}
    for column in columns:
        if not said[column]:
            faults[f'rows without "{column.name}"'].append(line.place)
    split = "".join(said.get(SPLIT, [])).lower()
    if split and split not in SPLITS:
        faults['a "split" that is none of train, validation, test'].append(f"{split!r} in {line.place}")
    return OwnRow(
        number=number,
        line=line.number,
        own_id="".join(said.get(ID, [str(number)])),
        images=tuple(images.find(name) for name in said.get(form.images, [])),
        text=" ".join(_spaced(said.get(form.text, []))) if form.text else "",
        answers=tuple(_spaced(said.get(form.answers, []))),
        split=SPLITS.get(split),
    )


def _spaced(found: Iterable[str]) -> Iterator[str]:
    """The texts on one line, with single spaces: caption scores go by lines, and tokenizers differ about the rest."""
    return (" ".join(text.split()) for text in found)


def _with_truth(rows: Sequence[OwnRow], faults: Faults) -> Iterator[OwnRow]:
    """The rows with labels as NLVR2 spells them."""
    for row in rows:
        for answer in row.answers:
            if answer.lower() not in TRUTHS:
                faults['a "label" that is none of true, false, yes, no, 1, 0'].append(f"{answer!r} in {row.place}")
        if row.images and len(row.images) != len(rows[0].images):
            faults[f"another number of images than the {len(rows[0].images)} of the first row"].append(row.place)
        yield replace(row, answers=tuple(TRUTHS.get(answer.lower(), answer) for answer in row.answers))


def _check_ids(rows: Iterable[OwnRow], faults: Faults) -> None:
    first: dict[str, OwnRow] = {}
    for row in rows:
        other = first.setdefault(row.own_id, row)
        if row.own_id and other is not row:
            faults["the same id twice"].append(f"{row.own_id!r} in {other.place} and {row.place}")


def _repetitions(rows: Iterable[OwnRow], form: Form, faults: Faults) -> Iterator[str]:
    """What is there twice is a fault; what is asked again and answered differently is odd."""
    asked = form.text.name if form.text else form.answers.name
    seen: dict[object, dict[object, OwnRow]] = defaultdict(dict)  # image and question: answers: the row
    conflicts: list[object] = []
    for row in rows:
        pairs = [(row.text, tuple(sorted(row.answers)))] if form.text else [(caption, ()) for caption in row.answers]
        for text, answers in pairs:
            earlier = seen[row.image_ids, text] if row.images and text and row.answers else {}
            if answers in earlier:
                what = "rows" if form.text else "captions of an image"
                faults[f"{what} given twice"].append(f"{earlier[answers].place} and {row.place}")
            elif earlier:
                conflicts.append(f"{next(iter(earlier.values())).place} and {row.place}")
            earlier[answers] = row
    if conflicts:
        yield (
            f"the same {asked} about the same images, with another {form.answers.name}: {count_and_first(conflicts)}. "
            "All are kept; where several people answered one question, their answers belong into one row"
        )


def _leaks(rows: Iterable[OwnRow], form: Form, faults: Faults) -> Iterator[str]:
    """Images that the table puts into several splits: Karpathy's layout cannot say it, elsewhere it flatters."""
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for image_id in row.image_ids if row.split else ():
            splits[image_id].add(str(row.split))
    leaks: list[object] = [image_id for image_id, found in splits.items() if len(found) > 1]
    if form.text is None:
        faults["images with captions in several splits"] += leaks
    elif leaks:
        yield (
            f"images in several splits: {count_and_first(leaks)}. Scores of images that were trained on are too good; "
            "without the column, rows are split by image"
        )


def _unused(columns: Iterable[Column], keys: tuple[str, ...]) -> Iterator[str]:
    used = {key for column in columns for group in keys_of(column, keys) for key in group}
    unused = [key for key in keys if key not in used]
    if unused:
        yield f"columns not used: {', '.join(unused)}"


def _absence(column: Column, keys: Sequence[str]) -> str:
    """That there is no such column, and the most similar one."""
    nearest = difflib.get_close_matches(column.name, keys, n=1, cutoff=0.5)
    meant = f"; is {nearest[0]!r} meant?" if nearest else ""
    return f'no column "{column.name}" (there are: {", ".join(keys)}{meant})'
