"""What the three commands share: parsing, signals, and failures as one line and an exit code."""

from __future__ import annotations

import argparse
import errno
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from feature_extraction.errors import Interrupted, UsageError

EXIT_CODES = """\
exit codes: 0 done; 2 usage; 3 invalid input data; 4 artefacts that do not belong together; 5 damaged data;
6 disk or memory; 7 numerical; 75 interrupted, the same command goes on; 130 second Ctrl-C"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose faults are UsageErrors, so that every failure leaves by the same door."""

    def __init__(self, command: str, description: str, examples: str) -> None:
        super().__init__(
            prog=f"python -m {command}",
            description=description,
            epilog=f"examples:\n{examples}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of a failure")

    def error(self, message: str) -> None:  # type: ignore[override]
        """Leave through the common door instead of printing the whole usage."""
        raise UsageError(f"{message}. See: {self.prog} --help")


class StopSignal:
    """True once SIGTERM, SIGUSR1 or the first Ctrl-C has arrived; a second Ctrl-C stops at once.

    The work asks at a place where it can save: ``if stop: …``.
    """

    def __init__(self) -> None:
        self.name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None

    def __enter__(self) -> StopSignal:
        self._former = {
            number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        say(f"{self.name} received: saving, then stopping. Ctrl-C again stops at once")


def paths_by_task(option: str, values: Sequence[str], tasks: Sequence[str]) -> dict[str, Path]:
    """The path of each task, from ``PATH`` for all of them or ``TASK=PATH`` for each.

    Raises:
        UsageError: a task has no path or two, or a path is for a task that is not there.
    """
    paths: dict[str, Path] = {}
    for value in values:
        task, _, path = value.partition("=")
        named = bool(path) and task.isidentifier()
        if named and task not in tasks:
            raise UsageError(f"{option} {value} is about task {task!r}, but --task names {', '.join(tasks)}")
        for one in [task] if named else tasks:
            if one in paths:
                raise UsageError(
                    f"{option} is given twice for task {one!r}. Give it once, or once for each task: {option} TASK=PATH"
                )
            paths[one] = Path(path if named else value)
    missing = [task for task in tasks if task not in paths]
    if missing:
        raise UsageError(f"{option} is missing for {', '.join(missing)}. Give {option} {missing[0]}=PATH too")
    return paths


def say(message: str) -> None:
    """Write one line for the user to stderr; stdout carries results only."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def command_text(command: str, arguments: Sequence[str]) -> str:
    """The command as the user can type it again."""
    return shlex.join(["python", "-m", command, *arguments])


def run(command: Callable[[list[str]], None], arguments: Sequence[str]) -> int:
    """Run a command and turn a failure into one line on stderr and the exit code of EXIT_CODES."""
    try:
        command(list(arguments))
    except KeyboardInterrupt:
        say("Stopped at once. The same command goes on from what was saved")
        return 130
    except Exception as error:
        code = exit_code_of(error)
        if code is None or "--debug" in arguments:
            traceback.print_exc()
        if code is None:
            say("This is a fault of dept_vl. Please report it with the lines above")
            return 1
        say(f"{'stopped' if isinstance(error, Interrupted) else 'error'}: {one_line(error)}")
        return code
    return 0


def exit_code_of(error: Exception) -> int | None:
    """The exit code of a failure that a user can meet; None of a fault of ours."""
    code = getattr(error, "exit_code", None)
    if code is not None:
        return int(code)
    # Looked up by name, so that this file does not load torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return 6
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 6
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)):
        return 3
    return None


def one_line(error: Exception) -> str:
    """What a failure is told by: its message, which may be a table and then has more lines."""
    if isinstance(error, OSError) and error.strerror and len(error.args) >= 2 and error.filename is None:
        return error.strerror
    if type(error).__name__ == "OutOfMemoryError":
        return f"{error}. Lower data.batch_size, data.evaluation_batch_size or features.batch_size"
    return str(error)
