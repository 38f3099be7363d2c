"""Times and memory of several implementations in one run."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

Step = Callable[[int], object]  # does the work of one turn, on the batch of its number
Make = Callable[[], Step]


class Measured(NamedTuple):
    """One implementation's figures; all None where memory did not suffice."""

    milliseconds: float | None = None  # the median turn
    quartiles: tuple[float, float] | None = None
    first_seconds: float | None = None  # until the first turn was done: building, compiling, recording
    peak_gigabytes: float | None = None  # of tensors, on a GPU
    reserved_gigabytes: float | None = None  # of the allocator, which counts what recorded graphs keep


def measure(makes: Mapping[str, Make], *, turns: int, rounds: int, device: torch.device) -> dict[str, Measured]:
    """Run each implementation over all turns, ``rounds`` times after a first one that does not count.

    On a CPU they take turns, so that a machine that changes its speed changes it for all. On a GPU, whose speed is
    steady and whose memory would not hold all of them, one is done with before the next begins.
    """
    if device.type == "cpu":
        return _measure_together(makes, turns=turns, rounds=rounds, device=device)
    return {
        name: _measure_together({name: make}, turns=turns, rounds=rounds, device=device)[name]
        for name, make in makes.items()
    }


def _measure_together(
    makes: Mapping[str, Make], *, turns: int, rounds: int, device: torch.device
) -> dict[str, Measured]:
    steps: dict[str, Step] = {}
    first, seconds = dict.fromkeys(makes, 0.0), {name: list[float]() for name in makes}
    failed: set[str] = set()
    _start_peak(device)
    for name, make in makes.items():
        started = _now(device)
        try:
            steps[name] = make()
            steps[name](0)
        except torch.cuda.OutOfMemoryError:
            failed.add(name)
        first[name] = _now(device) - started
    for round_number in range(rounds + 1):
        for turn in range(turns):
            for name, step in steps.items():
                if name in failed:
                    continue
                started = _now(device)
                try:
                    step(turn)
                except torch.cuda.OutOfMemoryError:
                    failed.add(name)
                    continue
                if round_number:
                    seconds[name].append(_now(device) - started)
    peak, reserved = _peaks(device)
    steps.clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {
        name: Measured() if name in failed else _summary(seconds[name], first[name], peak, reserved) for name in makes
    }


def _summary(seconds: Sequence[float], first: float, peak: float | None, reserved: float | None) -> Measured:
    ordered = sorted(1000 * one for one in seconds)
    low, high = (ordered[round(part * (len(ordered) - 1))] for part in (0.25, 0.75))
    return Measured(statistics.median(ordered), (low, high), first, peak, reserved)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _start_peak(device: torch.device) -> None:
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peaks(device: torch.device) -> tuple[float | None, float | None]:
    if device.type != "cuda":
        return None, None
    return torch.cuda.max_memory_allocated(device) / 1e9, torch.cuda.max_memory_reserved(device) / 1e9
