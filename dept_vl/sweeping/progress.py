"""How far a sweep is, in one line."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from dept_vl.command_line import say

REDRAW_SECONDS = 1.0


class Status:
    """Counts what is done and has failed, and estimates the time to the end from what this command has done so far."""

    def __init__(self, what: str, *, total: int, done: int) -> None:
        self._what, self._total, self._done = what, total, done
        self._failed = self._own = 0
        self._started = self._drawn = time.monotonic()

    def line(self, running: Sequence[str] = ()) -> str:
        """For example ``[3/12 runs done, 1 failed, about 14 min left] vqa/dept/seed0``."""
        parts = [f"{self._done}/{self._total} {self._what} done"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        left = self._total - self._done - self._failed
        if self._own and left:
            each = (time.monotonic() - self._started) / self._own
            parts.append(f"about {duration(each * left)} left")
        return " ".join([f"[{', '.join(parts)}]", *running])

    def start(self, name: str) -> None:
        """Tell that something begins."""
        say(self.line([name]))

    def end(self, *, failed: bool) -> None:
        """Count what has ended."""
        self._own += 1
        self._failed += failed
        self._done += not failed

    def draw(self, running: Sequence[str]) -> None:
        """On a terminal, renew the line in its place."""
        now = time.monotonic()
        if sys.stderr.isatty() and now - self._drawn >= REDRAW_SECONDS:
            self._drawn = now
            sys.stderr.write(f"\r{self.line([f'running: {len(running)}'])}\x1b[K")
            sys.stderr.flush()


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
