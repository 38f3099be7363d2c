"""The plan command: candidates, their table, the limits, and the comparison with finished runs."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dept_vl import cost
from dept_vl.command_line import run
from dept_vl.cost import Cost
from dept_vl.costs.table import Limits, Row, best_row, bytes_of, markdown, memory_text, seconds_of, time_text
from dept_vl.plan import main
from dept_vl.settings import Settings
from dept_vl.train import main as train_main
from dept_vl.training import run as training_run
from feature_extraction.errors import DamagedError, UsageError

GIGABYTE = 2**30
COST = Cost(
    device="cpu",
    own=1_000,
    visual=320,
    heads=0,
    total=11_000,
    prompt_length=40,
    prompt_parameters=400,
    rank=3,
    step_seconds=0.1,
    step_seconds_low=0.09,
    step_seconds_high=0.1214,
    peak_memory_bytes=3 * GIGABYTE // 2,
    latency_seconds=0.02,
    examples_per_second=300.4,
    startup_seconds=4.0,
    validation_seconds=2.0,
    checkpoint_seconds=0.1,
    total_steps=7,
    training_seconds=3_725.0,
    synthetic=False,
)
Measured = list[Settings]


def fake(settings: Settings) -> Cost:
    """Costs that follow the prompt length and the batch size."""
    length, size = settings.method.prompt_length, settings.data.batch_size
    offset = settings.method.name in ("dept", "adept")
    return COST._replace(
        prompt_length=length if offset else None,
        prompt_parameters=16 * length if offset else 0,
        own=160,
        rank=10 - length if offset else None,
        step_seconds=0.01 * (10 + length) * (1 + size / 100),
        training_seconds=1_000.0 * (1 + length),
        peak_memory_bytes=size * GIGABYTE // 4,
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """The settings that were measured, by no more than arithmetic."""
    seen: Measured = []

    def measure(settings: Settings, data: object, features: object, *, steps: int, warmup: int) -> Cost:
        seen.append(settings)
        return fake(settings)._replace(synthetic=data is None)

    monkeypatch.setattr(cost, "measure_apart", measure)
    return seen


@pytest.fixture
def arguments(train_arguments: Callable[..., list[str]], tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a plan for the toy task."""

    def make(*more: str, without: tuple[str, ...] = (), method: str = "dept") -> list[str]:
        whole = train_arguments(tmp_path / "unused", method=method)
        for option in ("--output", *without):
            place = whole.index(option)
            whole[place : place + 2] = []
        varied = ["method.prompt_length", *(["data.batch_size"] if "--batch-sizes" in more else [])]
        return [*(text for text in whole if not text.startswith(tuple(varied))), *more]

    return make


Arguments = Callable[..., list[str]]
GRID = ("--prompt-lengths", "0,2,6", "--batch-sizes", "4,8")


def refused(given: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    capsys.readouterr()
    assert run(main, given) == code
    return capsys.readouterr().err


class TestTable:
    def test_there_is_a_row_for_every_candidate(
        self, arguments: Arguments, measured: Measured, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(arguments(*GRID, "--precisions", "fp32,bf16"))
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        titles = "| m | r | parameters | batch | precision | ms a step | peak memory | training | ms an answer "
        assert lines[0] == f"{titles}| answers/s |  |"
        assert lines[1] == "|---|---|---|---|---|---|---|---|---|---|---|"
        rows = [line.split(" | ") for line in lines[2:14]]
        assert [(row[0], row[3], row[4]) for row in rows[:5]] == [
            ("| 0", "4", "fp32"),
            ("| 0", "4", "bf16"),
            ("| 0", "8", "fp32"),
            ("| 0", "8", "bf16"),
            ("| 2", "4", "fp32"),
        ]
        assert captured.err.splitlines()[:2] == ["[1 of 12] m=0, batch 4, fp32", "[2 of 12] m=0, batch 4, bf16"]
        assert [(one.method.rank, one.data.batch_size, one.training.precision) for one in measured[:3]] == [
            (None, 4, "fp32"),
            (None, 4, "bf16"),
            (None, 8, "fp32"),
        ]

    def test_a_row_has_units_and_the_limits_that_it_breaks(self) -> None:
        rows = [
            Row(40, 16, "fp32", "command", COST),
            Row(60, 16, "fp32", "command", None, "out of memory"),
            Row(60, 8, "fp32", "command", COST._replace(training_seconds=None)),
        ]
        both = "over --time and --memory |"
        assert markdown(rows, Limits(3_600, GIGABYTE)).splitlines()[2:] == [
            f"| 40 | 3 | 1,000 | 16 | fp32 | 100 (90 to 121) | 1.50 GiB | 1 h 2 min | 20 | 300 | {both}",
            "| 60 | - | - | 16 | fp32 | - | - | - | - | - | out of memory |",
            f"| 60 | 3 | 1,000 | 8 | fp32 | 100 (90 to 121) | 1.50 GiB | - | 20 | 300 | {both}",
        ]
        assert markdown(rows[:1], Limits()).splitlines()[2].endswith("| 300 |  |")

    def test_other_methods_have_no_prompt_to_shorten(
        self, arguments: Arguments, measured: Measured, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(arguments("--batch-sizes", "4,8", "--budget", "200", method="lora"))
        out = capsys.readouterr().out
        assert out.startswith("| parameters | batch |")
        assert len(out.split("\n\n")[0].splitlines()) == 4
        assert [one.method.budget for one in measured] == [200, 200]
        assert "To begin with: batch 8, fp32\n" in out

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0.2, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3_725, "1 h 2 min"), (200_000, "2 d 7 h")],
    )
    def test_times_have_two_units(self, seconds: float, text: str) -> None:
        assert time_text(seconds) == text

    def test_sizes_below_a_gigabyte_are_in_megabytes(self) -> None:
        assert [memory_text(200 * 2**20), memory_text(GIGABYTE)] == ["200 MiB", "1.00 GiB"]


