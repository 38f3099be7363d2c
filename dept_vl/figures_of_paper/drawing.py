"""How the figures look: SVG that is the same file for the same numbers, in colours that the colour-blind tell apart.

Sizes are in inches, font sizes in points.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito's palette without its yellow, which is too pale for lines; a marker of its own goes with each colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY, PALE = "#666666", "#b9c4cc"
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
    level: float | None = None  # a line across, as at 100 %


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
    with _figure(width=3.6 * len(panels), height=3.1, columns=len(panels), note=note) as (figure, axes, picture):
        handles: dict[str, Any] = {}
        for panel, ax in zip(panels, axes, strict=True):
            _name(ax, panel.title, panel.x_label, panel.y_label)
            if panel.level is not None:
                ax.axhline(panel.level, color=GREY, linewidth=0.8, linestyle="--")
            for curve in panel.curves:
                handles[curve.label] = _draw_curve(ax, curve, labels.index(curve.label))
            ax.set_xticks(sorted({x for curve in panel.curves for x in curve.x}))
        _legend(figure, handles)
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
    with _figure(width=inches, height=3.4, columns=1, note=note) as (figure, (ax,), picture):
        _name(ax, title, "", y_label)
        handles: dict[str, Any] = {}
        for number, (label, values) in enumerate(bars.items()):
            places = [group + (number - (len(bars) - 1) / 2) * width for group in range(len(groups))]
            handles[label] = ax.bar(places, values, width * 0.92, color=COLOURS[number % len(COLOURS)])
            ax.bar_label(handles[label], fmt=f"{{:.{digits}f}}", padding=2, fontsize=8)
        ax.axhline(level, color=GREY, linewidth=0.8, linestyle="--")
        ax.margins(y=0.12)
        ax.set_xticks(range(len(groups)), groups)
        ax.grid(axis="x", visible=False)
        _legend(figure, handles)
    return picture.getvalue()


def draw_bars(panels: Mapping[str, Sequence[Bar]], *, x_label: str, note: str) -> bytes:
    """Panels side by side, each with bars that lie and may have intervals."""
    most = max(map(len, panels.values()))
    with _figure(width=4.4 * len(panels), height=0.3 * most + 1.3, columns=len(panels), note=note) as made:
        _, axes, picture = made
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
    colour = "#000000" if curve.strong else COLOURS[number % (len(COLOURS) - 1)]
    marker = "X" if curve.strong else MARKERS[number % (len(MARKERS) - 1)]
    ends = [[max(0.0, y - low) for y, low in zip(curve.y, curve.low, strict=True)]] if curve.low else None
    if ends is not None:
        ends.append([max(0.0, high - y) for y, high in zip(curve.y, curve.high, strict=True)])
    look = {"color": colour, "marker": marker, "markersize": 5.0, "linewidth": 2.4 if curve.strong else 1.3}
    return ax.errorbar(curve.x, curve.y, yerr=ends, capsize=2, elinewidth=0.8, **cast(Any, look))


def _name(ax: Axes, title: str, x_label: str, y_label: str) -> None:
    ax.set_title(title, loc="left")
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)


def _legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    if len(handles) > 1:
        columns = min(len(handles), 4)
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=columns)


@contextmanager
def _figure(
    *, width: float, height: float, columns: int, note: str
) -> Iterator[tuple[Figure, Sequence[Axes], io.BytesIO]]:
    """A figure with axes to draw on, and where its SVG stands at the end; the note is the line below."""
    picture = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the same picture whatever the user's own style
        matplotlib.rcParams.update(cast(Any, STYLE))
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        yield figure, list(axes), picture
        figure.supxlabel(note, fontsize=7, color=GREY)
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
