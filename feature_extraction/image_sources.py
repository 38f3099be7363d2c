"""Where images come from: a folder, a list; each image has an id. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from feature_extraction.errors import InputDataError
from feature_extraction.images import ImageFile

# Files of a folder that claim to be images. Those of a format that is not decoded are listed too, so that they end in
# the list of rejected images and not in silence.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"),
    *(".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".psd", ".ppm", ".pgm", ".tga", ".ico"),
)


def list_images(source: Path) -> list[ImageFile]:
    """The images of a folder, subfolders included, or of a ``.txt`` list with one path a line; sorted by id.

    Paths in a list are relative to the list's folder.

    Raises:
        InputDataError: no such source, no image in it, or two files with the same id.
    """
    if source.is_dir():
        paths = list(_walk(source))
        wanted = f"files ending in {', '.join(SUFFIXES)}"
    elif source.is_file() and source.suffix.lower() == ".txt":
        lines = source.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
        paths = [source.parent / line.strip() for line in lines if line.strip()]
        wanted = "one path a line"
    else:
        raise InputDataError(
            f"{source} is neither a folder nor a .txt list of images (one path a line). Check the path of --images"
        )
    if not paths:
        raise InputDataError(f"No images in {source}: expected {wanted}. Check the path of --images")

    images: dict[str, ImageFile] = {}
    for path in paths:
        other = images.setdefault(path.stem, ImageFile(path.stem, path))
        if other.path is not path:
            raise InputDataError(
                f"Two images of {source} have the id {path.stem!r}: {other.path} and {path}. An id is the file name "
                "without its suffix and must be unique: rename one, or give a .txt list that names only one"
            )
    return [images[image_id] for image_id in sorted(images)]


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(root, name)
