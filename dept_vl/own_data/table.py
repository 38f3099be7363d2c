"""Tables as people have them: lines of CSV or JSONL, and the texts in their columns."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, NoReturn

from dept_vl.formats.files import KINDS, Faults
from feature_extraction.errors import InputDataError

DELIMITERS = ",;\t"  # of CSV; the header line tells which
SEPARATOR = "|"  # between several texts in one field of CSV
SIDES = {
    name: f"image{number}"
    for number, side in enumerate(("left", "right"), start=1)
    for name in (side, f"{side}image", f"image{side}")
}


class Column(NamedTuple):
    """What a column may be called, best name first; capitals, spaces and marks make no difference.

    A column of ``many`` texts holds a list, or in CSV several texts separated by "|", or is several numbered columns.
    """

    names: tuple[str, ...]
    many: bool = False

    @property
    def name(self) -> str:
        """The name in messages and in the documentation."""
        return self.names[0]


class Line(NamedTuple):
    """One object of JSONL, or one record of CSV."""

    number: int  # of its first line in the file, from 1
    cells: Mapping[str, object]
    separator: str | None = None  # between several texts in one cell

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"line {self.number}"


def read_lines(path: Path, faults: Faults) -> list[Line]:
    """The rows of a table; lines that cannot be read are added to ``faults``.

    Raises:
        InputDataError: there is no such file, or it is neither CSV nor JSONL.
    """
    readers = {".csv": _csv_lines, ".jsonl": _json_lines}
    read = readers.get(path.suffix.lower())
    if read is None:
        raise InputDataError(
            f"{path} ends neither in .csv nor in .jsonl. Save the table as CSV in UTF-8 with a header line, or as JSON "
            "lines, one object a line"
        )
    try:
        # Bytes that are not UTF-8 become lone surrogates, which are told where a text is looked at.
        content = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except FileNotFoundError:
        raise InputDataError(f"No file {path}. Check the path") from None
    return list(read(content, faults))


@lru_cache
def keys_of(column: Column, keys: tuple[str, ...]) -> list[list[str]]:
    """The keys that hold a column: for each of its names that occurs a list, in the order of the keys' numbers."""
    groups: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for key in keys:
        plain = re.sub(r"[\W_]", "", key).lower()
        plain = SIDES.get(plain, plain)
        name = plain.rstrip("0123456789") if column.many else plain
        groups[name].append((int(plain[len(name) :] or -1), key))
    return [[key for _, key in sorted(groups[name])] for name in column.names if name in groups]


def texts(line: Line, column: Column, faults: Faults) -> list[str]:
    """What a line says in a column: the first of the column's names under which it says anything.

    Nothing if it says nothing; a list for a column of one text, empty texts among several, and what is no text are
    added to ``faults``.
    """
    cells: list[object] = []
    for keys in keys_of(column, tuple(line.cells)):
        cells = [cell for key in keys for cell in _split(line.cells[key], line.separator if column.many else None)]
        if cells:
            break
    found = [_text(cell, column, line, faults) for cell in cells]
    if len(found) > 1 and not column.many:
        faults[f'more than one "{column.name}"'].append(line.place)
    if "" in found:
        faults[f'an empty text among several of "{column.name}"'].append(line.place)
    return found


def _split(cell: object, separator: str | None) -> list[object]:
    if isinstance(cell, list):
        return cell
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return []
    return [*cell.split(separator)] if isinstance(cell, str) and separator else [cell]


def _text(cell: object, column: Column, line: Line, faults: Faults) -> str:
    """The cell as text. Numbers are welcome: 42 as an answer or an image, 1 as a label."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # so write tools that keep a column with gaps as fractions
    if isinstance(cell, bool):
        cell = str(cell).lower()
    if not isinstance(cell, str | int | float):
        faults[f'"{column.name}" is {KINDS[type(cell)]}, not text'].append(line.place)
        return "?"
    text = str(cell).strip()
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        faults[f'"{column.name}" is not UTF-8 text (save the table as UTF-8)'].append(line.place)
    return text


def _json_lines(content: str, faults: Faults) -> Iterator[Line]:
    for number, text in enumerate(content.split("\n"), start=1):
        if text.strip():
            try:
                cells = json.loads(text, parse_constant=_refuse_constant)
            except (ValueError, RecursionError):
                cells = None
            if isinstance(cells, dict):
                yield Line(number, cells)
            else:
                faults["lines that are no JSON object"].append(f"line {number}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _csv_lines(content: str, faults: Faults) -> Iterator[Line]:
    header = content.lstrip().partition("\n")[0]
    delimiter = max(DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            faults[f"lines that are no CSV ({error})"].append(f"line {number}")
            continue
        if not names:
            names = [name.strip() for name in fields]
            faults["several columns are called"] += sorted({name for name in names if names.count(name) > 1})
        elif len(fields) == len(names):
            yield Line(number, dict(zip(names, fields, strict=True)), SEPARATOR)
        elif fields:
            faults[f"lines with more or fewer fields than the {len(names)} of the header"].append(f"line {number}")
