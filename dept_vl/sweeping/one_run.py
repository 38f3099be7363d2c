"""One ordinary run: trained and evaluated where that has not been done, and nothing loaded where it has."""

from __future__ import annotations

import fcntl
import gc
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dept_vl.command_line import StopSignal, command_text
from dept_vl.config import settings_from_yaml
from dept_vl.settings import Settings
from dept_vl.sweeping.grid import Cell, Grid, settings_of, train_arguments
from feature_extraction.errors import Interrupted, UsageError

SPLITS = ("validation", "test")  # that every run is evaluated on


def complete_run(
    folder: Path,
    settings: Settings,
    *,
    data: Mapping[str, Path],
    features: Mapping[str, Path],
    command: str,
    stop: StopSignal,
    splits: tuple[str, ...] = SPLITS,
) -> None:
    """Train a run of one task and evaluate it, or go on with either.

    Raises:
        Interrupted: a signal came; the same call goes on.
        UsageError: another process is at it.
    """
    if is_complete(folder, settings, data=data, splits=splits):
        return
    from dept_vl.inference import evaluate_run
    from dept_vl.training.run import train_run

    with _alone(folder), fresh_state(settings):
        if not _is_trained(folder, settings, data):
            train_run(
                settings=settings,
                data=data,
                features=features,
                output=folder,
                command=command,
                dry_run=False,
                stop=stop,
            )
        for split in splits:
            if stop:
                raise Interrupted(f"{stop.name} before the evaluation of {folder}. The same command goes on with it")
            if not _metrics_path(folder, split).is_file():
                evaluate_run(folder, split, single=True)


def run_cell(grid: Grid, cell: Cell, folder: Path, *, stop: StopSignal, splits: tuple[str, ...] = SPLITS) -> None:
    """Train and evaluate a cell of a grid as ``complete_run`` does, under the command that repeats it by hand."""
    task = cell.setup.task
    complete_run(
        folder,
        settings_of(grid, cell),
        data={task: grid.data[task]},
        features={task: grid.features[task]} if task in grid.features else {},
        command=command_text("dept_vl.train", train_arguments(grid, cell, folder)),
        stop=stop,
        splits=splits,
    )


def is_complete(
    folder: Path, settings: Settings, *, data: Mapping[str, Path], splits: tuple[str, ...] = SPLITS
) -> bool:
    """Whether a run of these settings and data lies there, trained and evaluated. Nothing of it is loaded."""
    return all(_metrics_path(folder, split).is_file() for split in splits) and _is_trained(folder, settings, data)


def read_metrics(folder: Path, split: str) -> dict[str, float | None]:
    """What the evaluation of a split has found."""
    metrics: dict[str, float | None] = json.loads(_metrics_path(folder, split).read_text())
    return metrics


@contextmanager
def fresh_state(settings: Settings) -> Iterator[None]:
    """A precision of its own for a run: accelerate keeps one for a whole process, and here a process has many runs."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state()
    GradientState._reset_state()
    # An evaluation takes the one that it finds.
    Accelerator(mixed_precision="bf16" if settings.training.precision == "bf16" else "no")
    try:
        yield
    finally:
        AcceleratorState._reset_state()
        GradientState._reset_state()
        gc.collect()  # a model is a circle of references
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _is_trained(folder: Path, settings: Settings, data: Mapping[str, Path]) -> bool:
    """Whether the run has its adapter; one of other settings has not, so that training says what differs."""
    if not (folder / "adapter").is_dir():
        return False
    found = replace(settings_from_yaml(folder / "config.yaml"), features=settings.features)
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found == settings and record["data"] == {task: str(path.resolve()) for task, path in data.items()}


def _metrics_path(folder: Path, split: str) -> Path:
    return folder / "evaluation" / split / "metrics.json"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from the same run, until this one has ended in whatever way.

    A sweep that is killed may leave processes that still train.
    """
    if os.environ.get("RANK", "0") != "0":  # of several processes of one run the first stands for all
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.lock")
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{folder} is being run by another process. Wait for its end, or stop it, and give the command again"
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
