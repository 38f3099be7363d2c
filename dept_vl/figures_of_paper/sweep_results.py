"""The runs that a figure is made of: those of a sweep, whose results.csv has a line for each."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dept_vl.sweeping.grid import backbone_label
from dept_vl.sweeping.outcome import DONE
from feature_extraction.errors import DamagedError, InputDataError

FILE = "results.csv"


class Run(NamedTuple):
    """A run of a sweep that has ended well, or has not."""

    backbone: str
    task: str
    method: str
    varied: Mapping[str, str]  # settings that the sweep multiplies, by short names
    seed: int
    metric: str  # which the checkpoint was chosen by
    test: Mapping[str, float]  # x100; nothing of a run that has not ended well
    state: str
    reason: str

    @property
    def label(self) -> str:
        """The method and what is varied."""
        return " ".join([self.method, *(f"{key}={value}" for key, value in self.varied.items())])

    @property
    def score(self) -> float | None:
        """The selection metric on the test."""
        return self.test.get(self.metric)

    @property
    def low(self) -> float | None:
        """The lower end of its interval, where that belongs to the selection metric."""
        return self._end("ci_low")

    @property
    def high(self) -> float | None:
        """The upper end."""
        return self._end("ci_high")

    def _end(self, name: str) -> float | None:
        low, score, high = self.test.get("ci_low"), self.score, self.test.get("ci_high")
        inside = low is not None and score is not None and high is not None and low <= score <= high
        return self.test[name] if inside else None


def read_runs(folder: Path) -> list[Run]:
    """All runs of a sweep, in its order.

    Raises:
        InputDataError: the folder has no results of a sweep.
        DamagedError: they are not what a sweep writes.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputDataError(
            f"--sweep {folder}: no {FILE} is there. Give the --output folder of python -m dept_vl.sweep, which "
            "writes it at its end (or at any time with --collect)"
        )
    with path.open(newline="", encoding="utf-8") as file:
        try:
            return [_run(row) for row in csv.DictReader(file)]
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(
                f"{path} is not what dept_vl.sweep writes ({type(error).__name__}: {error}). Write it again: the "
                "sweep's command with --collect"
            ) from error


def _run(row: dict[str, str]) -> Run:
    columns = list(row)
    varied = columns[columns.index("method") + 1 : columns.index("seed")]
    test = {name.removeprefix("test."): value for name, value in row.items() if name.startswith("test.")}
    return Run(
        backbone=backbone_label(row["backbone"]),
        task=row["task"],
        method=row["method"],
        varied={name: row[name] for name in varied if row[name]},
        seed=int(row["seed"]),
        metric=row["metric"],
        test={name: float(value) for name, value in test.items() if value} if row["state"] == DONE else {},
        state=row["state"],
        reason=row["reason"],
    )
