from __future__ import annotations

import re

import pytest

from feature_extraction.progress import Progress, to_stderr


def test_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    to_stderr("hello")
    assert capsys.readouterr() == ("", "hello\n")


def rows(number: int) -> range:
    return range(number * 4, min(number * 4 + 4, 10))


def test_shards_of_other_processes_count_too() -> None:
    lines: list[str] = []
    with Progress(images=10, shards=3, say=lines.append) as progress:
        progress.images_done(4, rejected=1)
        progress.shards_left([2], rows)  # somebody else has finished another
    assert re.fullmatch(r"8/10 images, 2/3 shards, [\d,]+ images/s, 00:00 left, 1 rejected", lines[0])


def test_on_a_terminal_a_bar_shows_finished_and_open_images(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    lines: list[str] = []
    with Progress(images=10, shards=3, say=lines.append) as progress:
        progress.images_done(4, rejected=0)
        progress.shards_left([1, 2], rows)
        progress.images_done(2, rejected=2)
    drawn = capsys.readouterr().err
    assert "6/10" in drawn
    assert "2 rejected" in drawn
    assert lines == []


def test_waiting_is_said_once() -> None:
    lines: list[str] = []
    with Progress(images=10, shards=3, say=lines.append) as progress:
        progress.wait([])
        for _ in range(3):
            progress.wait([f"shard {number}: here, process 1" for number in range(5)])
    assert lines == [
        "Waiting for 5 shards of others: shard 0: here, process 1; shard 1: here, process 1; shard 2: here, process 1"
    ]
