"""Files of boxes: what is in one, whichever of the formats it has, and all that is wrong with it.

::

    {"41": [[x0, y0, x1, y1], ...], ...}                                 image id -> boxes
    {"41": {"boxes": [...], "scores": [...], "class_ids": [...]}, ...}   what else is known of them
    [{"image_id": "41", "boxes": [...], ...}, ...]                       a list of images
    {"units": "fraction", "detector": "my-detector", "images": ...}      either of them, with more about all boxes
    {"images": [...], "annotations": [...], ...}                         COCO annotations
    [{"image_id": 41, "bbox": [x, y, w, h], "category_id": 1, "score": 0.9}, ...]    COCO results

A ``.jsonl`` file has one image a line; ``units`` and ``detector`` may stand in a first line of their own. ``labels`` is
another name for ``class_ids``; ``width`` and ``height`` of an image say where its boxes were measured, if not in the
image itself. Coordinates are pixels unless ``units`` is "fraction" (of width and height).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from feature_extraction.errors import InputDataError

UNITS = ("pixels", "fraction")
FIRST = 20  # places that a message names of each fault
_ABOUT = ("units", "detector")  # keys that tell of all boxes
_FARTHEST = 2.0  # image sizes from its corner: what is farther away was not measured in fractions

ImageId = str | int  # a number, as in COCO's files, stands for file names that end in it
Faults = defaultdict[str, list[str]]  # what is wrong: the places where it is


class Boxes(NamedTuple):
    """The boxes of a file, image after image; x0, y0, x1, y1."""

    rows: dict[ImageId, int]  # the images
    starts: Int64[np.ndarray, " images_and_one"]  # of the boxes of each image
    boxes: Float64[np.ndarray, "n 4"]
    scores: Float64[np.ndarray, " n"] | None
    class_ids: Int64[np.ndarray, " n"] | None
    sizes: Int64[np.ndarray, "images 2"]  # height and width where the boxes were measured; 0: in the image itself
    units: str  # one of UNITS
    detector: str | None


class _Entry(NamedTuple):
    """What a file says of one image, unchecked."""

    place: str
    image_id: Any
    boxes: Any
    scores: Any = None
    class_ids: Any = None
    size: tuple[Any, Any] = (None, None)


def read_boxes(path: Path) -> Boxes:
    """The boxes of a file.

    Raises:
        InputDataError: the file cannot be read or is none of the formats; every fault is named, with its first places.
    """
    faults: Faults = defaultdict(list)
    about: dict[str, Any] = {}
    found = _Collected(faults)
    try:
        if path.suffix == ".jsonl":
            with path.open("rb") as lines:
                for entry in _lines(lines, about, faults):
                    found.add(entry)
        else:
            for entry in _entries(json.loads(path.read_bytes()), about, faults):
                found.add(entry)
    except OSError as error:
        raise InputDataError(
            f"features.regions is {path}, which cannot be read: {error.strerror}. Give the path of a .json or .jsonl "
            "file of boxes"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputDataError(
            f"The boxes file {path} is not one JSON value in UTF-8: {error}. Write it again, or name it .jsonl if each "
            "line is an image"
        ) from error
    boxes = found.boxes(about)
    if not (boxes.rows or faults):
        faults["no image in it"].append("the whole file")
    if faults:
        told = "; ".join(f"{fault}: {_count_and_first(places)}" for fault, places in faults.items())
        raise InputDataError(
            f"The boxes file {path} cannot be used: {told}. Correct the file; docs/features.md shows its formats"
        )
    return boxes


class _Collected:
    """The boxes of all entries so far, as arrays."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._rows: dict[ImageId, int] = {}
        self._boxes: list[np.ndarray] = []
        self._known: dict[str, list[np.ndarray]] = {"scores": [], "class_ids": []}
        self._sizes: list[tuple[int, int]] = []

    def add(self, entry: _Entry) -> None:
        """Check an entry, and take its arrays."""
        image_id, boxes = entry.image_id, _numbers(entry.boxes)
        if type(image_id) not in (str, int):
            self._fault("image_id is neither text nor a whole number", entry)
        elif image_id in self._rows:
            self._fault("an image stands there twice", entry)
        elif boxes is None or boxes.shape not in ((0,), (len(boxes), 4)):
            self._fault("boxes are no list of lists of 4 numbers", entry)
        elif not np.isfinite(boxes).all():
            self._fault("a box with a number that is not finite", entry)
        else:
            boxes = boxes.reshape(-1, 4).astype(np.float64)
            if (boxes[:, 2:] < boxes[:, :2]).any():
                self._fault("a box that ends before it begins", entry)
            self._rows[image_id] = len(self._boxes)
            self._boxes.append(boxes)
            self._add_known("scores", "iuf", entry, len(boxes))
            self._add_known("class_ids", "iu", entry, len(boxes))
            self._add_size(entry)

    def boxes(self, about: Mapping[str, Any]) -> Boxes:
        """All boxes, after a last look at them together."""
        counts = [len(boxes) for boxes in self._boxes]
        boxes = np.concatenate(self._boxes or [np.zeros((0, 4))])
        known = {name: np.concatenate(parts) if parts else None for name, parts in self._known.items()}
        for name, array in known.items():
            if array is not None and len(array) < len(boxes) and not self._faults:
                self._faults[f"{name} for {len(array):,} boxes only"].append(f"{len(boxes):,} boxes in all")
        for name in _ABOUT:
            if about.get(name) is not None and not (
                about[name] in UNITS if name == "units" else type(about[name]) is str
            ):
                wanted = " or ".join(UNITS) if name == "units" else "a text"
                self._faults[f"{name} is {about[name]!r}, not {wanted}"].append("the whole file")
        units = about.get("units")
        if units == "fraction":
            far = np.abs(boxes - 0.5).max(initial=0) > _FARTHEST
            fault = 'units is "fraction", but there are coordinates far outside 0 to 1, as of pixels'
        else:
            far = units is None and len(boxes) > 0 and boxes.max() <= 1
            fault = 'no coordinate is above 1, as in fractions: say which they are by "units": "fraction" or "pixels"'
        if far:
            self._faults[fault].append("the whole file")
        return Boxes(
            rows=self._rows,
            starts=np.cumsum([0, *counts], dtype=np.int64),
            boxes=boxes,
            scores=known["scores"],
            class_ids=None if known["class_ids"] is None else known["class_ids"].astype(np.int64),
            sizes=np.array(self._sizes, np.int64).reshape(-1, 2),
            units="pixels" if units is None else str(units),
            detector=about.get("detector"),
        )

    def _add_known(self, name: str, kinds: str, entry: _Entry, count: int) -> None:
        given = getattr(entry, name)
        if given is None or (count == 0 and given == []):
            return
        array = _numbers(given)
        if array is None or array.dtype.kind not in kinds or array.shape != (count,) or not np.isfinite(array).all():
            self._fault(f"{name} are not one {'number' if 'f' in kinds else 'whole number'} for each box", entry)
        else:
            self._known[name].append(array.astype(np.float64 if "f" in kinds else np.int64))

    def _add_size(self, entry: _Entry) -> None:
        height, width = entry.size
        if height is None and width is None:
            self._sizes.append((0, 0))
        elif all(type(side) is int and side > 0 for side in entry.size):
            self._sizes.append((height, width))
        else:
            self._fault("height and width are not two whole numbers above 0", entry)

    def _fault(self, fault: str, entry: _Entry) -> None:
        self._faults[fault].append(entry.place)


