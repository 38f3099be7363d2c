"""The pictures of a sweep: scores with intervals, scores against trained parameters, and costs. SVG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import product
from typing import Any, cast

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dept_vl.figures_of_paper.drawing import COLOURS, MARKERS, STYLE, Bar, draw_bars
from dept_vl.sweeping.results import Entry, Table
from dept_vl.sweeping.tables import label_of, legend

# As many as there are methods, each of them unlike all others in colour or marker.
SIGNS = [(colour, marker) for marker, colour in product(MARKERS, COLOURS)]


def draw_all(table: Table) -> dict[str, bytes]:
    """The pictures by their file names; one without a single number is left out."""
    scored = [entry for entry in table.entries if entry.test is not None]
    priced = [entry for entry in table.entries if entry.cost is not None]
    pictures = {}
    if scored:
        pictures["scores.svg"] = draw_scores(table, scored)
        pictures["parameters.svg"] = draw_parameters(table, scored)
    if priced:
        pictures["costs.svg"] = draw_costs(table, priced)
    return pictures


def draw_scores(table: Table, entries: Sequence[Entry]) -> bytes:
    """The mean of each method with its interval, a panel for each task."""
    panels = {}
    for task in table.tasks():
        mine = [entry for entry in entries if entry.setup.task == task]
        bars = [
            Bar(
                label_of(table, entry.setup),
                entry.test or 0.0,
                f"{entry.test:.1f}{'*' if entry.significant else ''}",
                None if entry.interval.low is None else max(0.0, entry.interval.low),
                entry.interval.high,
                strong=not table.beyond_budget(entry.setup),
            )
            for entry in mine
        ]
        if bars:
            panels[f"{task}, {mine[0].metric}"] = bars
    return draw_bars(panels, x_label="test score", note="\n".join(legend(table)))


def draw_costs(table: Table, entries: Sequence[Entry]) -> bytes:
    """Time of a step and peak of memory of each method, two panels for each task."""
    panels: dict[str, list[Bar]] = {}
    for task in table.tasks():
        mine = [(entry, entry.cost) for entry in entries if entry.setup.task == task and entry.cost is not None]
        if not mine:
            continue
        steps, memory = [], []
        for entry, cost in mine:
            label, strong = label_of(table, entry.setup), not table.beyond_budget(entry.setup)
            milliseconds, mebibytes = 1000 * cost.step_seconds, cost.peak_memory_bytes / 2**20
            steps.append(Bar(label, milliseconds, f"{milliseconds:.3g}", strong=strong))
            memory.append(Bar(label, mebibytes, f"{mebibytes:,.0f}", strong=strong))
        panels |= {f"{task}, step in ms": steps, f"{task}, peak memory in MiB": memory}
    devices = ", ".join(sorted({entry.cost.device for entry in entries if entry.cost}))
    return draw_bars(panels, x_label="", note=f"Measured on one {devices}")


def draw_parameters(table: Table, entries: Sequence[Entry]) -> bytes:
    """Scores against the parameters of the method's own, a panel for each task, one legend."""
    tasks = [task for task in table.tasks() if any(entry.setup.task == task for entry in entries)]
    labels = list(dict.fromkeys(label_of(table, entry.setup) for entry in entries))
    picture, handles = io.BytesIO(), {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the same picture whatever the user's own style
        matplotlib.rcParams.update(cast(Any, STYLE))
        columns = min(4, len(labels))
        height = 3.0 + 0.2 * -(-len(labels) // columns)
        figure = Figure(figsize=(max(5.5, 3.8 * len(tasks)), height), layout="constrained", facecolor="white")
        for ax, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
            mine = [entry for entry in entries if entry.setup.task == task]
            ax.set_title(f"{task}, {mine[0].metric}", loc="left")
            ax.set_xscale("symlog", linthresh=100)  # a method may train nothing of its own
            for entry in mine:
                label = label_of(table, entry.setup)
                colour, marker = SIGNS[labels.index(label) % len(SIGNS)]
                low, high, _ = entry.interval
                test = entry.test or 0.0
                spread = None if low is None or high is None else [[max(0.0, test - low)], [max(0.0, high - test)]]
                own = entry.trained.own if entry.trained else 0
                handles[label] = ax.errorbar(
                    own, test, yerr=spread, color=colour, marker=marker, linestyle="", markersize=7, capsize=3
                )
            sizes = [entry.trained.own if entry.trained else 0 for entry in mine]
            ax.set_xlim(-40 if min(sizes) < 100 else min(sizes) / 4, max([*sizes, 100]) * 4)
            ax.margins(y=0.15)
            ax.xaxis.set_major_locator(LogLocator(base=10, numticks=8))
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.xaxis.set_major_formatter(FuncFormatter(_count))
            ax.set(xlabel="trained parameters of its own", ylabel="test score")
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
    return picture.getvalue()


def _count(value: float, place: object) -> str:
    """A count in three digits at most, with the sign of its thousands."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{sign}"
    return f"{value:g}"
