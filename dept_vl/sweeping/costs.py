"""What each row costs, measured one after the other with nothing beside it, and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dept_vl.command_line import say
from dept_vl.settings import Settings
from dept_vl.sweeping.grid import Cell, Grid, Setup, flat_settings, settings_of
from feature_extraction.durable import write_durably

if TYPE_CHECKING:
    from dept_vl.cost import Cost

STEPS, WARMUP = 20, 3  # measured, and before them


def measure_row(grid: Grid, row: Setup, folder: Path) -> None:
    """Measure a row in a process of its own, if these settings have not been measured here."""
    if read_cost(grid, row, folder) is not None:
        return
    from dept_vl.cost import measure_apart

    settings, path = settings_of(grid, Cell(row, grid.seeds[0])), _path(row, folder)
    say(f"Measuring the costs of {row.folder}")
    features = {row.task: grid.features[row.task]} if row.task in grid.features else {}
    try:
        cost = measure_apart(settings, {row.task: grid.data[row.task]}, features, steps=STEPS, warmup=WARMUP)
    except Exception as error:  # the runs are there; a table without one cost is worth more than none
        say(f"The costs of {row.folder} could not be measured: {' '.join(str(error).split())}")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"settings": _identity(settings), "cost": cost._asdict()}
    write_durably(path, (json.dumps(content, indent=1) + "\n").encode())


def read_cost(grid: Grid, row: Setup, folder: Path) -> Cost | None:
    """What was measured of a row with these settings, if anything."""
    path = _path(row, folder)
    if not path.is_file():
        return None
    from dept_vl.cost import Cost

    content = json.loads(path.read_text())
    same = content["settings"] == _identity(settings_of(grid, Cell(row, grid.seeds[0])))
    # Another version may have measured something else.
    return Cost(**content["cost"]) if same and content["cost"].keys() == set(Cost._fields) else None


def _identity(settings: Settings) -> dict[str, Any]:
    """All settings but the rates, which cost nothing."""
    return {key: value for key, value in flat_settings(settings).items() if not key.endswith("_lr")}


def _path(row: Setup, folder: Path) -> Path:
    return folder / "costs" / row.folder.with_name(f"{row.folder.name}.json")
