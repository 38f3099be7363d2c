"""One ordinary run: trained and evaluated where that has not been done, and nothing loaded where it has."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from dept_vl.command_line import StopSignal, command_text
from dept_vl.config import settings_from_yaml
from dept_vl.settings import Settings
from dept_vl.sweeping.grid import Cell, Grid, flat_settings, settings_of, train_arguments
from feature_extraction.differences import refuse_differences
from feature_extraction.errors import Interrupted, NumericalError, UsageError

POLL_SECONDS = 0.2
STDERR = 2  # stdout carries our own results
SPLITS = ("validation", "test")  # that every run is evaluated on


class LaunchedRunError(RuntimeError):
    """A command that a launcher has started failed, and told why itself."""

    exit_code = 1


def run_cell(
    grid: Grid,
    cell: Cell,
    folder: Path,
    *,
    stop: StopSignal,
    launcher: str | None = None,
    splits: tuple[str, ...] = SPLITS,
) -> None:
    """Train the run of a cell and evaluate it, or go on with either: in this process, or by a launcher of several.

    Raises:
        Interrupted: a signal came; the same call goes on.
        UsageError: another process is at it.
        IncompatibleError: the folder has the run of other settings or data.
        LaunchedRunError: a command that the launcher has started failed.
        Any error of training or evaluating.
    """
    settings, data = settings_of(grid, cell), {cell.setup.task: grid.data[cell.setup.task]}
    if is_complete(folder, settings, data=data, splits=splits):
        return
    with _alone(folder), nullcontext() if launcher else fresh_state(settings):
        if not _is_trained(folder, settings, data):
            arguments = train_arguments(grid, cell, folder)
            if launcher:
                _launch(launcher, ["dept_vl.train", *arguments], folder, stop)
            else:
                _train(grid, cell, folder, settings, arguments, stop)
        for split in splits:
            if stop:
                raise Interrupted(f"{stop.name} before the evaluation of {folder}. The same command goes on with it")
            if not _metrics_path(folder, split).is_file():
                if launcher:
                    arguments = ["--run", str(folder), "--split", split, "--single"]
                    _launch(launcher, ["dept_vl.evaluate", *arguments], folder, stop)
                else:
                    _evaluate(folder, split)


def is_complete(
    folder: Path, settings: Settings, *, data: Mapping[str, Path], splits: tuple[str, ...] = SPLITS
) -> bool:
    """Whether a run of these settings and data lies there, trained and evaluated. Nothing of it is loaded.

    Raises:
        IncompatibleError: it is a run of other settings or data.
    """
    return _is_trained(folder, settings, data) and all(_metrics_path(folder, split).is_file() for split in splits)


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


def _train(grid: Grid, cell: Cell, folder: Path, settings: Settings, arguments: list[str], stop: StopSignal) -> None:
    from dept_vl.training.run import train_run

    task = cell.setup.task
    train_run(
        settings=settings,
        data={task: grid.data[task]},
        features={task: grid.features[task]} if task in grid.features else {},
        output=folder,
        command=command_text("dept_vl.train", arguments),
        dry_run=False,
        stop=stop,
    )


def _evaluate(folder: Path, split: str) -> None:
    from dept_vl.inference import evaluate_run

    evaluate_run(folder, split, single=True)


def _launch(launcher: str, command: Sequence[str], folder: Path, stop: StopSignal) -> None:
    """Run a command by a launcher, which writes to our stderr; a signal goes on to it."""
    process = subprocess.Popen(  # noqa: S603 - what the user asks for
        [*shlex.split(launcher), *command], stdout=STDERR, start_new_session=True
    )
    told = False
    try:
        while process.poll() is None:
            if stop and not told:
                told = True
                process.send_signal(signal.SIGTERM)
            time.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if stop:
        raise Interrupted(f"{stop.name} in {folder}. The same command goes on with it")
    if process.returncode:
        if (folder / "nan_batch.json").is_file():
            raise NumericalError(f"The loss or gradient of {folder} is not finite: see its nan_batch.json")
        raise LaunchedRunError(f"{command[0]} ended with exit code {process.returncode}; its last lines say why")


def _is_trained(folder: Path, settings: Settings, data: Mapping[str, Path]) -> bool:
    """Whether the run has its adapter; one of other settings is refused."""
    if (folder / "run.json").is_file():
        record: dict[str, Any] = json.loads((folder / "run.json").read_text())
        places = {task: str(path.resolve()) for task, path in data.items()}
        config = folder / "config.yaml"
        refuse_differences(
            {**_saved_settings(config, config.stat().st_mtime_ns), "--data": record["data"]},
            {**flat_settings(settings), "--data": places},
            what=f"{folder} is the run of other settings (expected: its own; got: this command's)",
            advice="Give another --output, or the settings of that run to go on with it",
        )
    return (folder / "adapter").is_dir()


@cache  # asked for again and again
def _saved_settings(path: Path, changed: int) -> Mapping[str, Any]:
    return flat_settings(settings_from_yaml(path))


def _metrics_path(folder: Path, split: str) -> Path:
    return folder / "evaluation" / split / "metrics.json"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from the same run, until this one has ended in whatever way.

    A sweep that is killed may leave processes that still train.
    """
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
