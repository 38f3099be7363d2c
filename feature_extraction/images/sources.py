"""Where images come from: folders, lists, archives and tables; each image has an id. Imports no torch.

An id is a name for people and tables. It is kept as it is written, byte for byte, and never becomes a path.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from feature_extraction.errors import InputDataError, UsageError
from feature_extraction.folders import files_below
from feature_extraction.images.archives import archive_images
from feature_extraction.images.decoding import ImageFile
from feature_extraction.images.names import SUFFIXES, image_stem, is_image_name
from feature_extraction.images.tables import DATASETS, Cell, is_saved_dataset, table_images

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip")
KINDS = (
    "a folder of images, of .tar archives or of .parquet files; one such file; a .txt list with one path a line; a "
    f"folder of datasets.save_to_disk; or {DATASETS}NAME[:SPLIT]"
)


def list_images(
    source: Path | str, *, image_column: str | None = None, id_column: str | None = None
) -> list[ImageFile]:
    """The images of a source, sorted by id.

    The id of a file, in an archive too, is its name without folders and without the last suffix.

    Args:
        source: A folder, subfolders included: of the images in it, or where there are none of its .tar archives, or
            else of its .parquet files. A .txt list with one path a line, relative to the list's folder. An archive,
            not compressed. A parquet file. A folder of ``datasets.save_to_disk``. ``datasets:NAME[:SPLIT]`` for what
            ``datasets.load_dataset`` knows by that name.
        image_column: of a table; it may be left out where only one can be meant.
        id_column: of a table; left out, it is one of the usual names, or else the ids are the names of the stored
            files.

    Raises:
        InputDataError: no such source, no image in it, or ids that are equal but for letter case, Unicode form or the
            suffix of an image.
        UsageError: a column of what is no table.
    """
    path = Path(source)
    if str(source).startswith(DATASETS):
        images = table_images(path, image_column, id_column)
    elif path.is_dir():
        images = _folder_images(path, image_column, id_column)
    elif path.is_file():
        images = _file_images(path, image_column, id_column)
    else:
        raise InputDataError(f"There is no {source}. --images takes {KINDS}")
    if not images:
        raise InputDataError(
            f"No images in {source}: expected files ending in {', '.join(SUFFIXES)}, lines of a list, or rows of a "
            f"table. --images takes {KINDS}"
        )
    if (image_column or id_column) and not isinstance(images[0].part, Cell):
        raise UsageError(f"{source} is no table, so --image-column and --id-column mean nothing. Leave them out")
    _refuse_equal_ids(source, images)
    return sorted(images, key=lambda image: image.image_id)


def _folder_images(folder: Path, image_column: str | None, id_column: str | None) -> list[ImageFile]:
    if is_saved_dataset(folder):
        return table_images(folder, image_column, id_column)
    files = [file for file in files_below(folder, _refuse_unreadable) if not file.name.startswith(".")]
    images = [ImageFile(file.stem, file) for file in files if is_image_name(file.name)]
    if images:
        return images
    for file in files:
        _refuse_compressed(file)
    archives = [file for file in files if file.suffix.lower() == ".tar"]
    if archives:
        return [image for archive in archives for image in archive_images(archive)]
    if any(file.suffix.lower() == ".parquet" for file in files):
        return table_images(folder, image_column, id_column)
    return []


def _file_images(file: Path, image_column: str | None, id_column: str | None) -> list[ImageFile]:
    _refuse_compressed(file)
    kind = file.suffix.lower()
    if kind == ".tar":
        return archive_images(file)
    if kind == ".parquet":
        return table_images(file, image_column, id_column)
    if kind == ".txt":
        # A name may hold any character but a newline, so that nothing else ends a line.
        lines = file.read_bytes().decode("utf-8-sig", "surrogateescape").split("\n")
        paths = [file.parent / line.removesuffix("\r") for line in lines if line.strip()]
        return [ImageFile(path.stem, path) for path in paths]
    raise InputDataError(f"{file} is no list, archive or table of images. --images takes {KINDS}")


def _refuse_unreadable(error: OSError) -> None:
    raise InputDataError(
        f"The folder {error.filename} cannot be listed ({error.strerror}), and images in it would be missing without a "
        "word. Give it the rights to be read, or give a .txt list of the images"
    ) from error


def _refuse_compressed(file: Path) -> None:
    if file.name.lower().endswith(COMPRESSED):
        raise InputDataError(
            f"{file} is compressed: its images can only be read from the start to the end, not one by one. Unpack it, "
            "or make it a plain .tar (gunzip, unxz)"
        )


def _refuse_equal_ids(source: Path | str, images: Sequence[ImageFile]) -> None:
    found: dict[str, ImageFile] = {}
    for image in images:
        # Two that differ only so look the same to people, and to some file systems and tools.
        folded = unicodedata.normalize("NFD", image_stem(image.image_id)).casefold()
        other = found.setdefault(unicodedata.normalize("NFC", folded), image)
        if other is not image:
            raise InputDataError(
                f"Two images of {source} have the ids {other.image_id!r} and {image.image_id!r}: {other.name} and "
                f"{image.name}. Ids must differ in more than letter case, Unicode form or the suffix of an image: "
                "rename one, or give a .txt list that names only one"
                if other.image_id != image.image_id
                else f"Two images of {source} have the id {image.image_id!r}: {other.name} and {image.name}. Ids must "
                "be unique: rename one, or give a .txt list that names only one"
            )
