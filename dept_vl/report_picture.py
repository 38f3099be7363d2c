"""How a report looks. All places and sizes are in inches from the upper left corner; font sizes in points."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from feature_extraction.images.decoding import ImageFile, ImageRejected, decode_image

BLUE, GREEN, RED, GREY, PALE, BLACK = "#2f5d8a", "#1f7a3d", "#b3261e", "#666666", "#dddddd", "#000000"
WIDTH, MARGIN, DPI = 13.0, 0.4, 100
CURVES, CURVE_WIDTH, CURVE_HEIGHT = 1.1, 5.5, 2.2
HEADING, ANSWERS = 4.1, 4.55
COLUMNS, COLUMN_WIDTH, GAP = 4, 2.85, 0.267
PICTURE_HEIGHT, LINE_HEIGHT, ROW_GAP = 2.4, 0.2, 0.35
TITLE_SIZE, HEADING_SIZE, TEXT_SIZE = 15, 12, 10


class Answer(NamedTuple):
    """One answer to show."""

    text: str
    answer: str
    references: tuple[str, ...]
    right: bool | None  # None: not scored
    pictures: tuple[ImageFile, ...]


class Line(NamedTuple):
    """A line of text that fits its column."""

    text: str
    colour: str = BLACK
    weight: str = "normal"


def draw_report(
    *, title: str, log: Sequence[Mapping[str, Any]], metric: str, heading: str, answers: Sequence[Answer]
) -> bytes:
    """The report as a PNG file: learning curve above, answers below."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # the same picture whatever the user's own style
        warnings.filterwarnings("ignore", message=r"Glyph \d+")  # a sign that the font lacks is drawn as a box
        rows = [answers[start : start + COLUMNS] for start in range(0, len(answers), COLUMNS)]
        texts = [[_lines(answer) for answer in row] for row in rows]
        heights = [
            max(map(len, lines)) * LINE_HEIGHT + ROW_GAP + any(answer.pictures for answer in row) * PICTURE_HEIGHT
            for row, lines in zip(rows, texts, strict=True)
        ]
        figure = Figure(figsize=(WIDTH, ANSWERS + sum(heights)), dpi=DPI, facecolor="white")
        _write(figure, MARGIN, 0.25, _fit(title, WIDTH - 2 * MARGIN, 1, TITLE_SIZE, "bold"), TITLE_SIZE)
        losses = [(record["step"], record["loss"]) for record in log if "loss" in record]
        scores = [(record["step"], record["validation"].get(metric)) for record in log if "validation" in record]
        _draw_curve(figure, 0.75, "training loss", losses)
        _draw_curve(figure, 7.05, f"validation {metric}", [point for point in scores if point[1] is not None])
        _write(figure, MARGIN, HEADING, [Line(heading, weight="bold")], HEADING_SIZE)
        for number, row in enumerate(rows):
            top = ANSWERS + sum(heights[:number])
            for column, answer in enumerate(row):
                left = MARGIN + column * (COLUMN_WIDTH + GAP)
                _draw_pictures(figure, left, top, answer)
                below = top + PICTURE_HEIGHT + 0.1 if answer.pictures else top
                _write(figure, left, below, texts[number][column], TEXT_SIZE)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", metadata={"Software": None})  # no version: equal input, equal bytes
    return picture.getvalue()


