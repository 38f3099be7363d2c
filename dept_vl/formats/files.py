"""Reading data files: what is wrong with one is found in one pass, and said in one message."""

from __future__ import annotations

import gc
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dept_vl.types import Example
from feature_extraction.errors import InputDataError

FIRST_IDS = 5  # how many ids a message names
KINDS = {
    int: "a whole number",
    float: "a fraction",
    str: "text",
    bool: "a boolean",
    list: "a list",
    dict: "an object",
    type(None): "null",
}

Faults = defaultdict[str, list[object]]  # what is wrong: the ids or rows where it is


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:  # noqa: ANN401 - whatever the file holds
    """The content of a JSON file, with what ``object_hook`` makes of each object as soon as it is parsed.

    Raises:
        InputDataError: there is no such file, or it is not one JSON value in UTF-8.
    """
    try:
        return json.loads(path.read_bytes(), object_hook=object_hook)
    except FileNotFoundError:
        raise InputDataError(f"No file {path}. Check the path") from None
    except IsADirectoryError:
        raise InputDataError(f"{path} is a folder, not a JSON file. Give the file in it") from None
    except (ValueError, RecursionError) as error:
        raise InputDataError(f"{path} is not one JSON value in UTF-8: {error}. Download or write it again") from error


@contextmanager
def collector_paused() -> Iterator[None]:
    """No search for garbage meanwhile: among the millions of new records of a large file it takes half the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check_types(row: Any, wanted: Mapping[str, type], place: str, faults: Faults) -> bool:  # noqa: ANN401 - from JSON
    """Whether a row has the wanted keys and exactly their types: true is no number, and "1" no question id."""
    wrong = list(_wrong_types(row, wanted))
    for fault in wrong:
        faults[fault].append(place)
    return not wrong


def refuse(faults: Faults, *sources: object) -> None:
    """Raise what was found, if anything was.

    Raises:
        InputDataError: names each fault with its count and first places.
    """
    found = [f"{fault}: {count_and_first(places)}" for fault, places in faults.items() if places]
    if found:
        raise InputDataError(f"{' and '.join(str(source) for source in sources if source)}: {'; '.join(found)}")


def refuse_repeated(examples: Sequence[Example], fault: str, *sources: object) -> None:
    """Refuse examples of which two have the same id.

    Raises:
        InputDataError: says the fault, with the ids.
    """
    counts = Counter(example.example_id for example in examples)
    faults: Faults = defaultdict(list)
    faults[fault] += [one for one, count in counts.items() if count > 1]
    refuse(faults, *sources)


def count_and_first(ids: Sequence[object]) -> str:
    """How many ids there are, and which come first."""
    rest = ", ..." if len(ids) > FIRST_IDS else ""
    return f"{len(ids):,} ({', '.join(str(one) for one in ids[:FIRST_IDS])}{rest})"


def _wrong_types(row: Any, wanted: Mapping[str, type]) -> Iterator[str]:  # noqa: ANN401 - from JSON
    if not isinstance(row, dict):
        yield f"{KINDS[type(row)]} instead of an object with {', '.join(wanted)}"
        return
    for key, kind in wanted.items():
        if key not in row:
            yield f'no "{key}"'
        elif type(row[key]) is not kind:
            yield f'"{key}" is {KINDS[type(row[key])]}, not {KINDS[kind]}'
