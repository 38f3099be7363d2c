"""What became of a cell, read from the files that it has left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dept_vl.sweeping.grid import Cell, Grid, settings_of
from dept_vl.sweeping.one_run import SPLITS, is_complete, read_metrics
from feature_extraction.durable import write_durably

if TYPE_CHECKING:
    from dept_vl.cost import Cost

DONE, FAILED, NOT_POSSIBLE, MISSING = "done", "failed", "not possible", "missing"


class Failure(NamedTuple):
    """Why something failed."""

    reason: str
    exit_code: int


class Outcome(NamedTuple):
    """One cell: what became of it, its scores, and what its row costs."""

    cell: Cell
    folder: Path
    state: str  # DONE, FAILED, NOT_POSSIBLE or MISSING
    reason: str = ""  # of a failure, or why it is not possible
    exit_code: int = 0  # of a failure
    metric: str = ""  # the name of the task's selection metric
    validation: Mapping[str, float | None] = {}
    test: Mapping[str, float | None] = {}
    cost: Cost | None = None

    @property
    def per_example(self) -> Path:
        """The file with the score of each test example, 0 to 1; some tasks have none."""
        return self.folder / "evaluation" / "test" / "scores.json"


def read_outcome(grid: Grid, chosen: Cell | None, cell: Cell, place: Path, *, impossible: str | None = None) -> Outcome:
    """What has become of a cell whose run lies in ``place``.

    Args:
        chosen: the cell with the rates of its search; None if that is not done.
        impossible: why it cannot be run, if so.
    """
    if impossible is not None:
        return Outcome(cell, place, NOT_POSSIBLE, impossible)
    settings = settings_of(grid, chosen or cell)
    outcome = Outcome(chosen or cell, place, MISSING, metric=settings.task.selection_metric)
    if chosen is not None and is_complete(place, settings, data={cell.setup.task: grid.data[cell.setup.task]}):
        validation, test = (read_metrics(place, split) for split in SPLITS)
        return outcome._replace(state=DONE, validation=validation, test=test)
    failure = read_failure(place)
    if failure is not None:
        return outcome._replace(state=FAILED, reason=failure.reason, exit_code=failure.exit_code)
    return outcome


def read_failure(place: Path) -> Failure | None:
    """Why the run in this place failed when it was last tried, if it did."""
    path = _failure_path(place)
    return Failure(**json.loads(path.read_text())) if path.is_file() else None


def record_failure(place: Path, failure: Failure) -> None:
    """Keep beside the place of a run why it failed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    write_durably(_failure_path(place), (json.dumps(failure._asdict()) + "\n").encode())


def forget_failure(place: Path) -> None:
    """A new try begins: what failed before does not count any more."""
    _failure_path(place).unlink(missing_ok=True)


def _failure_path(place: Path) -> Path:
    return place.with_name(f"{place.name}.failed.json")
