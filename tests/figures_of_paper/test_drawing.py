"""Pictures are the same for the same numbers, whatever the user's style, and say what they show."""

from __future__ import annotations

import re

import matplotlib
import pytest

from dept_vl.figures_of_paper.drawing import COLOURS, Bar, Curve, Panel, draw_bars, draw_curves, draw_groups

CURVE = Curve("mini", (0, 20, 100), (0.5, 0.6, 1.0), (0.4, 0.6, 0.9), (0.7, 0.6, 1.0))


def curves(note: str = "a note") -> str:
    other = CURVE._replace(label="base", low=(), high=())
    mean = Curve("mean", (0, 20, 100), (0.5, 0.6, 1.0), strong=True)
    panel = Panel("Time", "m", "relative", (CURVE, other, mean), level=1)
    return draw_curves([panel, panel._replace(title="Memory")], note=note).decode()


def test_a_picture_does_not_depend_on_the_users_style() -> None:
    first = curves()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": "other"}):
        assert curves() == first


def test_a_picture_has_no_date_and_no_version() -> None:
    assert "dc:date" not in curves()
    assert "Matplotlib" not in curves()


def test_titles_labels_legend_and_note_are_there() -> None:
    for text in ("Time", "Memory", "relative", "mini", "base", "mean", "a note"):
        assert f"<!-- {text} -->" in curves()


def test_a_long_note_makes_the_picture_higher_and_is_whole() -> None:
    def height(picture: str) -> float:
        found = re.search(r'height="([\d.]+)pt"', picture)
        assert found
        return float(found[1])

    words = [f"word{number}" for number in range(60)]
    picture = curves(" ".join(words))
    assert height(picture) > height(curves()) + 20
    lines = " ".join(re.findall(r"<!-- (word.*?) -->", picture, flags=re.DOTALL))
    assert lines.split() == words


def test_groups_have_their_numbers() -> None:
    bars = {"time": (30.0, 12.5), "memory": (5.0, -4.0)}
    text = draw_groups(("mini", "base"), bars, title="Saved", y_label="%", note="n", level=0, digits=1).decode()
    for number in ("30.0", "12.5", "5.0", "-4.0", "mini", "base", "Saved"):
        assert f"<!-- {number} -->" in text.replace("\N{MINUS SIGN}", "-")


@pytest.mark.parametrize("high", [None, 70.0])
def test_bars_have_labels_and_texts(high: float | None) -> None:
    low = None if high is None else 50.0
    text = draw_bars({"sst2": [Bar("dept", 60.0, "60.0", low, high)]}, x_label="score", note="n").decode()
    for part in ("dept", "60.0", "sst2", "score"):
        assert f"<!-- {part} -->" in text


def test_colours_differ() -> None:
    assert len(set(COLOURS)) == len(COLOURS)