def _draw_curve(figure: Figure, left: float, name: str, points: Sequence[tuple[int, float]]) -> None:
    axes = _place(figure, left, CURVES, CURVE_WIDTH, CURVE_HEIGHT)
    axes.set_title(name, loc="left", fontsize=HEADING_SIZE)
    axes.set_xlabel("step")
    axes.spines[["top", "right"]].set_visible(False)
    if not points:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, f"no {name} in the log", ha="center", color=GREY, transform=axes.transAxes)
        return
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(y=0.1)
    axes.set_xlim(0, max(points[-1][0], 1) * 1.1)  # with room for the last value beside its point
    steps, values = np.array(points, dtype=float).T
    if len(points) < 100:
        axes.plot(steps, values, color=BLUE, linewidth=2, marker="o", markersize=4)
    else:  # many: faintly, and their running mean over it
        window = len(points) // 30
        values, raw = np.convolve(values, np.full(window, 1 / window), mode="valid"), values
        axes.plot(steps, raw, color=BLUE, linewidth=0.8, alpha=0.35)
        steps = steps[(window - 1) // 2 :][: len(values)]
        axes.plot(steps, values, color=BLUE, linewidth=2)
    axes.annotate(f"{values[-1]:.3g}", (steps[-1], values[-1]), (8, 0), textcoords="offset points", va="center")


def _draw_pictures(figure: Figure, left: float, top: float, answer: Answer) -> None:
    for place, picture in enumerate(answer.pictures):
        width = COLUMN_WIDTH / len(answer.pictures)
        axes = _place(figure, left + place * width, top, width - 0.08, PICTURE_HEIGHT)
        axes.set(xticks=[], yticks=[])
        axes.set_anchor("SW")
        for spine in axes.spines.values():
            spine.set(color=_colour(answer), linewidth=2.5)
        try:
            axes.imshow(decode_image(picture))
        except ImageRejected as error:
            lines = _fit(str(error), width - 0.3, 10, 8)
            _write(figure, left + place * width + 0.1, top + 0.1, lines, 8)


def _lines(answer: Answer) -> list[Line]:
    """What stands below the pictures of an answer, or in their place."""
    mark = {True: "✓ ", False: "✗ ", None: ""}[answer.right]
    return [
        *_fit(answer.text, COLUMN_WIDTH, 3 if answer.pictures else 12, TEXT_SIZE),
        *_fit(mark + (answer.answer or "(no answer)"), COLUMN_WIDTH, 2, TEXT_SIZE, "bold", _colour(answer)),
        *_fit(f"reference: {_references(answer.references)}", COLUMN_WIDTH, 2, TEXT_SIZE, colour=GREY),
    ]


def _colour(answer: Answer) -> str:
    return {True: GREEN, False: RED, None: GREY}[answer.right]


def _references(references: Sequence[str]) -> str:
    """The most frequent references, with their counts where some are given more than once."""
    counts = Counter(references).most_common(3)
    if len(counts) == 1 or len(set(references)) == len(references):
        return ", ".join(text for text, _ in counts) or "none"
    return ", ".join(f"{text} ({count})" for text, count in counts)


def _fit(text: str, width: float, most: int, size: float, weight: str = "normal", colour: str = BLACK) -> list[Line]:
    """The text in at most ``most`` lines as they are drawn, not wider than ``width``; the rest is cut."""
    font = FontProperties(size=size, weight=weight)

    def fits(line: str) -> bool:
        points, _, _ = text_to_path.get_text_width_height_descent(line, font, ismath=False)
        return points <= width * 72

    def longest(rest: str) -> int:
        """How much of the rest goes into one line: whole words, or what fits of the first."""
        end = next((end for end in range(1, len(rest)) if not fits(rest[: end + 1])), len(rest))
        word_end = rest.rfind(" ", 0, end + 1)
        return end if end == len(rest) or word_end <= 0 else word_end

    rest = " ".join(text.split())
    lines: list[str] = []
    while rest and len(lines) < most:
        end = longest(rest)
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        while not fits(lines[-1] + " …"):
            lines[-1] = lines[-1][:-1].rstrip()
        lines[-1] += " …"
    return [Line(line, colour, weight) for line in lines]


def _place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    whole_width, whole_height = figure.get_size_inches()
    return figure.add_axes(
        (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    )


def _write(figure: Figure, left: float, top: float, lines: Sequence[Line], size: float) -> None:
    whole_width, whole_height = figure.get_size_inches()
    for number, line in enumerate(lines):
        figure.text(
            left / whole_width,
            1 - (top + number * LINE_HEIGHT) / whole_height,
            line.text,
            color=line.colour,
            weight=line.weight,
            fontsize=size,
            va="top",
            parse_math=False,  # dollar signs are no formulas here
        )
