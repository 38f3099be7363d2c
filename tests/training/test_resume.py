"""A run that is stopped anywhere and started again by the same command ends in the same bytes."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dept_vl.command_line import run
from dept_vl.train import main
from dept_vl.training.loss_log import MEASURED, LossLog, read_log

TrainArguments = Callable[..., list[str]]

SHORT = ("training.steps=4", "training.checkpoint_every=3", "training.evaluate_every=2")  # an epoch has three steps
LONG = ("training.steps=40", "training.checkpoint_every=3", "training.evaluate_every=4")


class Stopped(BaseException):
    """Stands for the end of the process: no handler of errors sees it."""


def contents(folder: Path) -> dict[str, Any]:
    """Everything in a run's folder that does not read a clock, by its path."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    records = read_log(folder / "log.jsonl")
    found["log.jsonl"] = [{name: value for name, value in record.items() if name not in MEASURED} for record in records]
    # The two name the folder that they lie in.
    found["run.json"] = json.loads(found["run.json"]) | {"command": ""}
    return found


def fail_at(monkeypatch: pytest.MonkeyPatch, wanted: int, failure: BaseException) -> Callable[[], int]:
    """Fail at the ``wanted``-th call that puts something on disk; gives the number of calls so far."""
    calls = 0

    def watch(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == wanted:
                raise failure
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    for name in ("write", "fsync", "replace", "rename"):
        watch(os, name)
    watch(LossLog, "write")
    return lambda: calls


@pytest.fixture(scope="module")
def whole(train_arguments: TrainArguments, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of the long settings ends in that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(main, train_arguments(folder, *LONG)) == 0
    return contents(folder)


def test_two_uninterrupted_runs_have_equal_bytes(train_arguments: TrainArguments, tmp_path: Path) -> None:
    for name in ("one", "other"):
        assert run(main, train_arguments(tmp_path / name, *SHORT)) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    assert set(contents(tmp_path / "one")) == {
        "config.yaml",
        "run.json",
        "log.jsonl",
        *(f"adapter/{name}" for name in ("README.md", "adapter_config.json", "adapter_model.safetensors")),
        *(
            f"checkpoints/step-0000000{step}/{name}"
            for step in (3, 4)
            for name in ("state.json", "model.safetensors", "best.safetensors", "optimizer.safetensors")
        ),
    }


def test_a_stop_at_every_write_and_the_same_command_end_in_the_same_bytes(
    train_arguments: TrainArguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # counted as before, but a disk would take half the time
    assert run(main, train_arguments(tmp_path / "whole", *SHORT)) == 0
    expected = contents(tmp_path / "whole")
    stops = 0
    while True:
        folder = tmp_path / f"stop-{stops}"
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, stops + 1, Stopped())
            try:
                code = run(main, train_arguments(folder, *SHORT))
            except Stopped:
                stops += 1
            else:
                break
        assert run(main, train_arguments(folder, *SHORT)) == 0, f"stop {stops}"
        assert contents(folder) == expected, f"stop {stops}"
    assert code == 0
    # Settings and record, 2 files of 4 calls; the empty log and its 6 lines; two checkpoints of 4 files and an adapter
    # of 3, with 3 calls for each of these folders.
    assert stops == 2 * 4 + (3 + 6) + 2 * (4 * 4 + 3) + (3 * 4 + 3)


def test_a_full_disk_loses_nothing(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, train_arguments(tmp_path / "whole", *SHORT)) == 0
    folder = tmp_path / "full"
    for number in (1, 20, 30, 28):  # in the settings, the first and the second checkpoint, and the adapter
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, number, OSError(errno.ENOSPC, "No space left on device"))
            capsys.readouterr()
            assert run(main, train_arguments(folder, *SHORT)) == 6
            assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert run(main, train_arguments(folder, *SHORT)) == 0
    assert contents(folder) == contents(tmp_path / "whole")


def test_the_same_command_on_a_finished_run_says_so(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, train_arguments(tmp_path / "run", *SHORT)) == 0
    before = contents(tmp_path / "run")
    capsys.readouterr()
    assert run(main, train_arguments(tmp_path / "run", *SHORT)) == 0
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"{tmp_path / 'run'} has finished already: {tmp_path / 'run' / 'adapter'}"
    )
    assert contents(tmp_path / "run") == before


