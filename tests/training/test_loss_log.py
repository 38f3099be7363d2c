"""log.jsonl: whole lines only, and none from after the checkpoint that a run goes on from."""

from __future__ import annotations

import json
from pathlib import Path

from dept_vl.training.loss_log import LossLog, read_log


def write(path: Path, steps: list[int], *, resume_step: int = 0) -> None:
    log = LossLog(path, resume_step=resume_step)
    for step in steps:
        log.write({"step": step, "loss": step / 2})
    log.close()


def steps_of(path: Path) -> list[int]:
    return [record["step"] for record in read_log(path)]


def test_records_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, [1, 2, 3])
    assert read_log(path) == [{"step": step, "loss": step / 2} for step in (1, 2, 3)]
    assert path.read_text().splitlines()[0] == '{"step": 1, "loss": 0.5}'


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, [1, 2, 3, 4, 5])
    write(path, [4], resume_step=3)
    assert steps_of(path) == [1, 2, 3, 4]


def test_a_resumed_run_without_a_checkpoint_starts_an_empty_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, [1, 2])
    write(path, [])
    assert path.read_bytes() == b""


def test_a_line_that_was_not_written_whole_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, [1, 2])
    with path.open("ab") as file:
        file.write(b'{"step": 3, "lo')
    assert steps_of(path) == [1, 2]
    write(path, [3], resume_step=2)
    assert steps_of(path) == [1, 2, 3]


def test_resuming_twice_changes_no_byte(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write(path, [1, 2, 3])
    before = path.read_bytes()
    write(path, [], resume_step=3)
    assert path.read_bytes() == before


def test_a_record_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = LossLog(tmp_path / "log.jsonl", resume_step=0)
    log.write({"step": 1})
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1}
    log.close()


def test_no_log_has_no_records(tmp_path: Path) -> None:
    assert read_log(tmp_path / "log.jsonl") == []
