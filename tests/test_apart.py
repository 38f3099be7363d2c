"""A function called in a process of its own: results and failures come back, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from dept_vl.apart import _portable, call_apart
from feature_extraction.errors import UsageError


def test_a_result_comes_back_whatever_is_printed() -> None:
    assert call_apart(exec, "print('not the answer')") is None


def test_an_error_comes_back_as_it_was_raised_with_its_traceback_as_a_note() -> None:
    with pytest.raises(FileNotFoundError, match="No such file") as raised:
        call_apart(Path.read_text, Path("nowhere"))
    assert raised.value.__notes__[0].startswith("In a process of its own:\nTraceback")


def test_an_error_that_cannot_travel_comes_as_its_text() -> None:
    class Local(ValueError):
        pass

    assert repr(_portable(Local("a message"))) == "RuntimeError('Local: a message')"
    assert isinstance(_portable(UsageError("x")), UsageError)


def test_a_process_that_the_system_kills_was_short_of_memory() -> None:
    with pytest.raises(MemoryError, match=r"^the system killed the process, most likely for want of memory$"):
        call_apart(signal.raise_signal, signal.SIGKILL)


def test_a_process_that_ends_without_an_answer_is_told_with_its_last_words() -> None:
    with pytest.raises(RuntimeError, match=r"^The process for _exit ended with exit code 3: $"):
        call_apart(os._exit, 3)


def test_the_process_ends_when_the_call_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Watched(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            started.append(self)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Watched)
    former = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            call_apart(time.sleep, 600)
    finally:
        signal.signal(signal.SIGALRM, former)
    assert [process.returncode for process in started] == [-signal.SIGKILL]
