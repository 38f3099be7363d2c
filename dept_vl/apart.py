"""A function called in a process of its own: what it needs at most is its own need, and what it leaves is gone."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")

CHILD = "from dept_vl.apart import answer_parent; answer_parent()"


def call_apart(function: Callable[P, Result], *arguments: P.args, **named: P.kwargs) -> Result:
    """What a module's function returns, called in a fresh process, which shares nothing with this one.

    Whatever it raises is raised here, with its traceback as a note. The process ends with this call, whatever ends it.

    Raises:
        MemoryError: the system killed the process, as it does where memory is short.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches this process alone, which ends that one
    ) as process:
        try:
            answer, complaints = process.communicate(pickle.dumps((function, arguments, named)))
        finally:
            process.kill()
            process.wait()
    if process.returncode == -9:
        raise MemoryError("the system killed the process, most likely for want of memory")
    if process.returncode != 0:
        last = complaints.decode(errors="replace").strip().rpartition("\n")[2]
        raise RuntimeError(f"The process for {function.__name__} ended with exit code {process.returncode}: {last}")
    raised, result = pickle.loads(answer)  # noqa: S301 - of our own child
    if raised is not None:
        raise raised
    return result  # type: ignore[no-any-return]


def answer_parent() -> None:
    """In the fresh process: read the call from stdin and write its result, or what it raised, to stdout."""
    answer, sys.stdout = sys.stdout.buffer, sys.stderr  # what a library prints is no answer
    function, arguments, named = pickle.load(sys.stdin.buffer)  # noqa: S301 - of our own parent
    raised, result = None, None
    try:
        result = function(*arguments, **named)
    except Exception as error:
        raised = _portable(error)
    answer.write(pickle.dumps((raised, result)))
    answer.flush()


def _portable(error: Exception) -> Exception:
    """The exception itself, or its text where it cannot travel."""
    error.add_note(f"In a process of its own:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
