"""All files of a sweep's results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dept_vl.command_line import say
from dept_vl.sweeping.grid import Grid, setups
from dept_vl.sweeping.outcome import Outcome
from dept_vl.sweeping.results import summarise
from dept_vl.sweeping.search import read_trials
from dept_vl.sweeping.tables import write_results
from feature_extraction.durable import write_durably


def write_report(
    grid: Grid, outcomes: Sequence[Outcome], folder: Path, *, reference: str | None = None, searched: bool = False
) -> str:
    """Write tables and plots into the folder; the table in Markdown comes back."""
    table = summarise(outcomes, reference=reference, budget=grid.budget)
    folder.mkdir(parents=True, exist_ok=True)
    searches = {row: read_trials(folder / "search" / row.folder) for row in setups(grid)} if searched else {}
    text = write_results(folder, outcomes, table, searches=searches)
    try:
        from dept_vl.sweeping.plots import draw_all
    except ImportError as error:
        say(f"No plots: matplotlib cannot be imported ({error}). Run: pip install 'dept_vl[sweep]'")
    else:
        for name, picture in draw_all(table).items():
            write_durably(folder / name, picture)
    return text
