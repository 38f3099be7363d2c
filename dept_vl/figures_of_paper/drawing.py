"""How the figures look: SVG that is the same file for the same numbers, in colours that the colour-blind tell apart.

Sizes are in inches, font sizes in points.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe & Ito's palette without its yellow, which is too pale for lines; a marker of its own goes with each colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY, PALE = "#666666", "#b9c4cc"
# Inches: a line of the note, a row of the legend, a letter of it; and letters of the note in an inch.
NOTE_LINE, LEGEND_LINE, LEGEND_LETTER, NOTE_LETTERS = 0.13, 0.22, 0.085, 17
STYLE: Mapping[str, Any] = {
    "svg.hashsalt": "dept_vl",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlepad": 10,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


class Curve(NamedTuple):
    """Points joined by a line."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()  # lower ends of the bars at the points; empty without bars
    high: Sequence[float] = ()
    strong: bool = False  # the one to look at


class Panel(NamedTuple):
    """One pair of axes with curves."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    level: float | None = None  # a line across, as at 1; the axis then begins at 0


class Bar(NamedTuple):
    """One bar with its number."""

    label: str
    value: float
    text: str
    low: float | None = None  # of its interval
    high: float | None = None
    strong: bool = True


def draw_curves(panels: Sequence[Panel], *, note: str) -> bytes:
    """Panels side by side, of one legend, which stands below them."""
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    handles: dict[str, Any] = {}
    with _figure(width=3.6 * len(panels), height=2.8, columns=len(panels), note=note, legend=handles) as made:
        axes, picture = made
        for panel, ax in zip(panels, axes, strict=True):
            _name(ax, panel.title, panel.x_label, panel.y_label)
            if panel.level is not None:
                ax.axhline(panel.level, color=GREY, linewidth=0.8, linestyle="--")
            for curve in panel.curves:
                handles[curve.label] = _draw_curve(ax, curve, labels.index(curve.label))
            ax.set_xticks(sorted({x for curve in panel.curves for x in curve.x}))
            if panel.level is not None:
                ax.set_ylim(0, 1.05 * ax.get_ylim()[1])
    return picture.getvalue()


def draw_groups(
    groups: Sequence[str],
    bars: Mapping[str, Sequence[float]],
    *,
    title: str,
    y_label: str,
    note: str,
    level: float = 1,
    digits: int = 2,
) -> bytes:
    """Bars side by side in groups: ``bars`` has for each label of the legend a value for each group."""
    width = 0.8 / len(bars)
    inches = max(4.5, len(groups) * max(1.0, 0.42 * len(bars)) + 0.7)  # room for every number
    handles: dict[str, Any] = {}
    with _figure(width=inches, height=3.0, columns=1, note=note, legend=handles) as ((ax,), picture):
        _name(ax, title, "", y_label)
        for number, (label, values) in enumerate(bars.items()):
            places = [group + (number - (len(bars) - 1) / 2) * width for group in range(len(groups))]
            handles[label] = ax.bar(places, values, width * 0.92, color=COLOURS[number % len(COLOURS)])
            # On white, so that the line across does not cross the numbers.
            white = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            ax.bar_label(handles[label], fmt=f"{{:.{digits}f}}", padding=3, fontsize=8, bbox=white)
        ax.axhline(level, color=GREY, linewidth=0.8, linestyle="--")
        ax.margins(y=0.12)
        ax.set_xticks(range(len(groups)), groups)
        ax.grid(axis="x", visible=False)
    return picture.getvalue()


def draw_bars(panels: Mapping[str, Sequence[Bar]], *, x_label: str, note: str) -> bytes:
    """Panels side by side, each with bars that lie and may have intervals."""
    most = max(map(len, panels.values()))
    with _figure(width=4.4 * len(panels), height=0.3 * most + 1.1, columns=len(panels), note=note) as (axes, picture):
        for (title, bars), ax in zip(panels.items(), axes, strict=True):
            _name(ax, title, x_label, "")
            ends = [bar.value if bar.high is None else bar.high for bar in bars]
            for place, (bar, end) in enumerate(zip(bars, ends, strict=True)):
                ax.barh(place, bar.value, 0.7, color=COLOURS[0] if bar.strong else PALE)
                if bar.low is not None and bar.high is not None:
                    error = [[max(0.0, bar.value - bar.low)], [max(0.0, bar.high - bar.value)]]
                    ax.errorbar(bar.value, place, xerr=error, color="#000000", linewidth=1, capsize=2)
                ax.annotate(bar.text, (end, place), (5, 0), textcoords="offset points", va="center", size=8)
            ax.set_yticks(range(len(bars)), [bar.label for bar in bars])
            ax.invert_yaxis()
            ax.set_xlim(0, 1.2 * max([*ends, 1e-9]))  # room for the numbers
            ax.grid(axis="y", visible=False)
    return picture.getvalue()


def _draw_curve(ax: Axes, curve: Curve, number: int) -> Any:  # noqa: ANN401 - matplotlib's container
    if curve.strong:  # a broad band below the others, which it does not hide
        return ax.errorbar(curve.x, curve.y, color=GREY, linewidth=7, alpha=0.35, zorder=1)
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    ends = [[max(0.0, y - low) for y, low in zip(curve.y, curve.low, strict=True)]] if curve.low else None
    if ends is not None:
        ends.append([max(0.0, high - y) for y, high in zip(curve.y, curve.high, strict=True)])
    return ax.errorbar(curve.x, curve.y, yerr=ends, color=colour, marker=marker, markersize=5, linewidth=1.3, capsize=2)


def _name(ax: Axes, title: str, x_label: str, y_label: str) -> None:
    ax.set_title(title, loc="left")
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)


@contextmanager
def _figure(
    *, width: float, height: float, columns: int, note: str, legend: Mapping[str, Any] | None = None
) -> Iterator[tuple[Sequence[Axes], io.BytesIO]]:
    """Axes to draw on, and where the SVG stands at the end; below come the legend, where it has several, and the note.

    ``height`` is that of the axes with their titles.
    """
    lines = [part for line in note.split("\n") for part in textwrap.wrap(line, int(width * NOTE_LETTERS)) or [""]]
    picture = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the same picture whatever the user's own style
        matplotlib.rcParams.update(cast(Any, STYLE))
        figure = Figure(facecolor="white")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        yield list(axes), picture
        entries = legend if legend and len(legend) > 1 else {}
        across = max(1, int(width / (0.6 + LEGEND_LETTER * max(map(len, entries), default=0))))
        below = NOTE_LINE * len(lines) + 0.05
        bottom = below + LEGEND_LINE * -(-len(entries) // across)
        figure.set_size_inches(width, height + bottom)
        share = bottom / (height + bottom)
        figure.set_layout_engine(ConstrainedLayoutEngine(rect=(0, share, 1, 1 - share)))
        if entries:
            place = (0.5, (below - 0.05) / (height + bottom))
            figure.legend(list(entries.values()), list(entries), loc="lower center", bbox_to_anchor=place, ncols=across)
        figure.text(0.5, 0.04 / (height + bottom), "\n".join(lines), ha="center", va="bottom", fontsize=7, color=GREY)
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
