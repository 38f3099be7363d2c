"""What others report: only numbers that were read in their source, which stand in literature.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

LITERATURE = Path(__file__).with_name("literature.yaml")


class Report(NamedTuple):
    """A row of somebody else's table; tasks without a confirmed number are absent from ``scores``."""

    method: str | None  # as ours is called; None where we have none like it
    label: str
    of: str  # whose, on what backbone, of how many runs
    source: str
    scores: Mapping[str, float]  # task: its metric in this table, x100
    mean: float | None  # as printed in the source


@cache
def literature(table: str) -> tuple[Report, ...]:
    """The rows of one table, in the order of the file."""
    content = yaml.safe_load(LITERATURE.read_text(encoding="utf-8"))
    return tuple(Report(**row) for row in content[table])
