"""Images in a column of a table: parquet files, and whatever the library ``datasets`` opens. Imports no torch.

The library keeps tables as Arrow files, from which a row is read in no time, and converts parquet files to them once,
in its own cache folder. It is imported when the first table is opened, which takes a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from feature_extraction.errors import InputDataError
from feature_extraction.images.decoding import ImageFile, ImageRejected, refuse_large
from feature_extraction.images.names import image_stem

if TYPE_CHECKING:
    from datasets import Dataset

DATASETS = "datasets:"  # begins a source that the library finds by name
ID_COLUMNS = ("image_id", "id", "file_name", "filename", "__key__")
OPEN_TABLES = 4  # kept open in each process


class Cell(NamedTuple):
    """Where an image lies in a table."""

    column: str
    row: int

    @property
    def name(self) -> str:
        """The row, and the column."""
        return f"row {self.row:,} of column {self.column!r}"

    def read(self, path: Path) -> bytes:
        """The image's bytes.

        Raises:
            ImageRejected: the table has none, or too many.
        """
        value = _images_of(str(path), self.column)[self.row][self.column]
        data = value["bytes"] if isinstance(value, dict) else value
        if data is None:
            # A table from elsewhere could name any file of this machine.
            raise ImageRejected(
                "the table holds no bytes of it"
                + (f", only the path {value['path']!r}, which is not followed" if value and value.get("path") else "")
            )
        refuse_large(len(data))
        return bytes(data)


def is_saved_dataset(folder: Path) -> bool:
    """Whether ``datasets.save_to_disk`` wrote this folder."""
    one, several = ("dataset_info.json", "state.json"), ("dataset_dict.json",)
    return any(all((folder / name).is_file() for name in names) for names in (one, several))


def table_images(source: Path, image_column: str | None, id_column: str | None) -> list[ImageFile]:
    """An image for each row.

    Args:
        source: a parquet file, a folder of them, a folder of ``save_to_disk``, or DATASETS and a name.
        image_column: holds the encoded images; None: the only column that does.
        id_column: holds their ids; None: the first of ID_COLUMNS that is there, or else the stored files' names.

    Raises:
        InputDataError: the table cannot be opened or is one of several, there is no such column, several may be meant,
            or an image has no id.
    """
    table = _table(str(source))
    column = _image_column(source, table, image_column)
    ids = _ids(source, table, column, id_column)
    for row, image_id in enumerate(ids):
        if image_id is None or image_id == "":
            raise InputDataError(
                f"Row {row:,} of {source} has no id. Give a column with ids as --id-column, one of: {_names(table)}"
            )
    return [ImageFile(str(image_id), source, Cell(column, row)) for row, image_id in enumerate(ids)]


@lru_cache(OPEN_TABLES)
def _table(source: str) -> Dataset:
    import datasets

    path = Path(source)
    try:
        if source.startswith(DATASETS):
            name, _, split = source.removeprefix(DATASETS).partition(":")
            table = datasets.load_dataset(name, split=split or None)
        elif path.is_dir() and not is_saved_dataset(path):
            files = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() == ".parquet")
            table = datasets.Dataset.from_parquet(files)
        elif path.is_dir():
            table = datasets.load_from_disk(source)
        else:
            table = datasets.Dataset.from_parquet(source)
    except MemoryError:
        raise
    except Exception as error:  # the library and those below it raise dozens of kinds
        raise InputDataError(
            f"{source} cannot be opened as a table of images: {type(error).__name__}: {error}. Check the path or name"
        ) from error
    if isinstance(table, datasets.DatasetDict):
        if len(table) == 1:
            return next(iter(table.values()))
        further = f"{source}:SPLIT" if source.startswith(DATASETS) else f"{source}/SPLIT"
        raise InputDataError(f"{source} has the splits {', '.join(table)}. Name one of them: {further}")
    return table


@lru_cache(OPEN_TABLES)
def _images_of(source: str, column: str) -> Dataset:
    """The column alone, its images as they are stored."""
    import datasets

    table = _table(source).select_columns(column)
    return table.cast_column(column, datasets.Image(decode=False)) if _is_image(table, column) else table


def _is_image(table: Dataset, column: str) -> bool:
    import datasets

    return isinstance(table.features[column], datasets.Image)


def _image_column(source: Path, table: Dataset, given: str | None) -> str:
    if given is not None:
        _refuse_absent(source, table, given, "--image-column")
        if not _kind(table, given):
            raise InputDataError(
                f"The column {given!r} of {source} holds {table.features[given]} and no images. --image-column names "
                f"one of: {_names(table)}"
            )
        return given
    for kind in ("image", "bytes"):  # what is declared as an image comes before what may be one
        found: list[str] = [name for name in table.column_names if _kind(table, name) == kind]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputDataError(f"{source} has several columns of images: {', '.join(found)}. Give --image-column")
    raise InputDataError(f"No column of {source} holds images; it has {_names(table)}. Give --image-column")


def _kind(table: Dataset, column: str) -> str:
    """``image``, ``bytes`` or nothing."""
    feature: Any = table.features[column]
    if _is_image(table, column):
        return "image"
    inner = feature.get("bytes") if isinstance(feature, dict) else feature
    return "bytes" if getattr(inner, "dtype", "") in ("binary", "large_binary") else ""


def _ids(source: Path, table: Dataset, image_column: str, given: str | None) -> Sequence[Any]:
    if given is not None:
        _refuse_absent(source, table, given, "--id-column")
    column = given or next((name for name in ID_COLUMNS if name in table.column_names), None)
    if column is not None:
        if getattr(table.features[column], "dtype", "") not in ("string", "large_string", *_INTEGERS):
            raise InputDataError(
                f"The column {column!r} of {source} holds {table.features[column]} and no ids. Give a column of text "
                f"or whole numbers as --id-column, one of: {_names(table)}"
            )
        ids: Sequence[Any] = table.select_columns(column)[column][:]
        return [image_stem(PurePath(name or "").name) for name in ids] if column in ("file_name", "filename") else ids
    stems = [PurePath(path or "").stem for path in _stored_paths(source, image_column)]
    if not all(stems):
        raise InputDataError(
            f"{source} has no column of ids that is known ({', '.join(ID_COLUMNS)}), and its images no names. Give a "
            f"column as --id-column, one of: {_names(table)}"
        )
    return stems


def _stored_paths(source: Path, image_column: str) -> list[str | None]:
    column = f"{image_column}.path"
    flat = _images_of(str(source), image_column).flatten()
    return list(flat.select_columns(column)[column]) if column in flat.column_names else [None]


def _refuse_absent(source: Path, table: Dataset, column: str, option: str) -> None:
    if column not in table.column_names:
        raise InputDataError(f"{source} has no column {column!r}. {option} names one of: {_names(table)}")


def _names(table: Dataset) -> str:
    return ", ".join(table.column_names)


_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
