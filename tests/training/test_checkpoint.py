"""Checkpoints: whole or absent wherever the writing stops, and never believed when damaged."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from dept_vl.training import checkpoint as module
from dept_vl.training.checkpoint import (
    Checkpoint,
    Progress,
    checkpoint_folders,
    load_newest_checkpoint,
    save_checkpoint,
    tidy,
)
from feature_extraction.errors import DamagedError, DiskFullError

FILES = ("best.safetensors", "model.safetensors", "optimizer.safetensors", "state.json")
WATCHED = ("write", "fsync", "replace", "rename")  # what os offers to put something on disk


def make(step: int) -> Checkpoint:
    """A checkpoint whose every number tells its step."""
    tensors = {"prompt.prompt": torch.full((2, 3), float(step)), "prompt.trained_length": torch.tensor(step)}
    return Checkpoint(
        Progress(
            step=step,
            best_step={"vqa": step - 1, "caption": step, "gqa": step},
            best_score={"vqa": step / 3, "caption": step / 5, "gqa": 0.0},
            window_loss={"vqa": step / 7},
            window_steps={"vqa": 2},
        ),
        tensors,
        {step - 1: {name: value + 1 for name, value in tensors.items()}, step: tensors},
        {"prompt.prompt.exp_avg": torch.full((2, 3), step / 10)},
    )


def same(one: Checkpoint | None, other: Checkpoint | None) -> bool:
    if one is None or other is None:
        return one is other
    return (
        one.progress == other.progress
        and equal(one.model, other.model)
        and equal(one.optimizer, other.optimizer)
        and one.best.keys() == other.best.keys()
        and all(equal(one.best[step], other.best[step]) for step in one.best)
    )


def equal(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


class Stopped(BaseException):
    """Stands for the end of the process: no handler of errors sees it."""


def stop_at(monkeypatch: pytest.MonkeyPatch, wanted: int, failure: BaseException) -> Callable[[], int]:
    """Fail at the ``wanted``-th call that puts something on disk; gives the number of calls so far."""
    calls = 0

    def watch(name: str) -> None:
        original = getattr(os, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == wanted:
                raise failure
            return original(*arguments, **options)

        monkeypatch.setattr(os, name, counted)

    for name in WATCHED:
        watch(name)
    return lambda: calls


def test_a_saved_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = save_checkpoint(tmp_path, make(200))
    assert saved == tmp_path / "step-00000200"
    assert names(saved) == list(FILES)
    assert same(load_newest_checkpoint(tmp_path), make(200))


def test_the_best_tensors_of_several_tasks_are_saved_once_for_each_step(tmp_path: Path) -> None:
    """Of the three tasks two are best at the same step."""
    saved = save_checkpoint(tmp_path, make(20))
    assert set(load((saved / "best.safetensors").read_bytes())) == {
        f"{step}/{name}" for step in (19, 20) for name in ("prompt.prompt", "prompt.trained_length")
    }


def test_a_run_without_a_validation_has_no_best_tensors(tmp_path: Path) -> None:
    first = Checkpoint(Progress(step=1), make(1).model, {}, make(1).optimizer)
    save_checkpoint(tmp_path, first)
    assert same(load_newest_checkpoint(tmp_path), first)


def test_there_is_none_at_first(tmp_path: Path) -> None:
    assert load_newest_checkpoint(tmp_path / "checkpoints") is None


def test_equal_checkpoints_have_equal_bytes(tmp_path: Path) -> None:
    one, other = (save_checkpoint(tmp_path / name, make(7)) for name in ("one", "other"))
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def test_the_two_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 10, 100):
        save_checkpoint(tmp_path, make(step))
    assert names(tmp_path) == ["step-00000010", "step-00000100"]
    assert same(load_newest_checkpoint(tmp_path), make(100))


def test_saving_the_same_step_again_changes_nothing(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, make(3))
    before = first.stat().st_mtime_ns, {name: (first / name).read_bytes() for name in FILES}
    assert save_checkpoint(tmp_path, make(3)) == first
    assert before == (first.stat().st_mtime_ns, {name: (first / name).read_bytes() for name in FILES})


def test_what_a_stopped_process_left_is_ignored_and_tidied_away(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(3))
    left = tmp_path / "step-00000009.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert checkpoint_folders(tmp_path) == [tmp_path / "step-00000003"]
    assert same(load_newest_checkpoint(tmp_path), make(3))
    save_checkpoint(tmp_path, make(9))  # in the way of this very step
    assert names(tmp_path) == ["step-00000003", "step-00000009"]
    left.mkdir()
    tidy(tmp_path)
    assert names(tmp_path) == ["step-00000003", "step-00000009"]


def test_tidying_leaves_the_two_newest(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, make(step))
    (tmp_path / "step-00000000").mkdir()  # half deleted, when the process was stopped
    tidy(tmp_path)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    tidy(tmp_path / "absent")


def test_a_stop_at_every_write_leaves_the_former_or_the_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    for number in range(1, 100):
        folder = tmp_path / str(number)
        save_checkpoint(folder, make(1))
        save_checkpoint(folder, make(2))
        with monkeypatch.context() as patch:
            stop_at(patch, number, Stopped())
            try:
                save_checkpoint(folder, make(3))
            except Stopped:
                pass
            else:
                break
        newest = load_newest_checkpoint(folder)
        assert newest is not None
        assert same(newest, make(newest.progress.step))
        found.add(newest.progress.step)
        save_checkpoint(folder, make(3))
        tidy(folder)
        assert names(folder) == ["step-00000002", "step-00000003"]
        assert same(load_newest_checkpoint(folder), make(3))
    assert number == 4 * 4 + 3 + 1  # write, fsync, replace and fsync of a folder for each file; the folder; none left
    assert found == {2, 3}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_every_write_leaves_the_former_checkpoint_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    save_checkpoint(tmp_path, make(2))
    for number in range(1, 17):
        with monkeypatch.context() as patch:
            stop_at(patch, number, OSError(code, os.strerror(code)))
            with pytest.raises(OSError) as raised:  # noqa: PT011 - a full disk
                save_checkpoint(tmp_path, make(3))
        assert raised.value.errno == code
        if number % 4 in (1, 2):  # write and fsync; a rename needs no space
            assert isinstance(raised.value, DiskFullError)
            assert str(raised.value.strerror).startswith(f"Disk full writing {tmp_path / 'step-00000003.partial'}/")
        assert names(tmp_path) == ["step-00000002"]
        assert same(load_newest_checkpoint(tmp_path), make(2))
    save_checkpoint(tmp_path, make(3))
    assert same(load_newest_checkpoint(tmp_path), make(3))


@pytest.mark.parametrize("file", FILES)
def test_one_flipped_bit_anywhere_is_found_and_the_folder_named(tmp_path: Path, file: str) -> None:
    save_checkpoint(tmp_path, make(1))
    folder = save_checkpoint(tmp_path, make(2))
    content = (folder / file).read_bytes()
    for place in range(0, len(content), max(len(content) // 50, 1)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (folder / file).write_bytes(damaged)
        with pytest.raises(DamagedError) as raised:
            load_newest_checkpoint(tmp_path)
        message = str(raised.value)
        assert message.startswith(f"Checkpoint {folder} is damaged: {file}")
        assert message.endswith(
            "Delete this folder and run the same command to go on from the one before (step-00000001)"
        )
        assert raised.value.exit_code == 5


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_damage(tmp_path: Path, file: str) -> None:
    folder = save_checkpoint(tmp_path, make(2))
    (folder / file).unlink()
    with pytest.raises(DamagedError) as raised:
        load_newest_checkpoint(tmp_path)
    assert str(raised.value).startswith(f"Checkpoint {folder} is damaged: ")
    assert file in str(raised.value)
    assert str(raised.value).endswith("to go on from the start")


def test_a_digest_is_told_as_expected_and_got(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, make(2))
    (folder / "best.safetensors").write_bytes(b"")
    with pytest.raises(DamagedError, match=r"best\.safetensors: SHA-256 expected [0-9a-f]{64}, got e3b0c442"):
        load_newest_checkpoint(tmp_path)


def test_after_deleting_a_damaged_checkpoint_the_one_before_is_taken(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(1))
    folder = save_checkpoint(tmp_path, make(2))
    for file in FILES:
        (folder / file).unlink()
    folder.rmdir()
    assert same(load_newest_checkpoint(tmp_path), make(1))


def test_what_the_disk_does_not_give_back_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, make(1))
    monkeypatch.setattr(module, "sha256_of_file", lambda path: "0" * 64)
    with pytest.raises(DamagedError, match=r"^model\.safetensors: SHA-256 expected [0-9a-f]{64}, got 0{64}$"):
        save_checkpoint(tmp_path, make(2))
    assert names(tmp_path) == ["step-00000001"]
