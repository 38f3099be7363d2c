"""Rows of a benchmark, the goals that they are held against, and the files that they are written to."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

from dept_vl.bench.timing import Measured

VERSIONS = ("torch", "transformers", "peft", "timm")


@dataclass(frozen=True)
class Row:
    """One implementation at one shape."""

    size: str
    workload: str
    batch: int
    implementation: str  # peft, official, library, library compiled, ours
    prompt_length: int  # m
    measured: Measured
    floor_share: float | None = None  # of the time that the device's arithmetic takes, 0 to 1


class Goal(NamedTuple):
    """A number that is to be reached: a ratio of two rows' times, or of another of their quantities.

    Rows are named by size/shape/batch/implementation/m. Without ``other`` it is the quantity itself.
    """

    text: str
    at_least: float
    row: str
    other: str = ""
    quantity: str = "milliseconds"


GLUE, PADDED, VL = "base/glue/16", "base/padded/16", "base/vl/256"
MANY, MEMORY = "base/padded/64", "peak_gigabytes"
GOALS = {
    "train": (
        Goal("base, b=16, s=256: PEFT l=100 / ours m=20", 9.0, f"{PADDED}/peft/100", f"{PADDED}/ours/20"),
        Goal("VL, b=16: official m=100 / ours m=20", 18.0, "base/vl/16/official/100", "base/vl/16/ours/20"),
        Goal("VL, b=256: official m=100 / ours m=20", 4.5, f"{VL}/official/100", f"{VL}/ours/20"),
        Goal("GLUE lengths: official m=20 padded / ours m=20", 15.0, f"{GLUE}/official/20", f"{GLUE}/ours/20"),
        Goal("VL, b=256, ours: m=100 / m=20 (45 % less)", 1.82, f"{VL}/ours/100", f"{VL}/ours/20"),
        Goal("GLUE lengths, ours: m=100 / m=20 (45 % less)", 1.82, f"{GLUE}/ours/100", f"{GLUE}/ours/20"),
        Goal("VL, b=256: peak memory, official m=100 / ours m=20", 2.7, f"{VL}/official/100", f"{VL}/ours/20", MEMORY),
        *(
            Goal(f"share of the floor, {size}, b=16, m=20", share, f"{size}/padded/16/ours/20", quantity="floor_share")
            for size, share in (("base", 0.25), ("large", 0.40), ("3b", 0.55))
        ),
        Goal("CPU, GLUE lengths: PEFT l=100 padded / ours m=20", 3.0, "mini/glue/16/peft/100", "mini/glue/16/ours/20"),
    ),
    "infer": (
        Goal("greedy 8 tokens, b=16: PEFT l=100 / ours m=20", 11.0, f"{PADDED}/peft/100", f"{PADDED}/ours/20"),
        Goal("64 PEFT calls / one mixed batch", 400.0, f"{MANY}/peft, 64 calls/100", f"{MANY}/ours, 64 adapters/20"),
        Goal(
            "64 rows: one adapter / 64 adapters (1 is equal)",
            0.98,
            f"{MANY}/ours, one adapter/20",
            f"{MANY}/ours, 64 adapters/20",
        ),
    ),
}


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| size | shape | batch | implementation | m | ms | quartiles | GB | reserved | first, s | floor |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = row.measured
        if found.milliseconds is None:
            cells = ["out of memory", "", "", "", "", ""]
        else:
            low, high = found.quartiles or (0.0, 0.0)
            cells = [
                f"{found.milliseconds:.1f}",
                f"{low:.1f} to {high:.1f}",
                _number(found.peak_gigabytes, ".2f"),
                _number(found.reserved_gigabytes, ".2f"),
                _number(found.first_seconds, ".1f"),
                _number(row.floor_share, ".0%"),
            ]
        start = [row.size, row.workload, str(row.batch), row.implementation, str(row.prompt_length)]
        lines.append(f"| {' | '.join([*start, *cells])} |")
    return "\n".join(lines)


def goals_table(command: str, rows: Sequence[Row]) -> str:
    """Each goal of a command with what was found; those whose rows were not measured say so."""
    by_name = {
        f"{row.size}/{row.workload}/{row.batch}/{row.implementation}/{row.prompt_length}": {
            **row.measured._asdict(),
            "floor_share": row.floor_share,
        }
        for row in rows
    }
    lines = ["| goal | wanted | found | |", "|---|---|---|---|"]
    for goal in GOALS.get(command, ()):
        value = by_name.get(goal.row, {}).get(goal.quantity)
        other = by_name.get(goal.other, {}).get(goal.quantity) if goal.other else 1.0
        if value is None or other is None:
            lines.append(f"| {goal.text} | {goal.at_least:g} | | not measured in this run |")
        else:
            found = value / other
            verdict = "reached" if found >= goal.at_least else f"missed: {found / goal.at_least:.0%} of it"
            lines.append(f"| {goal.text} | {goal.at_least:g} | {found:.2f} | {verdict} |")
    return "\n".join(lines)


def describe_machine(device: torch.device, *, bf16: bool) -> str:
    """Device, precision and versions, in one line."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in VERSIONS if _installed(package))
    return f"{name}, {'bf16' if bf16 else 'fp32'}, Python {platform.python_version()}, {versions}"


def write_results(folder: Path, command: str, rows: Sequence[Row], machine: str) -> None:
    """``results.json`` and ``table.md``; an older run's are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"command": " ".join(sys.orig_argv), "machine": machine, "rows": [_plain(row) for row in rows]}
    (folder / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    parts = [f"`{' '.join(sys.argv)}`", machine, table(rows), goals_table(command, rows)]
    (folder / "table.md").write_text("\n\n".join(parts) + "\n")


def _plain(row: Row) -> dict[str, object]:
    return {**asdict(row), "measured": row.measured._asdict()}


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