def test_a_damaged_checkpoint_is_refused_and_the_one_before_gives_the_same_bytes(
    train_arguments: TrainArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, train_arguments(tmp_path / "whole", *SHORT)) == 0
    folder = tmp_path / "damaged"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dept_vl.training.run.publish_adapters", interrupt)
        with pytest.raises(Stopped):
            main(train_arguments(folder, *SHORT))
    newest = folder / "checkpoints" / "step-00000004"
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    capsys.readouterr()
    assert run(main, train_arguments(folder, *SHORT)) == 5
    assert f"error: Checkpoint {newest} is damaged: model.safetensors: SHA-256 expected" in capsys.readouterr().err
    assert not (folder / "adapter").exists()
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    assert run(main, train_arguments(folder, *SHORT)) == 0
    assert contents(folder) == contents(tmp_path / "whole")


def interrupt(*arguments: object) -> None:
    raise Stopped


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "dept_vl.train", *arguments], stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for_step(process: subprocess.Popen[str], log: Path, step: int) -> None:
    """Return once the log of a running process tells of a step."""
    while process.poll() is None:
        records = read_log(log)
        if records and records[-1]["step"] >= step:
            return
        time.sleep(0.002)


def kill_at_random(arguments: list[str], folder: Path, *, kills: int, seed: int) -> int:
    """Start the command ``kills`` times, each time killed at some later step; how often it was killed in its work."""
    chance = random.Random(seed)
    hits = 0
    for step in sorted(chance.sample(range(1, 40), kills)):
        process = start(arguments)
        wait_for_step(process, folder / "log.jsonl", step)
        time.sleep(chance.uniform(0, 0.01))
        process.kill()
        process.communicate()
        hits += process.returncode == -signal.SIGKILL
    return hits


def test_three_kills_and_the_same_command_end_in_the_same_bytes(
    train_arguments: TrainArguments, tmp_path: Path, whole: dict[str, Any]
) -> None:
    arguments = train_arguments(tmp_path / "run", *LONG)
    assert kill_at_random(arguments, tmp_path / "run", kills=3, seed=0) == 3
    assert run(main, arguments) == 0
    assert contents(tmp_path / "run") == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_twenty_kills_and_the_same_command_end_in_the_same_bytes(
    train_arguments: TrainArguments, tmp_path: Path, whole: dict[str, Any], seed: int
) -> None:
    """Five in each of four runs."""
    arguments = train_arguments(tmp_path / "run", *LONG)
    assert kill_at_random(arguments, tmp_path / "run", kills=5, seed=seed) == 5
    assert run(main, arguments) == 0
    assert contents(tmp_path / "run") == whole


def test_sigterm_saves_and_the_same_command_ends_in_the_same_bytes(
    train_arguments: TrainArguments, tmp_path: Path, whole: dict[str, Any]
) -> None:
    arguments = train_arguments(tmp_path / "run", *LONG)
    process = start(arguments)
    wait_for_step(process, tmp_path / "run" / "log.jsonl", 5)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate()
    assert process.returncode == 75, messages
    assert "SIGTERM received: saving, then stopping. Ctrl-C again stops at once\n" in messages
    last = messages.splitlines()[-1]
    assert last.startswith("stopped: SIGTERM at step ")
    assert last.endswith(f" of 40, saved in {tmp_path / 'run'}. Run the same command to go on")
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert f"step-{int(last.split()[4]):08d}" == saved[-1]
    assert run(main, arguments) == 0
    assert contents(tmp_path / "run") == whole
