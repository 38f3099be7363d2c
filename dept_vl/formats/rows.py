"""Text data sets as rows: tables (.tsv, .txt, .lst, .csv) and JSON lines, either as their makers or as hubs give them.

A data folder holds the official files, or what ``python -m dept_vl.fetch`` wrote of a hub's: NAME.rows.jsonl, with the
hub's column names. Rows go by their lines, so that whatever is wrong with one can be said with its place.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dept_vl.command_line import say
from dept_vl.formats.files import Faults, check_types, collector_paused, count_and_first, refuse, refuse_repeated
from dept_vl.types import Example
from feature_extraction.errors import InputDataError

TABLES = (".tsv", ".txt", ".lst", ".csv")  # any other file is JSON lines
SHORT = "lines with fewer fields than columns"

Row = dict[str, Any]
Rows = dict[int, Row]  # by the line where each begins, from 1


class HubSource(NamedTuple):
    """Where a hub has a data set."""

    repository: str
    config: str | None
    splits: dict[str, str]  # name of the official file: the hub's split

    def rows_file(self, name: str) -> str:
        """The file of a data folder that the hub's split was written to."""
        return f"{self.splits.get(name, name)}.rows.jsonl"


def find_file(folder: Path, names: Sequence[str], split: str) -> Path:
    """The first of these files that is in the folder.

    Raises:
        InputDataError: none is; names them, and the files that are.
    """
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "is not there"
        raise InputDataError(f"{folder} {kind}. Give the folder that {names[0]} lies in as --data")
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        there = ", ".join(sorted(path.name for path in folder.glob("*") if path.is_file()))
        raise InputDataError(
            f"{folder} has no {' and no '.join(names)}. Files there: {there or 'none'}. Put the official file there, "
            f"fetch it with python -m dept_vl.fetch, or set task.splits.{split} to the name of yours"
        )
    return found


@collector_paused()
def read_rows(
    path: Path,
    *,
    columns: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    wanted: Iterable[str] = (),
    drop_short: bool = False,
    is_table: bool | None = None,
) -> Rows:
    """The rows of a table or of JSON lines, both possibly packed by gzip.

    A table is read without quotes, but for .csv. Its rows get the key "idx": their number from 0, as on the hub.

    Args:
        columns: the names of a table's columns, if it has no header; a first line with one of them is one.
        names: keys to be renamed, official name to ours.
        wanted: columns that a table must have, by our names.
        drop_short: leave out (and say so) a table's rows with too few fields, which a line break in a text has made.
        is_table: whether it is a table, where its suffix does not tell.

    Raises:
        InputDataError: there is no such file, it has no rows, or some are broken; all of these are named together.
    """
    text = _text(path)
    faults: Faults = defaultdict(list)
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if is_table is None:
        is_table = suffix in TABLES
    rows = _table(_records(text, suffix, faults), columns, faults) if is_table else _json_lines(text, faults)
    short = faults.pop(SHORT, []) if drop_short else []
    refuse(faults, path)
    if short:
        say(f"{path}: rows left out, as a line break in a text has broken them: {count_and_first(short)}")
    if not rows:
        raise InputDataError(f"{path} has no rows. Download or write it again")
    if names:
        rows = {line: {names.get(key, key): value for key, value in row.items()} for line, row in rows.items()}
    found = next(iter(rows.values()))
    absent = [column for column in wanted if column not in found]
    if is_table and absent:
        columns = [column for column in found if column != "idx"]
        raise InputDataError(
            f"{path} has no column {' and no column '.join(absent)}. It has: {', '.join(columns)}. Is it the file of "
            "another task?"
        )
    return rows


def read_label(row: Row, labels: Sequence[str], line: int, faults: Faults, key: str = "label") -> tuple[str, ...]:
    """The label as an example's references; none where it is withheld: no such key, null, "" or a hub's -1.

    A file may give a label as its name, number or boolean, or as a text of these. Without labels, it is a number.
    """
    value = row.get(key)
    if value is None or str(value).strip() in ("", "-1", "-1.0"):
        return ()
    name = label_name(value, labels) if labels else _number_name(value)
    if name is None:
        numbers = ", ".join(map(str, range(len(labels))))
        wanted = f"one of {', '.join(labels)} or its number ({numbers})" if labels else "a finite number"
        faults[f'"{key}" is not {wanted}'].append(f"line {line}: {json.dumps(value, default=str)}")
        return ()
    return (name,)


def label_name(value: object, labels: Sequence[str]) -> str | None:
    """Which of the labels a value means: a name in any capitals, a number from 0, or a boolean; None: none of them."""
    if isinstance(value, bool) and tuple(labels) == ("0", "1"):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip().lower()
    numbered = {str(number): label for number, label in enumerate(labels)}
    return (numbered | {label.lower(): label for label in labels}).get(text)


def finite_number(value: object) -> float | None:
    """The number that a value or its text is; None: no finite one."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def read_gold(path: Path, labels: Sequence[str]) -> list[Example]:
    """The references of JSON lines with "idx" and "label", read as by ``read_label``; further keys are ignored.

    Raises:
        InputDataError: there is no such file, or lines are something else; all faults are named together.
    """
    faults: Faults = defaultdict(list)
    examples = []
    for line, row in read_rows(path).items():
        wanted = {"idx": str if isinstance(row.get("idx"), str) else int}
        if check_types(row, wanted, f"line {line}", faults):
            references = read_label(row, labels, line, faults)
            examples.append(Example(example_id=str(row["idx"]), text="", image_ids=(), references=references))
    refuse(faults, path)
    refuse_repeated(examples, 'more than one line with the same "idx"', path)
    return examples


def _number_name(value: object) -> str | None:
    """The number as the official file has it: the hub's 3.799999952316284, of 32 bits, is its 3.8."""
    number = finite_number(value)
    if number is None:
        return None
    short = np.float32(number)
    return str(short if float(short) == number else number)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise InputDataError(f"No file {path}. Check the path") from None
    except IsADirectoryError:
        raise InputDataError(f"{path} is a folder, not a file of rows. Give the file in it") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputDataError(f"{path} is not in UTF-8: line {line:,}. Download it again") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputDataError(f"{path} is no whole gzip file: {error}. Download it again") from error


def _records(text: str, suffix: str, faults: Faults) -> Iterator[tuple[int, list[str]]]:
    """The fields of each row of a table, with its first line; empty lines are none."""
    if suffix != ".csv":
        # Texts may hold characters that str.splitlines, but no other reader, takes for line breaks.
        lines = enumerate(text.split("\n"), start=1)
        yield from ((number, line.removesuffix("\r").split("\t")) for number, line in lines if line.strip("\r"))
        return
    reader, line = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        faults[f"no CSV ({error})"].append(f"line {line}")


def _table(records: Iterator[tuple[int, list[str]]], columns: Sequence[str], faults: Faults) -> Rows:
    first = next(records, (1, []))
    if columns and not set(columns) & set(first[1]):
        records = chain([first], records)
    else:
        columns = first[1]
    rows = {}
    for index, (line, fields) in enumerate(records):
        if len(fields) == len(columns):
            rows[line] = {**dict(zip(columns, fields, strict=True)), "idx": index}
        elif len(fields) < len(columns):
            faults[SHORT].append(line)
        else:
            faults[f"lines with more fields than the columns {', '.join(columns)}"].append(line)
    return rows


def _json_lines(text: str, faults: Faults) -> Rows:
    rows = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                rows[number] = row
            else:
                faults["lines that are no JSON object"].append(number)
    return rows
