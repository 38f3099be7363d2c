"""Folders that hold a file for each image."""

from __future__ import annotations

from pathlib import Path

from feature_extraction.folders import files_below
from feature_extraction.interchange.image_arrays import Unusable
from feature_extraction.interchange.sources import twice


def files_by_id(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files of these suffixes, subfolders included, by image id: the file name without its suffix.

    Raises:
        InputDataError: two files have the same id.
    """
    files: dict[str, Path] = {}
    for path in files_below(folder):
        if path.suffix.lower() in suffixes:
            other = files.setdefault(path.stem, path)
            if other is not path:
                raise twice(path.stem, *sorted((str(other), str(path))))
    return files


def refuse_irregular(path: Path) -> None:
    """See that a file can be read to its end.

    Raises:
        Unusable: a pipe or device, which would block, or a link to nowhere.
    """
    if not path.is_file():
        raise Unusable("no regular file" if path.exists() else "the file is gone, or a link to nowhere")
