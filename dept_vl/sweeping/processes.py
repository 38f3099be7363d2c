"""Commands side by side, each with a GPU of its own where there are several."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

from dept_vl.command_line import StopSignal

Key = TypeVar("Key")
POLL_SECONDS = 0.2


def run_beside(
    commands: Mapping[Key, Sequence[str]],
    *,
    jobs: int,
    log: Callable[[Key], Path],
    devices: Sequence[str],
    stop: StopSignal,
    started: Callable[[Key], None],
    ended: Callable[[Key, int], None],
    waits: Callable[[], None],
) -> None:
    """Run every command, ``jobs`` at a time; what each writes goes to its log file.

    A signal that ``stop`` tells of goes to the commands that run, which save and end; no others are started.

    Args:
        devices: numbers of the GPUs, which the commands share as evenly as they can; empty: all is left as it is.
        started, ended: called with the key, and with the exit code (negative: the signal that ended the command).
        waits: called a few times a second.
    """
    waiting, free = deque(commands), list(range(jobs))
    running: dict[int, tuple[Key, subprocess.Popen[bytes]]] = {}
    told = False
    with _ended_at_last(running):
        while running or (waiting and not stop):
            while waiting and free and not stop:
                slot, key = free.pop(0), waiting.popleft()
                environment = process_environment(slot, jobs=jobs, devices=devices)
                path = log(key)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as file:
                    running[slot] = key, _start(commands[key], environment, file)
                started(key)
            if stop and not told:
                told = True
                for _, process in running.values():
                    process.send_signal(signal.SIGTERM)
            for slot, (key, process) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[slot]
                    free.append(slot)
                    free.sort()
                    ended(key, code)
            waits()
            time.sleep(POLL_SECONDS)


def process_environment(slot: int, *, jobs: int, devices: Sequence[str]) -> dict[str, str]:
    """The environment of the command in one of ``jobs`` places: its GPU, and its share of the processor's cores."""
    environment = dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return environment


def visible_devices() -> list[str]:
    """The GPUs that this process may use, by what CUDA_VISIBLE_DEVICES calls them."""
    import torch

    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[:count] if given else [str(number) for number in range(count)]


def _start(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C comes to the sweep alone, which passes it on once.
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)  # noqa: S603


@contextmanager
def _ended_at_last(running: Mapping[int, tuple[object, subprocess.Popen[bytes]]]) -> Iterator[None]:
    """However the block is left, no command stays behind."""
    try:
        yield
    finally:
        for _, process in running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with all that a launcher has started
            process.wait()
