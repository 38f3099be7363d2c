"""The sweep: what can be run is found, searched for rates, run and measured; what is done is not done again.

In a folder: ``runs/`` (ordinary runs), ``search/`` (trials), ``costs/``, ``logs/`` (of processes of their own) and
possible.json. Searches and runs have numbers, the searches first, by which ``--cell`` and job arrays name them.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dept_vl.command_line import StopSignal, exit_code_of, one_line, say
from dept_vl.sweeping.costs import measure_row, read_cost
from dept_vl.sweeping.grid import Cell, Grid, Setup, cells, settings_of, setups, sweep_arguments
from dept_vl.sweeping.one_run import is_complete, run_cell
from dept_vl.sweeping.outcome import Failure, Outcome, forget_failure, read_failure, read_outcome, record_failure
from dept_vl.sweeping.possible import read_verdicts, why_impossible
from dept_vl.sweeping.processes import run_beside, visible_devices
from dept_vl.sweeping.progress import Status
from dept_vl.sweeping.search import best_rates, load_optuna, read_trials, search_rates, trials_of
from feature_extraction.errors import Interrupted, UsageError


class How(NamedTuple):
    """In which way a sweep is run; the results are the same."""

    jobs: int = 1  # processes side by side; 1: this one
    trials: int = 0  # of the search for rates, for every row
    launcher: str | None = None  # of several processes for each run, as "accelerate launch --num_processes 4 -m"
    costs: bool = True  # measured after the runs


def run_grid(grid: Grid, folder: Path, *, stop: StopSignal, how: How = How()) -> list[Outcome]:  # noqa: B008
    """Run all cells and read what became of them; one that fails does not stop the others.

    Raises:
        UsageError: no run is possible, or optuna is not installed for a search.
        IncompatibleError: the folder has runs or searches of other settings.
        Interrupted: a signal came; the same call goes on.
        Any other error of a dry run: the data or the features are not in order.
    """
    if how.trials:
        load_optuna()
    rows = setups(grid)
    impossible = why_impossible(grid, rows, folder, stop)
    possible = [row for row in rows if row not in impossible]
    if how.trials:
        _run_all(grid, possible, folder, how, stop)
    _run_all(grid, cells(grid, possible), folder, how, stop)
    if how.costs:
        for row in possible:
            if stop:
                raise Interrupted("All runs are done, but not all costs are measured. The same command goes on")
            measure_row(grid, row, folder)
    return collect(grid, folder, how=how)


def collect(grid: Grid, folder: Path, *, how: How = How()) -> list[Outcome]:  # noqa: B008
    """What has become of all cells so far; nothing is run or measured."""
    rows = setups(grid)
    verdicts = read_verdicts(grid, rows, folder)
    costs = {row: read_cost(grid, row, folder) for row in rows}
    outcomes = []
    for cell in cells(grid, rows):
        outcome = read_outcome(
            grid, _chosen(cell, folder, how), cell, _place(cell, folder), impossible=verdicts.get(cell.setup)
        )
        outcomes.append(outcome._replace(cost=costs[cell.setup]))
    return outcomes


def units(grid: Grid, how: How) -> list[Setup | Cell]:
    """All that is run, by number: the searches for rates, if there are any, and then the runs."""
    rows = setups(grid)
    return [*(rows if how.trials else []), *cells(grid, rows)]


def run_unit(grid: Grid, number: int, folder: Path, *, stop: StopSignal, how: How) -> None:
    """Do one of ``units`` in this process.

    Raises:
        UsageError: there is no such number, or a search has not been made yet.
        Any error of the run.
    """
    every = units(grid, how)
    if not 0 <= number < len(every):
        raise UsageError(f"--cell is {number}, but the sweep has the numbers 0 to {len(every) - 1}")
    unit = every[number]
    row = unit if isinstance(unit, Setup) else unit.setup
    impossible = read_verdicts(grid, [row], folder).get(row)
    if impossible is not None:
        say(f"Not possible: {row.folder}: {impossible}")
        return
    _run_here(grid, unit, folder, how, stop)
    if how.costs and isinstance(unit, Cell) and unit.seed == grid.seeds[0]:
        measure_row(grid, row, folder)


def _run_all(grid: Grid, wanted: Sequence[Setup | Cell], folder: Path, how: How, stop: StopSignal) -> None:
    """Do all that is not done, in this process or side by side in others."""
    todo = [unit for unit in wanted if not _is_done(grid, unit, folder, how)]
    if not todo:
        return
    what = "searches" if isinstance(todo[0], Setup) else "runs"
    status = Status(what, total=len(wanted), done=len(wanted) - len(todo))
    if how.jobs == 1:
        for unit in todo:
            if stop:
                break
            status.start(_name(unit))
            status.end(failed=not _attempt(grid, unit, folder, how, stop))
    else:
        _run_in_processes(grid, todo, folder, how, stop, status)
    if stop:
        raise Interrupted(f"{status.line()} The same command goes on")
    say(status.line())


def _attempt(grid: Grid, unit: Setup | Cell, folder: Path, how: How, stop: StopSignal) -> bool:
    """Do one in this process; a failure is told and kept, and the next may come."""
    try:
        _run_here(grid, unit, folder, how, stop)
    except Interrupted:
        raise
    except Exception as error:
        code = exit_code_of(error)
        if code is None:
            traceback.print_exc()
        say(f"Failed: {_name(unit)}: {one_line(error)}")
        return False
    return True


def _run_here(grid: Grid, unit: Setup | Cell, folder: Path, how: How, stop: StopSignal) -> None:
    """Do one in this process; why it failed is kept beside it.

    Raises:
        Whatever the run raises.
    """
    place = _place(unit, folder)
    forget_failure(place)
    try:
        if isinstance(unit, Setup):
            search_rates(grid, unit, place, trials=how.trials, stop=stop, launcher=how.launcher)
        else:
            cell = _chosen(unit, folder, how)
            if cell is None:
                raise UsageError(f"The search for the rates of {unit.setup.folder} has not ended with a score")
            run_cell(grid, cell, place, stop=stop, launcher=how.launcher)
    except Interrupted:
        raise
    except Exception as error:
        record_failure(place, Failure(" ".join(one_line(error).split()), exit_code_of(error) or 1))
        raise


def _run_in_processes(
    grid: Grid, todo: Sequence[Setup | Cell], folder: Path, how: How, stop: StopSignal, status: Status
) -> None:
    numbers = {unit: number for number, unit in enumerate(units(grid, how))}
    running: list[Setup | Cell] = []

    def started(unit: Setup | Cell) -> None:
        forget_failure(_place(unit, folder))
        running.append(unit)
        status.start(_name(unit))

    def ended(unit: Setup | Cell, code: int) -> None:
        running.remove(unit)
        if code and stop:
            return
        if code and read_failure(_place(unit, folder)) is None:  # it was killed, or stopped by a signal of its own
            by = f"signal {-code}" if code < 0 else f"exit code {code}"
            record_failure(_place(unit, folder), Failure(f"it ended by {by}; see {_log(unit, folder)}", code))
        status.end(failed=bool(code))
        failure = read_failure(_place(unit, folder))
        if failure is not None:
            say(f"Failed: {_name(unit)}: {failure.reason}")

    run_beside(
        {
            unit: [sys.executable, "-m", *unit_command(grid, numbers[unit], folder, how._replace(costs=False))]
            for unit in todo
        },
        jobs=how.jobs,
        log=lambda unit: _log(unit, folder),
        devices=visible_devices(),
        stop=stop,
        started=started,
        ended=ended,
        waits=lambda: status.draw([_name(unit) for unit in running]),
    )


def unit_command(grid: Grid, number: int | str, folder: Path, how: How) -> list[str]:
    """The module that does one of ``units`` in a process of its own, and its arguments."""
    options = ["--search", str(how.trials)] if how.trials else []
    options += ["--launcher", how.launcher] if how.launcher else []
    options += [] if how.costs else ["--no-costs"]
    return ["dept_vl.sweep", *sweep_arguments(grid, folder), *options, "--cell", str(number)]


def _is_done(grid: Grid, unit: Setup | Cell, folder: Path, how: How) -> bool:
    if isinstance(unit, Setup):
        return len(trials_of(grid, unit, _place(unit, folder))) >= how.trials
    cell = _chosen(unit, folder, how)
    data = {unit.setup.task: grid.data[unit.setup.task]}
    return cell is not None and is_complete(_place(unit, folder), settings_of(grid, cell), data=data)


def _chosen(cell: Cell, folder: Path, how: How) -> Cell | None:
    """The cell with the rates of its row's search; None if that has found none yet."""
    if not how.trials:
        return cell
    trials = read_trials(_place(cell.setup, folder))
    if len(trials) < how.trials or all(trial.score is None for trial in trials[: how.trials]):
        return None
    return cell._replace(setup=cell.setup.with_settings(best_rates(trials[: how.trials])))


def _place(unit: Setup | Cell, folder: Path) -> Path:
    return folder / ("search" if isinstance(unit, Setup) else "runs") / unit.folder


def _log(unit: Setup | Cell, folder: Path) -> Path:
    path = folder / "logs" / _place(unit, folder).relative_to(folder)
    return path.with_name(f"{path.name}.log")


def _name(unit: Setup | Cell) -> str:
    return str(_place(unit, Path()))
