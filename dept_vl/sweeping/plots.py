"""The pictures of a sweep: scores with intervals, scores against trained parameters, and costs. SVG files."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from itertools import count, product
from typing import TYPE_CHECKING, Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dept_vl.figures_of_paper.drawing import COLOURS, MARKERS, STYLE, Bar, draw_bars
from dept_vl.sweeping.results import Entry, Table
from dept_vl.sweeping.tables import label_of, legend

if TYPE_CHECKING:
    from dept_vl.cost import Cost

PANEL_WIDTH, PANEL_HEIGHT = 3.6, 2.4  # inches
MARK, SIGN = 0.12, 0.09  # inches that a marker and a letter of the legend take
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
        pictures["step_time.svg"] = draw_costs(
            table, priced, lambda cost: 1000 * cost.step_seconds, unit="time of a training step, ms"
        )
        pictures["memory.svg"] = draw_costs(
            table, priced, lambda cost: cost.peak_memory_bytes / 2**20, unit="peak of memory, MiB"
        )
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


def draw_costs(table: Table, entries: Sequence[Entry], number: Callable[[Cost], float], *, unit: str) -> bytes:
    """What each method costs by one of the numbers, a panel for each task."""
    panels: dict[str, list[Bar]] = {}
    for entry in entries:
        if entry.cost is not None:
            value, strong = number(entry.cost), not table.beyond_budget(entry.setup)
            text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            bar = Bar(label_of(table, entry.setup), value, text, strong=strong)
            panels.setdefault(entry.setup.task, []).append(bar)
    devices = ", ".join(sorted({entry.cost.device for entry in entries if entry.cost}))
    return draw_bars(panels, x_label=unit, note=f"Measured on one {devices}")


def draw_parameters(table: Table, entries: Sequence[Entry]) -> bytes:
    """Scores against the parameters of the method's own, a panel for each task, one legend."""
    tasks = list(dict.fromkeys(entry.setup.task for entry in entries))
    labels = list(dict.fromkeys(label_of(table, entry.setup) for entry in entries))
    picture, handles = io.BytesIO(), {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the same picture whatever the user's own style
        matplotlib.rcParams.update(cast(Any, STYLE))
        width = (PANEL_WIDTH + 0.7) * len(tasks)
        columns = max(1, min(len(labels), int(width / (0.6 + SIGN * max(map(len, labels))))))
        height = PANEL_HEIGHT + 0.8 + 0.2 * -(-len(labels) // columns)
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        for ax, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
            mine = [entry for entry in entries if entry.setup.task == task]
            places = _places(ax, mine)
            for entry, place in zip(mine, places, strict=True):
                label, test, (low, high, _) = label_of(table, entry.setup), entry.test or 0.0, entry.interval
                colour, marker = SIGNS[labels.index(label) % len(SIGNS)]
                if low is not None and high is not None:
                    ax.vlines(place, low, high, color=colour, linewidth=1, alpha=0.6)
                (handles[label],) = ax.plot(place, test, color=colour, marker=marker, linestyle="", markersize=6)
            ax.set_title(f"{task}, {mine[0].metric}", loc="left")
            ax.set(xlabel="trained parameters of its own", ylabel="test score")
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
    return picture.getvalue()


def _places(ax: Axes, entries: Sequence[Entry]) -> list[float]:
    """Where the entries stand on a logarithmic axis, which is set up here; none covers another."""
    sizes = [entry.trained.own if entry.trained else 0 for entry in entries]
    known = [size for size in sizes if size]
    first, last = (math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))) if known else (0, 1)
    nothing = first - 1  # where a method stands that trains nothing of its own
    ends = [entry.interval[:2] for entry in entries]
    scores = [entry.test or 0.0 for entry in entries] + [end for pair in ends for end in pair if end is not None]
    span = max(max(scores) - min(scores), 1.0) * 1.2
    left, right = (nothing if 0 in sizes else first) - 0.3, max(last, first + 1) + 0.3
    width, height = MARK * (right - left) / PANEL_WIDTH, MARK * span / PANEL_HEIGHT
    taken: list[tuple[float, float]] = []
    for entry, size in zip(entries, sizes, strict=True):
        start, score = math.log10(size) if size else float(nothing), entry.test or 0.0
        beside = (start + width * ((step + 1) // 2) * (-1) ** step for step in count())
        free = (
            place
            for place in beside
            if not any(abs(place - x) < 0.99 * width and abs(score - y) < height for x, y in taken)
        )
        taken.append((next(free), score))
    ticks = range(first, max(last, first + 1) + 1)
    ax.set_xlim(left, right)
    ax.set_ylim((max(scores) + min(scores) - span) / 2, (max(scores) + min(scores) + span) / 2)
    marks = [(tick, _count(10**tick)) for tick in ticks] + ([(nothing, "0")] if 0 in sizes else [])
    ax.set_xticks([place for place, _ in marks], [text for _, text in marks])
    return [place for place, _ in taken]


def _count(value: float) -> str:
    """A count with the sign of its thousands."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{sign}"
    return f"{value:g}"
