"""The rows of a plan: what each candidate costs, whether it keeps the limits, and which one is best."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from feature_extraction.errors import UsageError

if TYPE_CHECKING:  # the command reads its limits before torch is loaded
    from dept_vl.cost import Cost

SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
BYTES = {"M": 2**20, "G": 2**30}
PROMPT_SHARE = 0.6  # of the budget: m = 60 of l = 100, as most published runs of DePT have it


class Limits(NamedTuple):
    """What a run may cost; None for any."""

    seconds: float | None = None
    memory_bytes: float | None = None

    def broken_by(self, cost: Cost) -> list[str]:
        """The options that a candidate does not keep."""
        broken = []
        if self.seconds is not None and (cost.training_seconds is None or cost.training_seconds > self.seconds):
            broken.append("--time")
        if self.memory_bytes is not None and cost.peak_memory_bytes > self.memory_bytes:
            broken.append("--memory")
        return broken


class Row(NamedTuple):
    """One candidate: its settings, how to train it, and its cost, or why it has none."""

    prompt_length: int | None  # m; None of a method without one
    batch_size: int
    precision: str
    command: str = ""
    cost: Cost | None = None
    fault: str = ""

    @property
    def name(self) -> str:
        """What tells it from the others."""
        prompt = "" if self.prompt_length is None else f"m={self.prompt_length}, "
        return f"{prompt}batch {self.batch_size}, {self.precision}"


def seconds_of(text: str) -> float:
    """Seconds of a time such as 90m, 6h or 2d.

    Raises:
        UsageError: it is no such time.
    """
    return _quantity("--time", text, SECONDS, "a number and s, m, h or d, as in 90m, 6h or 2d")


def bytes_of(text: str) -> float:
    """Bytes of a memory size such as 512M or 16G, in powers of 1,024.

    Raises:
        UsageError: it is no such size.
    """
    return _quantity("--memory", text, BYTES, "a number and M or G, as in 512M or 16G")


def _quantity(option: str, text: str, units: dict[str, int], right: str) -> float:
    found = re.fullmatch(rf"(\d+(?:\.\d+)?)([{''.join(units)}])", text)
    if found is None or float(found[1]) == 0:
        raise UsageError(f"{option} is {text!r}; give {right}")
    return float(found[1]) * units[found[2]]


def best_row(rows: Sequence[Row], limits: Limits) -> Row | None:
    """The candidate to begin with: of the rows that keep the limits, or None if there are none.

    No cost tells which prompt length scores best. Published runs of DePT mostly spend 0.6 of the budget on the prompt,
    so the nearest to that is taken, and of several the one with the fewest seconds for a training example.
    """

    def place(row: Row) -> tuple[float, float]:
        cost = row.cost
        if cost is None or limits.broken_by(cost):
            return (float("inf"), 0.0)
        off = 0.0 if row.prompt_length is None else abs(cost.prompt_parameters / cost.own - PROMPT_SHARE)
        return (round(off, 3), cost.step_seconds / row.batch_size)

    best = min(rows, key=place, default=None)
    return None if best is None or place(best)[0] == float("inf") else best


def markdown(rows: Sequence[Row], limits: Limits) -> str:
    """The rows as a table; m and r are left out where no candidate has them."""
    prompts = any(row.prompt_length is not None for row in rows)
    titles = [
        *(["m", "r"] if prompts else []),
        *("parameters", "batch", "precision", "ms a step", "peak memory", "training", "ms an answer", "answers/s", ""),
    ]
    lines = [_line(titles), "|" + "---|" * len(titles)]
    lines += [_line(_cells(row, limits, prompts=prompts)) for row in rows]
    return "\n".join(lines) + "\n"


def _cells(row: Row, limits: Limits, *, prompts: bool) -> list[str]:
    cost = row.cost
    sizes = [_shown(row.prompt_length), _shown(cost and cost.rank)] if prompts else []
    chosen = [str(row.batch_size), row.precision]
    if cost is None:
        return [*sizes, "-", *chosen, *["-"] * 5, row.fault]
    low, mean, high = (
        f"{1000 * seconds:.0f}" for seconds in (cost.step_seconds_low, cost.step_seconds, cost.step_seconds_high)
    )
    broken = limits.broken_by(cost)
    return [
        *sizes,
        f"{cost.own:,}",
        *chosen,
        f"{mean} ({low} to {high})",
        memory_text(cost.peak_memory_bytes),
        "-" if cost.training_seconds is None else time_text(cost.training_seconds),
        f"{1000 * cost.latency_seconds:.0f}",
        f"{cost.examples_per_second:.0f}",
        f"over {' and '.join(broken)}" if broken else "",
    ]


def to_json(rows: Sequence[Row], limits: Limits, *, command: str) -> bytes:
    """Everything that is known of the rows, and the command that measured them."""
    best = best_row(rows, limits)
    content: dict[str, Any] = {
        "command": command,
        "limits": limits._asdict(),
        "rows": [
            {
                **row._asdict(),
                "cost": None if row.cost is None else row.cost._asdict(),
                "broken": [] if row.cost is None else limits.broken_by(row.cost),
            }
            for row in rows
        ],
        "best": None if best is None else rows.index(best),
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def time_text(seconds: float) -> str:
    """A time in its two largest units, as in 5 h 12 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((index for index, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2])


def memory_text(count: int) -> str:
    """Bytes in GiB, and in MiB below one."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _shown(value: object) -> str:
    return "-" if value is None else str(value)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
