"""The leaderboard file of WinoGrande: no header and no ids, but in each line five answers, by training size.

The columns are the answers of models that were trained on train_xs, s, m, l and xl. Lines go by the questions' order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from dept_vl.formats.files import Faults, refuse
from dept_vl.formats.submission.content import decode, read_content, read_text, sentences
from dept_vl.types import Prediction
from feature_extraction.durable import write_durably

SIZES = ("xs", "s", "m", "l", "xl")
LABELS = ("1", "2")
FORM = "1,1,2,1,2"


def read_label_columns(path: Path) -> list[Prediction]:
    """The answers of a file's last column (xl), which may be the only one; ids are the lines' numbers from 0.

    Raises:
        InputDataError: it is no such file; all faults are named together.
    """
    text = read_text(path)
    faults: Faults = defaultdict(list)
    rows = list(_rows(text, (1, len(SIZES)), faults))
    refuse(faults, path)
    return [Prediction(str(number), row[-1]) for number, row in enumerate(rows)]


def write_label_columns(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write the answers of one model, which stand in all five columns: the server takes no less."""
    write_durably(path, "".join(",".join([one.answer] * len(SIZES)) + "\n" for one in predictions).encode())


def check_label_columns(path: Path, count: int | None) -> list[str]:
    """Every fault of a file; without the number of questions, missing lines cannot be told.

    Raises:
        InputDataError: there is no such file.
    """
    text, unreadable = decode(read_content(path))
    if unreadable:
        return [unreadable]
    faults: Faults = defaultdict(list)
    lines = len(list(_rows(text, (len(SIZES),), faults)))
    found = list(sentences(faults))
    if count is not None and lines != count:
        found.append(f"has {lines:,} lines, but there are {count:,} questions. Is it another split, or cut off?")
    return found


def _rows(text: str, columns: Sequence[int], faults: Faults) -> Iterator[list[str]]:
    """The answers of each line, whatever is wrong with it; ``columns`` is how many there may be."""
    lines = text.replace("\r\n", "\n").split("\n")
    first = 0
    for number, line in enumerate(lines[: -1 if not lines[-1] else None], start=1):
        place = f"line {number}"
        answers = line.split(",")
        if not line.strip():
            faults["blank lines"].append(place)
        elif len(answers) not in columns:
            faults[f"lines without five answers ({', '.join(SIZES)}), as in {FORM}"].append(place)
        elif any(answer not in LABELS for answer in answers):
            faults["answers other than 1 and 2, without spaces"].append(f"{place}: {line!r}")
        elif len(answers) != (first := first or len(answers)):
            faults["lines with five answers and lines with one"].append(place)
        yield answers
