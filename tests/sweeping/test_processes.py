"""Commands side by side: their places, GPUs, signals and ends."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dept_vl.command_line import StopSignal
from dept_vl.sweeping.grid import Grid, cells
from dept_vl.sweeping.one_run import LaunchedRunError, run_cell
from dept_vl.sweeping.processes import process_environment, run_beside, visible_devices
from dept_vl.sweeping.progress import Status, duration
from feature_extraction.errors import Interrupted, NumericalError, UsageError

WAITING = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print(1, flush=True); "
    "time.sleep(60)"
)


@pytest.fixture
def beside(tmp_path: Path) -> Callable[..., list[tuple[str, int]]]:
    """Run commands, and tell what ended how."""

    def call(commands: dict[str, str], **changes: Any) -> list[tuple[str, int]]:
        ends: list[tuple[str, int]] = []
        options: dict[str, Any] = {"jobs": 2, "devices": (), "stop": StopSignal(), "waits": lambda: None}
        options |= {"started": lambda key: None, "ended": lambda key, code: ends.append((key, code)), **changes}
        programs = {key: [sys.executable, "-S", "-c", program] for key, program in commands.items()}
        run_beside(programs, log=lambda key: tmp_path / "logs" / key, **options)
        return ends

    return call


def test_all_commands_are_run_and_their_exit_codes_told(beside: Callable[..., Any], tmp_path: Path) -> None:
    programs = {"a": "print('hello')", "b": "raise SystemExit(7)", "c": "import os; os.kill(os.getpid(), 9)"}
    assert sorted(beside(programs)) == [("a", 0), ("b", 7), ("c", -9)]
    assert (tmp_path / "logs" / "a").read_text() == "hello\n"


def test_no_more_than_so_many_at_a_time_and_each_place_has_its_gpu(beside: Callable[..., Any], tmp_path: Path) -> None:
    running: set[str] = set()
    most: list[int] = []

    def started(key: str) -> None:
        running.add(key)
        most.append(len(running))

    programs = dict.fromkeys("abcd", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")
    beside(programs, devices=("4", "5"), started=started, ended=lambda key, code: running.discard(key))
    assert max(most) == 2
    assert {(tmp_path / "logs" / key).read_text() for key in programs} == {"4\n", "5\n"}


def test_a_signal_goes_to_what_runs_and_nothing_else_is_started(beside: Callable[..., Any], tmp_path: Path) -> None:
    stop = StopSignal()

    def waits() -> None:
        if (tmp_path / "logs" / "a").read_text():  # it has got so far that it hears signals
            stop.name = "SIGTERM"

    assert beside({"a": WAITING, "b": WAITING}, jobs=1, stop=stop, waits=waits) == [("a", 75)]


def test_nothing_stays_behind_when_the_sweep_is_stopped_at_once(beside: Callable[..., Any], tmp_path: Path) -> None:
    def waits() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        beside({"a": f"import os; print(os.getpid(), flush=True); {WAITING}"}, waits=waits)
    written = (tmp_path / "logs" / "a").read_text()
    if written:
        with pytest.raises(ProcessLookupError):
            os.kill(int(written.split()[0]), 0)


def test_processes_share_the_cores_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert process_environment(0, jobs=3, devices=())["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert process_environment(0, jobs=3, devices=())["OMP_NUM_THREADS"] == "5"
    assert process_environment(3, jobs=4, devices=("0", "1"))["CUDA_VISIBLE_DEVICES"] == "1"


def test_gpus_are_called_as_the_user_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,6")
    assert visible_devices() == ["3", "6"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_devices() == ["0", "1"]


class TestLaunching:
    @pytest.fixture
    def launch(self, tmp_path: Path) -> Callable[..., None]:
        grid = Grid(methods=("dept",), tasks=("rte",), data={"rte": tmp_path})

        def call(script: str, stop: StopSignal | None = None, **made: str) -> None:
            launcher = tmp_path / "launcher"
            launcher.write_text(f"#!/bin/sh\n{script}\n")
            launcher.chmod(0o755)
            run_cell(grid, cells(grid)[0], tmp_path / "run", stop=stop or StopSignal(), launcher=str(launcher))

        return call

    def test_what_fails_tells_its_exit_code(self, launch: Callable[..., None]) -> None:
        with pytest.raises(LaunchedRunError, match=r"dept_vl\.train ended with exit code 9; its last lines say why"):
            launch("exit 9")

    def test_numbers_that_are_not_finite_are_told_as_such(self, launch: Callable[..., None], tmp_path: Path) -> None:
        with pytest.raises(NumericalError, match=r"run is not finite: see its nan_batch\.json"):
            launch(f"mkdir {tmp_path}/run; touch {tmp_path}/run/nan_batch.json; exit 1")

    def test_a_signal_goes_on_to_it(self, launch: Callable[..., None]) -> None:
        stop = StopSignal()
        stop.name = "SIGTERM"
        with pytest.raises(Interrupted, match=r"SIGTERM in .*run\. The same command goes on with it"):
            launch("exec sleep 60", stop)

    def test_two_processes_do_not_train_one_run(self, launch: Callable[..., None], tmp_path: Path) -> None:
        with (tmp_path / "run.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(UsageError, match=r"run is being run by another process\. Wait for its end, or stop it"):
                launch("exit 0")


class TestStatus:
    def test_it_counts_and_estimates(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        status = Status("runs", total=10, done=2)
        status.start("a")
        now[0] = 300.0
        status.end(failed=False)
        status.end(failed=True)
        assert status.line(["b"]) == "[3/10 runs done, 1 failed, about 15 min left] b"
        assert capsys.readouterr().err == "[2/10 runs done] a\n"
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        status.draw(["b", "c"])
        assert capsys.readouterr().err == "\r[3/10 runs done, 1 failed, about 15 min left] running: 2\x1b[K"

    @pytest.mark.parametrize(("seconds", "text"), [(59, "59 s"), (150, "2 min"), (9000, "2 h"), (259200, "3 d")])
    def test_times_are_in_the_unit_that_suits(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text
