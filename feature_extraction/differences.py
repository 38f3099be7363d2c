"""Artefacts that must belong together: a table of what does not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from feature_extraction.errors import IncompatibleError

ABSENT = "-"


def refuse_differences(expected: Mapping[str, Any], got: Mapping[str, Any], *, what: str, advice: str) -> None:
    """Check that two records are equal.

    Raises:
        IncompatibleError: with ``what``, a table of field, expected and got for all that differs, and ``advice``.
    """
    rows = [
        (str(key), _short(expected.get(key, ABSENT)), _short(got.get(key, ABSENT)))
        for key in [*expected, *(key for key in got if key not in expected)]
        if expected.get(key, ABSENT) != got.get(key, ABSENT)
    ]
    if not rows:
        return
    rows.insert(0, ("field", "expected", "got"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    table = "\n".join(line.rstrip() for line in lines)
    raise IncompatibleError(f"{what}:\n{table}\n{advice}")


def _short(value: object) -> str:
    """The value as text; of a digest, enough to tell it from others."""
    text = str(value)
    return f"{text[:16]}…" if re.fullmatch("[0-9a-f]{64}", text) else text
