"""Time, memory and speed of answering against the prompt's length (the paper's Figures 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dept_vl.bench.rows import Row
from dept_vl.figures_of_paper.drawing import Curve, Panel, draw_curves

Value = Callable[[Row], float | None]


def draw_rows(rows: Sequence[Row], *, command: str, machine: str) -> dict[str, bytes]:
    """An SVG of each quantity that was measured, by file name."""
    quantities: dict[str, tuple[str, Value]] = {
        f"{command}_time.svg": ("ms", lambda row: row.measured.milliseconds),
        f"{command}_memory.svg": ("peak GB", lambda row: row.measured.peak_gigabytes),
    }
    pictures = {}
    for name, (label, value) in quantities.items():
        panels = _panels([row for row in rows if value(row) is not None], label, value)
        if panels:
            pictures[name] = draw_curves(panels, note=machine)
    return pictures


def _panels(rows: Sequence[Row], label: str, value: Value) -> list[Panel]:
    """One for each size, shape and batch in which some implementation was measured at two prompt lengths."""
    panels = []
    for key in dict.fromkeys((row.size, row.workload, row.batch) for row in rows):
        own = [row for row in rows if (row.size, row.workload, row.batch) == key]
        curves = []
        for name in dict.fromkeys(row.implementation for row in own):
            points = sorted((row.prompt_length, value(row) or 0.0) for row in own if row.implementation == name)
            x, y = zip(*points, strict=True)
            curves.append(Curve(name, x, y))
        if max(len(curve.x) for curve in curves) > 1:
            size, workload, batch = key
            panels.append(Panel(f"{size}, {workload}, batch {batch}", "prompt length m", label, curves))
    return panels
