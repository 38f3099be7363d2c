"""Region features as tab-separated text, a line per image, arrays in base64: LXMERT's and bottom-up attention's.

::

    img_id  img_h  img_w  objects_id  objects_conf  attrs_id  attrs_conf  num_boxes  boxes  features
    image_id  image_w  image_h  num_boxes  boxes  features

Ids of classes are int64, the rest float32; boxes [V 4] are in pixels. There is no header. The first layout is of
LXMERT (``src/utils.py``), the second of bottom-up attention (``tools/read_tsv.py``). Files have tens of gigabytes: the
first pass keeps a few numbers of each line, and lines are then read one by one.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feature_extraction.errors import InputDataError
from feature_extraction.interchange.image_arrays import Look, Unusable, announced, look_of, looked, usable
from feature_extraction.interchange.sources import listed, twice
from feature_extraction.shard_work import Stop

LXMERT = (
    *("img_id", "img_h", "img_w", "obj_id", "obj_conf", "attr_id", "attr_conf"),
    *("num_boxes", "boxes", "features"),
)
BOTTOM_UP = ("img_id", "img_w", "img_h", "num_boxes", "boxes", "features")
LAYOUTS = {len(layout): layout for layout in (LXMERT, BOTTOM_UP)}
LONGEST_LINE = 256 * 2**20  # bytes; 100 regions of width 2048 take 1.1 million

_WHOLE_NUMBERS = ("img_h", "img_w", "num_boxes")
_INT64, _FLOAT32 = np.dtype("<i8"), np.dtype("<f4")
_COLUMNS: dict[str, np.dtype[Any]] = {
    **dict.fromkeys(("obj_id", "attr_id"), _INT64),
    **dict.fromkeys(("obj_conf", "attr_conf", "boxes", "features"), _FLOAT32),
}


class Line(NamedTuple):
    """Where an image stands."""

    number: int  # counted from 1
    start: int  # in bytes
    length: int


class TSVFile:
    """A file whose lines are known."""

    grid = False

    def __init__(self, path: Path, stop: Stop) -> None:
        """List the images and the shapes of their features.

        Raises:
            InputDataError: a line that belongs to no image, or an image that stands twice.
        """
        self._path = path
        self._lines: dict[str, Line] = {}
        self._layout: tuple[str, ...] = ()
        self.looks: dict[str, Look | Unusable] = {}
        for line, text in listed(path, _lines(path), stop):
            columns = text.split(b"\t")
            if not self._lines:
                self._layout = self._layout_of(columns, line)
            if len(columns) == 1:
                raise InputDataError(
                    f"Line {line.number} of {path} has no tab: {_shortened(text)}. The file was cut off or damaged: "
                    "get it anew, or delete this line"
                )
            image_id = _text(columns[0])
            if image_id in self._lines:
                raise twice(image_id, f"line {self._lines[image_id].number} of {path}", f"line {line.number}")
            self._lines[image_id] = line
            self.looks[image_id] = looked(self._look, columns)

    def place(self, image_id: str) -> str:
        """The line, for the user."""
        return f"{self._path}, line {self._lines[image_id].number} (image {image_id!r})"

    def read(self, image_id: str) -> dict[str, np.ndarray]:
        """The arrays of an image; see ``FeatureSource``."""
        look, line = announced(self.looks[image_id]), self._lines[image_id]
        with self._path.open("rb") as file:
            file.seek(line.start)
            columns = self._columns(file.read(line.length).rstrip(b"\r\n").split(b"\t"))
        if _text(columns.pop("img_id")) != image_id:
            raise Unusable("the line is of another image now; the file changed while it was read")
        boxes = int(columns.pop("num_boxes"))
        found: dict[str, np.ndarray] = {}
        for name, text in columns.items():
            if name in _COLUMNS:
                raw = _decoded(name, text)
                if len(raw) % (boxes * _COLUMNS[name].itemsize):
                    raise Unusable(_wrong_size(name, len(raw), boxes))
                array = np.frombuffer(raw, _COLUMNS[name])
                found[name] = array.reshape(boxes, -1) if name in ("boxes", "features") else array
            else:
                found[name] = np.array(int(text))
        return usable(found, look)

    def _layout_of(self, columns: list[bytes], line: Line) -> tuple[str, ...]:
        if len(columns) not in LAYOUTS:
            raise InputDataError(
                f"{self._path} is no file of region features: line {line.number} has {len(columns)} columns between "
                f"tabs, expected {len(LXMERT)} as LXMERT has ({', '.join(LXMERT)}) or {len(BOTTOM_UP)} as bottom-up "
                "attention has. Check --source and --format"
            )
        return LAYOUTS[len(columns)]

    def _columns(self, columns: list[bytes]) -> dict[str, bytes]:
        if len(columns) != len(self._layout):
            raise Unusable(f"{len(columns)} columns, expected {len(self._layout)}: {', '.join(self._layout)}")
        named = dict(zip(self._layout, columns, strict=True))
        for name in _WHOLE_NUMBERS:
            if not named[name].isdigit():
                raise Unusable(f"{name} is {_shortened(named[name])}, expected a whole number")
        return named

    def _look(self, columns: list[bytes]) -> Look:
        named = self._columns(columns)
        boxes, coded = int(named["num_boxes"]), named["features"]
        size = len(coded) // 4 * 3 - coded[-2:].count(b"=")
        if boxes == 0 or size % (4 * boxes):
            raise Unusable(_wrong_size("features", size, boxes))
        return look_of((boxes, size // (4 * boxes)), _FLOAT32, named)


def open_source(path: Path, stop: Stop) -> TSVFile:
    """List the images of a file."""
    return TSVFile(path, stop)


def _lines(path: Path) -> Iterator[tuple[Line, bytes]]:
    """The lines with something in them, without their ends."""
    start = 0
    with path.open("rb") as file:
        for number, text in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
            if len(text) == LONGEST_LINE:
                raise InputDataError(
                    f"Line {number} of {path} has more than {LONGEST_LINE:,} bytes. That is no file of region "
                    "features: check --source and --format"
                )
            if not text.isspace():
                yield Line(number, start, len(text)), text.rstrip(b"\r\n")
            start += len(text)


def _decoded(name: str, text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Unusable(f"{name} are no base64: {error}") from error


def _wrong_size(name: str, size: int, boxes: int) -> str:
    return f"{size:,} bytes of {name} do not make {boxes} regions of {_COLUMNS[name]}"


def _text(column: bytes) -> str:
    """An image id, as Python's csv module writes it: in quotes where it holds some."""
    text = column.decode(errors="surrogateescape")
    quoted = len(text) > 1 and text.startswith('"') and text.endswith('"')
    return text[1:-1].replace('""', '"') if quoted else text


def _shortened(text: bytes) -> str:
    return repr(text.decode(errors="replace")[:60])
