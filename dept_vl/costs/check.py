"""A finished run's real costs, and those that are measured for its settings now."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from dept_vl import cost
from dept_vl.command_line import say
from dept_vl.config import settings_from_yaml
from dept_vl.costs.table import memory_text
from dept_vl.run_folder import data_folder, read_record
from dept_vl.training.loss_log import read_log
from feature_extraction.errors import InputDataError


class RealCost(NamedTuple):
    """What the log of a run says of its costs."""

    step_seconds: float  # mean of the logged steps, with the wait for their batches
    peak_memory_bytes: int | None  # None in a log of an earlier version


def real_cost(folder: Path) -> RealCost:
    """Read a run's log; its first tenth of lines, and at least one of several, is left out of the time as warm-up.

    Raises:
        InputDataError: the log has no line of a step.
    """
    records = read_log(folder / "log.jsonl")
    seconds = [sum(record["seconds"].values()) for record in records if "seconds" in record]
    if not seconds:
        raise InputDataError(
            f"{folder / 'log.jsonl'} tells of no step. Train on, or with a lower training.log_every, and check again"
        )
    peaks = [record["peak_memory_bytes"] for record in records if "peak_memory_bytes" in record]
    warm = max(len(seconds) // 10, 1) if len(seconds) > 1 else 0
    return RealCost(statistics.fmean(seconds[warm:]), max(peaks, default=None))


def check_run(folder: Path, *, steps: int, warmup: int) -> str:
    """A table of real and newly measured costs of a run, with the errors of the latter in percent.

    Raises:
        InputDataError: no run, or its log tells of no step.
        UsageError: the run names no data.
    """
    record, real = read_record(folder), real_cost(folder)
    settings = settings_from_yaml(folder / "config.yaml")
    threads = torch.get_num_threads()
    if record["threads"] != threads:
        say(
            f"{folder} was trained on {record['threads']} threads, this is {threads}: the times are not comparable. "
            f"Set OMP_NUM_THREADS={record['threads']}"
        )
    data = {task: data_folder(record, task) for task in settings.tasks}
    features = {task: Path(path) for task, path in record["features"].items()}
    found = cost.measure_apart(settings, data, features, steps=steps, warmup=warmup)
    lines = [
        "| | predicted | real | error |",
        "|---|---|---|---|",
        _line("step", found.step_seconds, real.step_seconds, lambda seconds: f"{1000 * seconds:.1f} ms"),
        _line("peak memory", found.peak_memory_bytes, real.peak_memory_bytes, lambda size: memory_text(int(size))),
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, predicted: float, real: float | None, text: Callable[[float], str]) -> str:
    if real is None:
        return f"| {name} | {text(predicted)} | - | - |"
    return f"| {name} | {text(predicted)} | {text(real)} | {100 * (predicted / real - 1):+.1f} % |"