def _entries(content: Any, about: dict[str, Any], faults: Faults) -> Iterator[_Entry]:  # noqa: ANN401 - whatever JSON holds
    if isinstance(content, dict):
        about |= {key: value for key, value in content.items() if key in _ABOUT and not isinstance(value, list | dict)}
        if "annotations" in content:
            yield from _coco(content, faults)
            return
        content = content.get("images", {key: value for key, value in content.items() if key not in about})
    if isinstance(content, dict):
        for image_id, value in content.items():
            record = value if isinstance(value, dict) else {"boxes": value}
            yield _entry({**record, "image_id": image_id}, f"image {image_id!r}")
    elif isinstance(content, list) and any(isinstance(row, dict) and "bbox" in row for row in content[:1]):
        yield from _grouped(content, {}, faults)
    elif isinstance(content, list):
        for number, row in enumerate(content, start=1):
            if isinstance(row, dict):
                yield _entry(row, f"entry {number}")
            else:
                faults["no object with image_id and boxes"].append(f"entry {number}")
    else:
        faults["neither an object nor a list"].append("the whole file")


def _lines(lines: Iterator[bytes], about: dict[str, Any], faults: Faults) -> Iterator[_Entry]:
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            faults["no JSON"].append(f"line {number}")
            continue
        if number == 1 and isinstance(row, dict) and row and set(row) <= set(_ABOUT):
            about |= row
        elif isinstance(row, dict):
            yield _entry(row, f"line {number}")
        elif line.strip():
            faults["no object with image_id and boxes"].append(f"line {number}")


