"""Answers on disk: every whole line of every process survives, and nothing of another evaluation is believed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dept_vl.answer_log import COLLECTED, AnswerLog
from feature_extraction.errors import DiskFullError

IDENTITY = {"adapter": "ab" * 32, "settings": {"tasks": {"vqa": {"num_beams": 1}}}, "precision": "fp32"}
ANSWERS = {"q1": "red", "q2": 'a "quoted"\nanswer \u2028 é 😀', "q3": ""}

MakeLog = Callable[..., AnswerLog]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "evaluation" / "test" / "answers.partial"


@pytest.fixture
def make_log(folder: Path) -> MakeLog:
    """The log of a process that starts an evaluation."""

    def make(rank: int = 0, **changes: Any) -> AnswerLog:
        return AnswerLog(folder, identity=IDENTITY | changes, rank=rank)

    return make


def started(log: AnswerLog) -> dict[str, str]:
    """What the first process finds at its start."""
    log.collect()
    return log.read()


class Stopped(BaseException):
    """Stands for the end of the process: no handler of errors sees it."""


def test_there_are_no_answers_at_first(make_log: MakeLog) -> None:
    assert started(make_log()) == {}


def test_answers_of_any_text_are_found_again_after_a_stop(make_log: MakeLog) -> None:
    log = make_log()
    assert started(log) == {}
    log.append(ANSWERS)
    log.append({"q4": "blue"})
    for _ in range(3):  # stopped three times before the next answer
        assert started(make_log()) == ANSWERS | {"q4": "blue"}


def test_answers_go_on_from_stop_to_stop(make_log: MakeLog) -> None:
    expected: dict[str, str] = {}
    for number in range(4):
        log = make_log()
        assert started(log) == expected
        log.append({f"q{number}": str(number)})
        expected[f"q{number}"] = str(number)
    assert started(make_log()) == expected


def test_answers_of_all_processes_are_collected_for_every_process(make_log: MakeLog, folder: Path) -> None:
    logs = [make_log(rank) for rank in range(3)]
    logs[0].collect()
    for rank, log in enumerate(logs):
        assert log.read() == {}
        log.append({f"q{rank}": "yes", f"q{rank + 10}": "no"})
    assert len(list(folder.iterdir())) == 4
    two = [make_log(rank) for rank in range(2)]  # go on where three were stopped
    two[0].collect()
    expected = {f"q{number}": "yes" if number < 10 else "no" for number in (0, 1, 2, 10, 11, 12)}
    assert [log.read() for log in two] == [expected, expected]
    assert [path.name for path in folder.iterdir()] == [COLLECTED]


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_torn_last_line_is_left_out_and_the_ones_before_are_kept(make_log: MakeLog, folder: Path, cut: int) -> None:
    log = make_log()
    log.collect()
    log.append({"q1": "red"})
    log.append({"q2": "blue"})
    path = folder / "process-0.jsonl"
    assert path.read_bytes().endswith(b'["q2", "blue"]\n')
    path.write_bytes(path.read_bytes()[:-cut])
    log = make_log()
    assert started(log) == {"q1": "red"}
    log.append({"q3": "green"})  # not behind the torn line
    assert started(make_log()) == {"q1": "red", "q3": "green"}


def test_a_torn_first_line_is_no_log(make_log: MakeLog, folder: Path) -> None:
    log = make_log()
    log.collect()
    log.append(ANSWERS)
    path = folder / "process-0.jsonl"
    for content in (b"", b'"', path.read_bytes()[:30], path.read_bytes()[:66]):
        path.write_bytes(content)
        assert started(make_log()) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"adapter": "cd" * 32},
        {"settings": {"tasks": {"vqa": {"num_beams": 5}}}},
        {"precision": "bf16"},
        {"more": None},
    ],
)
def test_answers_of_another_evaluation_are_neither_read_nor_kept(
    make_log: MakeLog, folder: Path, change: dict[str, Any]
) -> None:
    """Whether they were collected already or not."""
    log = make_log()
    log.collect()
    log.append({"q1": "red"})
    make_log().collect()
    log = make_log()
    log.append({"q2": "blue"})
    assert started(make_log(**change)) == {}
    assert [path.name for path in folder.iterdir()] == [COLLECTED]
    assert started(make_log()) == {}  # nor by the one that they belonged to


def test_the_order_of_the_identity_s_keys_does_not_matter(make_log: MakeLog, folder: Path) -> None:
    log = make_log()
    log.collect()
    log.append(ANSWERS)
    turned = AnswerLog(folder, identity=dict(reversed(IDENTITY.items())), rank=0)
    assert started(turned) == ANSWERS


def test_deleting_leaves_nothing(make_log: MakeLog, folder: Path) -> None:
    log = make_log()
    log.collect()
    log.append(ANSWERS)
    log.delete()
    assert not folder.exists()
    assert folder.parent.is_dir()
    log.delete()  # once more does no harm
    assert started(make_log()) == {}


def test_a_stop_at_every_moment_of_collecting_loses_no_answer(make_log: MakeLog) -> None:
    expected: dict[str, str] = {}
    stops = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, stops + 1)
            try:
                make_log().collect()
            except Stopped:
                stops += 1
            else:
                break
        assert started(make_log()) == expected
        for rank in range(2):
            make_log(rank).append({f"q{stops}-{rank}": "yes"})
            expected[f"q{stops}-{rank}"] = "yes"
    assert stops == 1 + 4 + 2  # write, fsync, replace and fsync of the folder, and the files of two processes
    assert make_log().read() == expected


def fail_at(patch: pytest.MonkeyPatch, wanted: int) -> None:
    """Stop at the ``wanted``-th call that changes something on disk."""
    calls = 0

    def watch(name: str) -> None:
        original = getattr(os, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == wanted:
                raise Stopped
            return original(*arguments, **options)

        patch.setattr(os, name, counted)

    for name in ("mkdir", "write", "fsync", "replace", "unlink"):
        watch(name)


def test_a_full_disk_keeps_the_answers_before(make_log: MakeLog, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = make_log()
    log.collect()
    log.append({"q1": "red"})

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(DiskFullError, match=f"Disk full writing {folder / 'process-0.jsonl'}"):
            log.append({"q2": "blue"})
    assert started(make_log()) == {"q1": "red"}


def test_a_line_is_an_id_and_an_answer_behind_the_identity_s_digest(make_log: MakeLog, folder: Path) -> None:
    log = make_log(3)
    log.collect()
    log.append({"q1": "red", "q2": "é"})
    head, *lines = (folder / "process-3.jsonl").read_text(encoding="ascii").splitlines()
    assert len(json.loads(head)) == 64
    assert [json.loads(line) for line in lines] == [["q1", "red"], ["q2", "é"]]
