"""A folder with one NumPy file per image: ``<image id>.npy`` with features [V D], or ``<image id>.npz`` with more.

An .npz holds ``features`` and either fields of a store by their own names (boxes as fractions of width and height,
image_size, mask, class_ids, scores, attribute_ids, attribute_scores) or those of VL-T5 by theirs (boxes in pixels,
img_w, img_h, obj_id, obj_conf, attr_id, attr_conf); other names are left out. Python objects are never unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast
from zipfile import ZipFile

import numpy as np

from feature_extraction.interchange.folders import files_by_id, refuse_irregular
from feature_extraction.interchange.image_arrays import (
    FIELDS,
    VL_T5_NAMES,
    Look,
    Unusable,
    announced,
    expected_size,
    look_of,
    looked,
    usable,
)
from feature_extraction.interchange.sources import listed
from feature_extraction.shard_work import Stop

NAMES = {"features", *FIELDS, *VL_T5_NAMES, "img_w", "img_h"}
_HEADERS: dict[tuple[int, int], Callable[[BufferedIOBase], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class ArrayFolder:
    """A folder and its subfolders."""

    grid = False

    def __init__(self, folder: Path, stop: Stop) -> None:
        """List the images and the shapes of their features."""
        self._files = files_by_id(folder, (".npy", ".npz"))
        self.looks = {image_id: looked(_look, path) for image_id, path in listed(folder, self._files.items(), stop)}

    def place(self, image_id: str) -> str:
        """The file, for the user."""
        return str(self._files[image_id])

    def read(self, image_id: str) -> dict[str, np.ndarray]:
        """The arrays of an image; see ``FeatureSource``."""
        look = announced(self.looks[image_id])
        path = self._files[image_id]
        found = {}
        for name in _names(path):
            with _opened(path, name) as stream:
                shape, _ = _header(name, stream)
            if name != "features" and np.prod(shape) > expected_size(name, look.tokens):  # before memory is spent
                raise Unusable(f"{name} have shape {shape}, with {look.tokens} visual tokens")
            with _opened(path, name) as stream:
                found[name] = np.lib.format.read_array(stream, allow_pickle=False)
        return usable(found, look)


def open_source(path: Path, stop: Stop) -> ArrayFolder:
    """List the images of a folder."""
    return ArrayFolder(path, stop)


def _look(path: Path) -> Look:
    refuse_irregular(path)
    names = _names(path)
    if "features" not in names:
        raise Unusable(f"no features; found {', '.join(names) or 'nothing of use'}")
    with _opened(path, "features") as stream:
        shape, dtype = _header("features", stream)
    return look_of(shape, dtype, names)


def _names(path: Path) -> list[str]:
    """The arrays in a file that mean something here."""
    if path.suffix.lower() == ".npy":
        return ["features"]
    with ZipFile(path) as archive:
        stored = [name.removesuffix(".npy") for name in archive.namelist()]
    return [name for name in stored if name in NAMES]


@contextmanager
def _opened(path: Path, name: str) -> Iterator[BufferedIOBase]:
    if path.suffix.lower() == ".npy":
        with path.open("rb") as stream:
            yield stream
    else:
        with ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            yield cast(BufferedIOBase, stream)


def _header(name: str, stream: BufferedIOBase) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise Unusable(f"{name} are in version {version} of NumPy's format, expected 1.0 or 2.0")
    shape, _, dtype = _HEADERS[version](stream)
    if dtype.kind not in "biuf":
        raise Unusable(f"{name} are {dtype}, expected numbers; Python objects could run code and are not read")
    return shape, dtype