def _entry(row: Mapping[str, Any], place: str) -> _Entry:
    class_ids = row.get("class_ids", row.get("labels"))
    size = (row.get("height"), row.get("width"))
    return _Entry(place, row.get("image_id"), row.get("boxes"), row.get("scores"), class_ids, size)


def _coco(content: Mapping[str, Any], faults: Faults) -> Iterator[_Entry]:
    images: dict[Any, _Entry] = {}
    rows = content.get("images")
    for number, row in enumerate(rows if isinstance(rows, list) else (), start=1):
        if not isinstance(row, dict) or type(row.get("id")) not in (str, int):
            faults["no object with an id"].append(f"image {number}")
            continue
        name = row.get("file_name")
        image_id = PurePosixPath(name).stem if isinstance(name, str) else row["id"]
        size = (row.get("height"), row.get("width"))
        images[row["id"]] = _Entry(f"image {row['id']!r}", image_id, [], size=size)
    if not images:
        faults["annotations without images"].append("the whole file")
    elif isinstance(content["annotations"], list):
        yield from _grouped(content["annotations"], images, faults)
    else:
        faults["annotations are no list"].append("the whole file")


def _grouped(rows: list[Any], images: Mapping[Any, _Entry], faults: Faults) -> Iterator[_Entry]:
    """COCO's annotations or results by image; those of crowds are left out, since their boxes hold no single object."""
    boxes: defaultdict[Any, list[Any]] = defaultdict(list)
    scores: defaultdict[Any, list[Any]] = defaultdict(list)
    class_ids: defaultdict[Any, list[Any]] = defaultdict(list)
    for number, row in enumerate(rows, start=1):
        image_id = row.get("image_id") if isinstance(row, dict) else None
        box = _numbers(row.get("bbox")) if isinstance(row, dict) else None
        if type(image_id) not in (str, int) or box is None or box.shape != (4,):
            faults["no object with image_id and a bbox of 4 numbers"].append(f"annotation {number}")
        elif images and image_id not in images:
            faults["image_id is not among the images"].append(f"annotation {number}")
        elif not row.get("iscrowd"):
            x, y, width, height = row["bbox"]
            boxes[image_id].append((x, y, x + width, y + height))
            scores[image_id].append(row.get("score"))
            class_ids[image_id].append(row.get("category_id"))
    for image_id in images or boxes:
        entry = images.get(image_id) or _Entry(f"image {image_id!r}", image_id, [])
        yield entry._replace(
            boxes=boxes[image_id], scores=_all_or_none(scores[image_id]), class_ids=_all_or_none(class_ids[image_id])
        )


def _all_or_none(values: list[Any]) -> list[Any] | None:
    """The values, or None where there are none; a list with some of them is refused later."""
    return None if all(value is None for value in values) else values


def _numbers(given: Any) -> np.ndarray | None:  # noqa: ANN401 - whatever JSON holds
    """A list of numbers, or of lists of them, as an array; None if it is none."""
    try:
        array = np.array(given)
    except ValueError:  # lists of several lengths
        return None
    return array if isinstance(given, list) and (array.size == 0 or array.dtype.kind in "iuf") else None


def _count_and_first(places: list[str]) -> str:
    rest = ", ..." if len(places) > FIRST else ""
    return f"{len(places):,} ({', '.join(places[:FIRST])}{rest})"