class TestChoice:
    def test_the_prompt_is_near_the_published_share_and_the_batch_is_quickest(self) -> None:
        rows = [
            Row(length, size, "fp32", "", COST._replace(prompt_parameters=length * 10, step_seconds=seconds))
            for length, size, seconds in ((20, 8, 0.1), (60, 8, 0.4), (60, 16, 0.6), (100, 8, 0.1))
        ]
        best = best_row(rows, Limits())
        assert best is not None
        assert best.name == "m=60, batch 16, fp32"

    def test_rows_over_a_limit_or_without_a_cost_are_not_chosen(self) -> None:
        rows = [Row(60, 8, "fp32", "", None, "out of memory"), Row(40, 8, "fp32", "", COST)]
        assert best_row(rows, Limits()) == rows[1]
        assert best_row(rows, Limits(memory_bytes=GIGABYTE)) is None
        assert best_row([], Limits()) is None

    def test_the_limits_decide_and_the_rest_is_marked(
        self, arguments: Arguments, measured: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        plan = tmp_path / "plan.json"
        main(arguments(*GRID, "--time", "1h", "--memory", "1G", "--output", str(plan)))
        out = capsys.readouterr().out
        assert "\nTo begin with: m=2, batch 4, fp32\n" in out
        assert out.count("over --time |") == 1
        assert out.count("over --memory |") == 2
        assert out.count("over --time and --memory |") == 1
        content = json.loads(plan.read_text())
        assert content["limits"] == {"seconds": 3_600, "memory_bytes": GIGABYTE}
        assert [row["broken"] for row in content["rows"]][-2:] == [["--time"], ["--time", "--memory"]]
        assert content["rows"][0]["cost"] == fake(measured[0])._asdict()
        assert content["rows"][content["best"]]["prompt_length"] == 2
        assert content["command"].startswith("python -m dept_vl.plan --task vqa")

    def test_where_nothing_keeps_the_limits_that_is_said(
        self, arguments: Arguments, measured: Measured, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(arguments(*GRID, "--memory", "16M"))
        assert capsys.readouterr().out.endswith("\nNo candidate keeps the limits.\n")

    @pytest.mark.parametrize("own_size", [(), ("task.batch_size=3",)])
    def test_the_command_trains_the_very_candidate(
        self,
        arguments: Arguments,
        measured: Measured,
        own_size: tuple[str, ...],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        plan = tmp_path / "plan.json"
        main(arguments(*GRID, "--budget", "160", "--output", str(plan), *own_size))
        trained: list[dict[str, Any]] = []
        monkeypatch.setattr(training_run, "train_run", lambda **options: trained.append(options))
        for row in json.loads(plan.read_text())["rows"]:
            command = shlex.split(row["command"])
            assert command[:3] == ["python", "-m", "dept_vl.train"]
            train_main(command[3:])
        assert [one["settings"] for one in trained] == measured
        assert {one.method.budget for one in measured} == {160}
        assert {one.task.batch_size or one.data.batch_size for one in measured} == {4, 8}
        assert trained[0]["output"] == Path("runs/dept-m0-batch4-fp32")


class TestMadeUpData:
    def test_it_is_said_and_the_command_has_a_place_for_the_real_one(
        self, arguments: Arguments, measured: Measured, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(arguments("--prompt-lengths", "2", without=("--data",)))
        out = capsys.readouterr().out
        assert "\nMeasured on made-up examples of the longest texts and targets: an upper bound.\n" in out
        assert "--data DIR --features" in out

    def test_it_needs_no_features_either(
        self, arguments: Arguments, measured: Measured, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(arguments("method.prompt_length=3", without=("--data", "--features")))
        assert [one.method.prompt_length for one in measured] == [3]
        assert "--features STORE" in capsys.readouterr().out

    def test_its_time_needs_a_number_of_steps(
        self, arguments: Arguments, measured: Measured, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = arguments("--time", "1h", "training.steps=null", "training.epochs=3", without=("--data",))
        assert refused(given, capsys) == (
            "error: --time needs the number of steps, which training.epochs does not tell without the data. "
            "Give --data, or training.steps=N training.epochs=null\n"
        )
        assert measured == []


class TestWhatFails:
    def fail(self, monkeypatch: pytest.MonkeyPatch, errors: dict[int, BaseException]) -> None:
        """Let candidates of these prompt lengths fail."""

        def measure(settings: Settings, *arguments: object, **more: object) -> Cost:
            if settings.method.prompt_length in errors:
                raise errors[settings.method.prompt_length]
            return fake(settings)

        monkeypatch.setattr(cost, "measure_apart", measure)

    def test_out_of_memory_and_impossible_sizes_are_rows(
        self, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.fail(monkeypatch, {0: MemoryError("no room"), 2: UsageError("m is too long")})
        main(arguments("--prompt-lengths", "0,2,6"))
        out = capsys.readouterr().out
        assert "| 0 | - | - | 4 | fp32 | - | - | - | - | - | out of memory |" in out
        assert "| 2 | - | - | 4 | fp32 | - | - | - | - | - | m is too long |" in out
        assert "To begin with: m=6, batch 4, fp32" in out

    def test_settings_that_are_never_possible_are_an_error(
        self, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.fail(monkeypatch, {0: UsageError("the first"), 2: UsageError("the second")})
        assert refused(arguments("--prompt-lengths", "0,2"), capsys).splitlines()[-1] == "error: the first"

    def test_another_error_ends_the_plan_after_the_rows_so_far(
        self, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.fail(monkeypatch, {2: DamagedError("a shard")})
        assert run(main, arguments("--prompt-lengths", "0,2,6")) == 5
        assert "To begin with: m=0, batch 4, fp32" in capsys.readouterr().out

    def test_ctrl_c_prints_the_rows_so_far(
        self, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.fail(monkeypatch, {2: KeyboardInterrupt()})
        assert run(main, arguments("--prompt-lengths", "0,2,6", "--output", str(tmp_path / "plan.json"))) == 75
        captured = capsys.readouterr()
        assert captured.out.splitlines()[2].startswith("| 0 | 10 | 160 | 4 | fp32 |")
        message = "stopped: 1 of 3 candidates are measured; the same command measures all anew"
        assert captured.err.splitlines()[-1] == message
        assert len(json.loads((tmp_path / "plan.json").read_text())["rows"]) == 1

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (("--steps", "0"), "--steps is 0; give how many steps to time, 1 or more"),
            (("--prompt-lengths", "4,x"), "--prompt-lengths is '4,x'; give numbers of 0 or more joined by commas"),
            (("--batch-sizes", "0"), "--batch-sizes is '0'; give numbers of 1 or more joined by commas, as in 20,40"),
            (("--precisions", "fp8"), "--precisions has 'fp8'; it takes some of fp32, bf16"),
            (("--time", "6"), "--time is '6'; give a number and s, m, h or d, as in 90m, 6h or 2d"),
            (("--memory", "0G"), "--memory is '0G'; give a number and M or G, as in 512M or 16G"),
            (
                ("--budget", "90", "method.budget=80"),
                "method.budget is set by --budget already. Give one of the two",
            ),
            (
                ("--prompt-lengths", "4", "method.prompt_length=3"),
                "method.prompt_length is set by --prompt-lengths already. Give one of the two",
            ),
            (("--check", "runs/dept"), "--check takes all settings from the run; leave --task out"),
        ],
        ids=str,
    )
    def test_wrong_options(
        self,
        arguments: Arguments,
        measured: Measured,
        more: tuple[str, ...],
        message: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert refused(arguments(*more), capsys).startswith(f"error: {message}")
        assert measured == []

    def test_options_that_do_not_suit_the_task_or_method(
        self, arguments: Arguments, measured: Measured, capsys: pytest.CaptureFixture[str]
    ) -> None:
        given = arguments("--prompt-lengths", "4", method="lora")
        assert refused(given, capsys) == (
            "error: --prompt-lengths is of no use for lora, which splits no budget. Leave it out\n"
        )
        message = refused(["--task", "rte", "--features", "store"], capsys)
        assert message == "error: --features is of no use for rte, which has no images. Leave it out\n"
        message = "error: --task is missing. Name what to plan for, as in --task vqa, or a finished run: --check RUN\n"
        assert refused([], capsys) == message
        message = refused(["--check", "run", "data.batch_size=3"], capsys)
        assert message == "error: --check takes all settings from the run; leave key=value out\n"
        assert measured == []


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("90m", 5_400), ("1.5h", 5_400), ("2d", 172_800)])
def test_times_of_the_command_line(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


def test_sizes_of_the_command_line() -> None:
    assert [bytes_of("512M"), bytes_of("16G")] == [2**29, 2**34]


class TestCheck:
    def test_a_real_plan_and_a_finished_run_are_compared(
        self,
        arguments: Arguments,
        finished_run: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(cost, "measure_apart", cost.measure)
        main(["--check", str(finished_run), "--steps", "2"])
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == ["| | predicted | real | error |", "|---|---|---|---|"]
        assert [line.split(" | ")[0] for line in lines[2:]] == ["| step", "| peak memory"]
        main(arguments("--prompt-lengths", "0,4", "--steps", "2"))
        rows = capsys.readouterr().out.splitlines()[2:4]
        assert [row.split(" | ")[:4] for row in rows] == [["| 0", "6", "144", "4"], ["| 4", "4", "160", "4"]]

    @pytest.fixture
    def copy(self, finished_run: Path, tmp_path: Path) -> Path:
        """A run to change."""
        return Path(shutil.copytree(finished_run, tmp_path / "run"))

    def write(self, folder: Path, records: list[dict[str, Any]]) -> None:
        (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def test_the_errors_are_in_percent_of_the_real_and_the_first_steps_are_left_out(
        self, copy: Path, measured: Measured, capsys: pytest.CaptureFixture[str]
    ) -> None:
        steps = [
            {
                "step": step,
                "seconds": {"update": 0.19 if step else 9.0, "waiting_for_batch": 0.01},
                "peak_memory_bytes": 1,
            }
            for step in range(5)
        ]
        self.write(copy, [*steps, {"step": 5, "peak_memory_bytes": 2 * GIGABYTE}])
        main(["--check", str(copy)])
        assert capsys.readouterr().out.splitlines()[2:] == [
            "| step | 145.6 ms | 200.0 ms | -27.2 % |",
            "| peak memory | 1.00 GiB | 2.00 GiB | -50.0 % |",
        ]

    def test_a_log_without_memory_is_compared_by_time_alone(
        self, copy: Path, measured: Measured, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.write(copy, [{"step": 1, "seconds": {"update": 0.07, "waiting_for_batch": 0.0028}}])
        main(["--check", str(copy)])
        lines = capsys.readouterr().out.splitlines()[2:]
        assert lines == ["| step | 145.6 ms | 72.8 ms | +100.0 % |", "| peak memory | 1.00 GiB | - | - |"]

    def test_a_log_without_steps_is_refused(
        self, copy: Path, measured: Measured, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.write(copy, [])
        message = refused(["--check", str(copy)], capsys, code=3)
        assert message.endswith(
            "log.jsonl tells of no step. Train on, or with a lower training.log_every, and check again\n"
        )

    def test_other_threads_are_told(self, copy: Path, measured: Measured, capsys: pytest.CaptureFixture[str]) -> None:
        record = json.loads((copy / "run.json").read_text())
        (copy / "run.json").write_text(json.dumps(record | {"threads": 7}))
        main(["--check", str(copy)])
        assert capsys.readouterr().err == (
            f"{copy} was trained on 7 threads, this is {torch.get_num_threads()}: the times are not comparable. "
            "Set OMP_NUM_THREADS=7\n"
        )
