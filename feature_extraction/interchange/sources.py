"""Files and folders with features that another tool made: which images there are, and the arrays of each.

A source is gone through twice: once to list its images, with the shapes of their features but not the features, and
once to import them. Nothing is unpickled, no id becomes a path, and links out of a file are not followed. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from feature_extraction.errors import InputDataError, Interrupted, UsageError
from feature_extraction.interchange.image_arrays import Look, Unusable, attempt
from feature_extraction.shard_work import Stop

FORMATS = {
    "vl_t5": "an HDF5 file with a group for each image, as VL-T5 has",
    "vl_adapter": "a folder with an HDF5 file for each image, as VL-Adapter has",
    "lxmert_tsv": "a .tsv file with a line for each image, as LXMERT and bottom-up attention have",
    "arrays": "a folder with a .npy or .npz file for each image",
}

Looks = Mapping[str, Look | Unusable]  # by image id
_Entry = TypeVar("_Entry")


@runtime_checkable
class FeatureSource(Protocol):
    """A file or folder with the features of many images."""

    looks: Looks
    grid: bool  # whether visual tokens without boxes are known to be the cells of a grid, row by row

    def place(self, image_id: str) -> str:
        """Where an image's features stand, for the user."""

    def read(self, image_id: str) -> dict[str, np.ndarray]:
        """The features of an image and what else is known, as ``usable`` leaves them.

        Raises:
            Unusable: they are damaged, or not what was announced.
        """


class Sources:
    """Several files or folders as one, in which every image id stands once."""

    def __init__(self, parts: Sequence[FeatureSource]) -> None:
        """Join the parts.

        Raises:
            InputDataError: two of them hold the same image.
        """
        self._owners: dict[str, FeatureSource] = {}
        for part in parts:
            for image_id in part.looks:
                other = self._owners.setdefault(image_id, part)
                if other is not part:
                    raise twice(image_id, other.place(image_id), part.place(image_id))
        self.ids = sorted(self._owners)
        self.grid = all(part.grid for part in parts)

    def place(self, image_id: str) -> str:
        """Where an image's features stand, for the user."""
        return self._owners[image_id].place(image_id)

    def look(self, image_id: str) -> Look | Unusable:
        """What was seen of an image's features."""
        return self._owners[image_id].looks[image_id]

    def read(self, image_id: str) -> dict[str, np.ndarray]:
        """The features of an image and what else is known; see ``FeatureSource``."""
        return attempt(self._owners[image_id].read, image_id)


def guess_format(path: Path) -> str:
    """The format of a file by its name, of a folder by the names in it.

    Raises:
        InputDataError: no such file or folder.
        UsageError: it tells nothing.
    """
    if path.is_dir():
        suffixes = {found.suffix.lower() for found in path.rglob("*")}
        kinds = {"vl_adapter": {".h5", ".hdf5"}, "arrays": {".npy", ".npz"}}
    elif path.exists():
        suffixes = {path.suffix.lower()}
        kinds = {"vl_t5": {".h5", ".hdf5"}, "lxmert_tsv": {".tsv"}}
    else:
        raise InputDataError(f"{path}: no such file or folder. Check the path of --source")
    fitting = [name for name, endings in kinds.items() if suffixes & endings]
    if len(fitting) != 1:
        raise UsageError(f"What is {path}? Its name does not tell. Give --format: {_formats()}")
    return fitting[0]


def open_source(path: Path, format_name: str, stop: Stop = lambda: False) -> FeatureSource:
    """List the images of a file or folder.

    Raises:
        UsageError: no such format, or a package that it needs is missing.
        InputDataError: no such file, no images in it, or not of this format.
        Interrupted: ``stop`` said so.
    """
    if format_name not in FORMATS:
        raise UsageError(f"--format is {format_name!r}; it is one of {_formats()}")
    if not path.exists():
        raise InputDataError(f"{path}: no such file or folder. Check the path of --source")
    if not (path.is_dir() if FORMATS[format_name].startswith("a folder") else path.is_file()):
        raise InputDataError(f"{path} is not {FORMATS[format_name]}. Check --source and --format")
    try:
        module = import_module(f"feature_extraction.interchange.{format_name}")
    except ModuleNotFoundError as error:
        if error.name != "h5py":
            raise
        raise UsageError("HDF5 files need the package h5py. Install it: pip install 'dept_vl[import]'") from error
    source: FeatureSource = module.open_source(path, stop)
    if not source.looks:
        raise InputDataError(f"No images in {path}: expected {FORMATS[format_name]}. Check --source and --format")
    return source


def listed(path: Path, entries: Iterable[_Entry], stop: Stop) -> Iterator[_Entry]:
    """The entries, as long as nobody wants to stop.

    Raises:
        Interrupted: ``stop`` said so.
    """
    for entry in entries:
        if stop():
            raise Interrupted(f"Listing the images of {path} was not finished. The same command begins again")
        yield entry


def twice(image_id: str, place: str, other: str) -> InputDataError:
    """The failure for an image id that stands in two places."""
    return InputDataError(
        f"Image id {image_id!r} stands twice, in {place} and in {other}. An id must be unique: leave one of them out"
    )


def _formats() -> str:
    return "; ".join(f"{name} ({text})" for name, text in FORMATS.items())
