"""Which rows of a sweep can be run at all: found by a dry run of each before any training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dept_vl.command_line import StopSignal, say
from dept_vl.sweeping.grid import Cell, Grid, Setup, settings_of
from dept_vl.sweeping.one_run import fresh_state, is_complete
from feature_extraction.durable import write_durably
from feature_extraction.errors import Interrupted, UsageError

FILE = "possible.json"  # in the sweep's folder: what the dry runs have found


def why_impossible(grid: Grid, rows: Sequence[Setup], folder: Path, stop: StopSignal) -> dict[Setup, str]:
    """The rows that cannot be run, each with the reason: a budget that is not met, a backbone that does not suit.

    What an earlier call has found possible is not tried again, nor what is finished.

    Raises:
        UsageError: nothing can be run.
        Any other error of a dry run, such as data that are not in order: that is for all rows to mend.
        Interrupted: a signal came.
    """
    found = read_verdicts(grid, rows, folder)
    impossible = {}
    for row in rows:
        if stop:
            raise Interrupted("Nothing has been trained yet. The same command goes on")
        reason = None if found.get(row, "unknown") is None else _try(grid, row, folder, stop)
        found[row] = reason
        if reason is not None:
            impossible[row] = reason
            say(f"Not possible: {row.folder}: {reason}")
    if len(impossible) == len(rows):
        raise UsageError(f"No run of the sweep is possible. The first: {impossible[rows[0]]}")
    verdicts = {_identity(grid, row): found[row] for row in rows}
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / FILE, (json.dumps(_read(folder) | verdicts, indent=1) + "\n").encode())
    return impossible


def read_verdicts(grid: Grid, rows: Sequence[Setup], folder: Path) -> dict[Setup, str | None]:
    """What earlier calls have found of these rows: None for possible, or the reason why not."""
    verdicts = _read(folder)
    identities = {row: _identity(grid, row) for row in rows}
    return {row: verdicts[identity] for row, identity in identities.items() if identity in verdicts}


def _try(grid: Grid, row: Setup, folder: Path, stop: StopSignal) -> str | None:
    """The reason why a row cannot be run, or None."""
    task = row.task
    data, features = {task: grid.data[task]}, {task: grid.features[task]} if task in grid.features else {}
    try:
        own = {cell: settings_of(grid, cell) for cell in (Cell(row, seed) for seed in grid.seeds)}
        if all(is_complete(folder / "runs" / cell.folder, one, data=data) for cell, one in own.items()):
            return None
        settings = next(iter(own.values()))
        pictured = bool(settings.task.images_per_example)
        if pictured and not features:
            return f"--features is missing for {task}. Give --features {task}=STORE"
        from dept_vl.training.run import train_run

        say(f"Checking {row.folder}")
        with fresh_state(settings):
            train_run(
                settings=settings,
                data=data,
                features=features,
                output=folder / "runs" / row.folder,
                command="",
                dry_run=True,
                stop=stop,
            )
    except UsageError as error:
        return " ".join(str(error).split())
    return None


def _identity(grid: Grid, row: Setup) -> str:
    """What a verdict is about: everything but the seed."""
    chosen = [row.backbone, row.task, row.method, *(f"{key}={value}" for key, value in row.overrides)]
    return " ".join([*chosen, f"data={grid.data[row.task]}", f"features={grid.features.get(row.task)}"])


def _read(folder: Path) -> dict[str, str | None]:
    path = folder / FILE
    verdicts: dict[str, str | None] = json.loads(path.read_text()) if path.is_file() else {}
    return verdicts
