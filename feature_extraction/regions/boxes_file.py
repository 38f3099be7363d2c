"""Regions from a file of boxes, which any detector can have made."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from feature_extraction.errors import InputDataError
from feature_extraction.images.inputs import Inputs
from feature_extraction.images.preprocessing import Transform
from feature_extraction.regions.boxes_formats import read_boxes
from feature_extraction.regions.regions import Candidates, Choice, Regions, choose, padded
from feature_extraction.settings import ExtractionSettings

_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d*_)?(\d+)")  # COCO_train2014_000000000042 and 000000000042 are image 42
_FIRST_IDS = 5  # how many ids a message names


class BoxesFile:
    """The regions that a file lists.

    The file's ``detector`` stands for it in the identity, so that stores made from several files of one detector have
    one identity; without it the digest of the file does.
    """

    transform: Transform | None = None
    fields: tuple[str, ...]

    def __init__(self, path: Path, settings: ExtractionSettings) -> None:
        """Read the file.

        Raises:
            InputDataError: it cannot be read, or something in it is wrong.
        """
        if not path.exists():
            names = [other.name for other in path.parent.glob("*.json*")]
            close = difflib.get_close_matches(path.name, names, n=1)
            hint = f"Did you mean {path.parent / close[0]}?" if close else "Check the path"
            raise InputDataError(f"features.regions is {path}, but there is no such file. {hint}")
        self._path, self._found = path, read_boxes(path)
        self._choice = Choice.of(settings)
        known = {"class_ids": self._found.class_ids, "scores": self._found.scores}
        self.fields = tuple(name for name, values in known.items() if values is not None)
        detector = self._found.detector
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._source = {"boxes_sha256": digest} if detector is None else {"boxes_of": detector}

    def regions(self, image_ids: Sequence[str], inputs: Inputs) -> Regions:
        """The regions of these images.

        Raises:
            InputDataError: the file has none of an image, or those of an image of another shape.
        """
        self.refuse_missing(image_ids)
        found = [self._candidates(one, size) for one, size in zip(image_ids, inputs.sizes, strict=True)]
        return padded([choose(one, self._choice) for one in found], self._choice.count)

    def refuse_missing(self, image_ids: Sequence[str]) -> None:
        """See that the file lists these images.

        Raises:
            InputDataError: it does not list all.
        """
        missing = [image_id for image_id in image_ids if self._row(image_id) is None]
        if missing:
            rest = ", ..." if len(missing) > _FIRST_IDS else ""
            first = ", ".join(repr(image_id) for image_id in missing[:_FIRST_IDS])
            raise InputDataError(
                f"{self._path} lists no boxes of {len(missing):,} of {len(image_ids):,} images: {first}{rest}. It "
                f"lists {len(self._found.rows):,} images, such as {next(iter(self._found.rows))!r}. An id is the name "
                "of the image file without its suffix. Add the images to the file, with an empty list where there is "
                "nothing"
            )

    def identity(self) -> dict[str, Any]:
        """Everything that the boxes depend on."""
        return {**self._source, **asdict(self._choice)}

    def _row(self, image_id: str) -> int | None:
        row = self._found.rows.get(image_id)
        number = _COCO_NAME.fullmatch(image_id)
        return self._found.rows.get(int(number[1])) if row is None and number else row

    def _candidates(self, image_id: str, size: Int64[np.ndarray, " 2"]) -> Candidates:
        found, row = self._found, self._row(image_id)
        if row is None:
            raise KeyError(image_id)
        part = slice(found.starts[row], found.starts[row + 1])
        boxes = found.boxes[part]
        if found.units == "pixels":
            height, width = self._measured_in(image_id, size, found.sizes[row])
            boxes = boxes / (width, height, width, height)
        return Candidates(
            boxes.astype(np.float32),
            None if found.scores is None else found.scores[part].astype(np.float32),
            None if found.class_ids is None else found.class_ids[part],
        )

    def _measured_in(
        self, image_id: str, size: Int64[np.ndarray, " 2"], given: Int64[np.ndarray, " 2"]
    ) -> tuple[int, int]:
        """The height and width in pixels that the boxes are measured in."""
        (height, width), (own_height, own_width) = given.tolist(), size.tolist()
        if not height:
            return own_height, own_width
        # The image may have been scaled since, by rounded factors, but not turned or cut.
        if abs(width * own_height - own_width * height) > max(width, height, own_width, own_height):
            raise InputDataError(
                f"The boxes of image {image_id!r} in {self._path} were measured in {width} x {height} pixels, but the "
                f"image has {own_width} x {own_height}, another shape. Make them from the same image; if they were "
                "made from photos that were not turned upright, set features.exif=false"
            )
        return height, width
