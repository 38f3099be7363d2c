"""The sweep command: ordinary runs of a grid, resumed, searched, failed and compared."""

from __future__ import annotations

import csv
import json
import math
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dept_vl import cost, inference
from dept_vl.command_line import run
from dept_vl.config import settings_from_yaml, settings_to_yaml
from dept_vl.leaderboard import write_numbers
from dept_vl.settings import Settings
from dept_vl.sweep import main
from dept_vl.sweeping import one_run, plots, possible, runner
from dept_vl.train import main as train_main
from dept_vl.training import run as training_run
from feature_extraction.errors import NumericalError, UsageError

TOY_DATA = Path(__file__).parent / "toy_data"
SIZES = (
    *("task.max_text_length=16", "method.budget_length=10", "method.prompt_length=4", "method.rank=3"),
    *("data.batch_size=4", "training.steps=2", "training.epochs=null", "training.evaluate_every=2"),
)
NOTHING = "method visual_only trains nothing on mrpc, which has no images. Choose another --method, such as dept"
Sweep = Callable[..., list[str]]


class Calls(NamedTuple):
    """The folders in which something was really done."""

    trained: list[str]
    evaluated: list[str]


@pytest.fixture(scope="module")
def sweep(tiny_t5: Path) -> Sweep:
    """The command line of a small sweep."""

    def make(output: Path, *more: str, methods: str = "dept,prompt,visual_only") -> list[str]:
        chosen = {"methods": methods, "tasks": "mrpc", "backbones": tiny_t5, "data": TOY_DATA / "mrpc"}
        options = [text for name, value in chosen.items() for text in (f"--{name}", str(value))]
        return [*options, "--output", str(output), "--seeds", "2", *SIZES, *more]

    return make


def made_up(settings: Any, *_: object, **__: object) -> cost.Cost:
    """Costs without a measurement."""
    numbers: dict[str, Any] = dict.fromkeys(cost.Cost._fields, 0)
    numbers |= {"device": "cpu", "own": 160, "total": 16_000, "step_seconds": 0.25, "peak_memory_bytes": 3 << 20}
    return cost.Cost(**numbers | {"latency_seconds": len(settings.method.name) / 1000})


@pytest.fixture(scope="module")
def finished(sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep; not to be changed."""
    folder = tmp_path_factory.mktemp("sweeps") / "mrpc"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "measure_apart", made_up)
        main(sweep(folder))
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The same to change."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What is trained and evaluated from now on, with files as real runs leave them; the work itself is left out."""
    counted = Calls([], [])

    def train_run(*, settings: Settings, data: dict[str, Path], output: Path, dry_run: bool, **_: Any) -> None:
        if settings.method.name == "visual_only":
            raise UsageError(NOTHING)
        if dry_run:
            return
        counted.trained.append(name_of(output))
        output.mkdir(parents=True)
        (output / "config.yaml").write_text(settings_to_yaml(settings))
        (output / "run.json").write_text(json.dumps({"data": {task: str(path) for task, path in data.items()}}))
        groups = {"prompt": 0.1, **({"low_rank": 0.2} if settings.method.name == "dept" else {})}
        score = 50 - 10 * abs(math.log10(settings.optimizer.prompt_lr))  # best at 1
        lines = [{"step": 1, "update_norm": groups, "validation": {"accuracy": one}} for one in (0.0, score)]
        (output / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (output / "adapter").mkdir()

    def evaluate_run(folder: Path, split: str, **_: Any) -> None:
        counted.evaluated.append(f"{name_of(folder)} {split}")
        right = 3 if folder.parent.name == "dept" else 2
        place = folder / "evaluation" / split
        write_numbers(place / "scores.json", {str(number): float(number < right) for number in range(4)})
        write_numbers(place / "metrics.json", {"accuracy": 25.0 * right})

    monkeypatch.setattr(training_run, "train_run", train_run)
    monkeypatch.setattr(inference, "evaluate_run", evaluate_run)
    monkeypatch.setattr(plots, "draw_all", lambda table: {})
    for module in (one_run, possible):
        monkeypatch.setattr(module, "fresh_state", nullcontext)
    return counted


def name_of(folder: Path) -> str:
    return "/".join(folder.parts[-2:])


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    capsys.readouterr()
    assert run(main, arguments) == code
    return capsys.readouterr().err


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def results(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".md", ".tex", ".svg")}


class TestRuns:
    def test_every_cell_is_an_ordinary_run_that_its_own_command_repeats(self, finished: Path, tmp_path: Path) -> None:
        place = finished / "runs" / "tiny-t5" / "mrpc" / "dept" / "seed1"
        record = json.loads((place / "run.json").read_text())
        python, flag, module, *arguments = shlex.split(record["command"])
        assert (python, flag, module) == ("python", "-m", "dept_vl.train")
        assert arguments[arguments.index("--output") + 1] == str(place)
        arguments[arguments.index("--output") + 1] = str(tmp_path / "again")
        train_main(arguments)
        for name in ("config.yaml", "adapter/adapter_model.safetensors"):
            assert (tmp_path / "again" / name).read_bytes() == (place / name).read_bytes()

    def test_there_is_one_for_each_method_and_seed_evaluated_on_both_splits(self, finished: Path) -> None:
        found = {
            path.parents[2].relative_to(finished / "runs") for path in finished.glob("runs/*/*/*/*/evaluation/*/m*")
        }
        names = {path.as_posix() for path in found}
        assert names == {f"tiny-t5/mrpc/{method}/seed{seed}" for method in ("dept", "prompt") for seed in (0, 1)}
        assert len(list(finished.glob("runs/*/*/*/*/evaluation/*/metrics.json"))) == 8

    def test_what_cannot_be_run_is_told_with_its_reason_and_is_no_failure(self, finished: Path) -> None:
        entry = next(row for row in rows(finished / "table.csv") if row["method"] == "visual_only")
        assert entry["note"] == f"not possible: {NOTHING}"
        assert entry["missing_seeds"] == "0"
        states = {(row["method"], row["state"]) for row in rows(finished / "results.csv")}
        assert states == {("dept", "done"), ("prompt", "done"), ("visual_only", "not possible")}

    def test_a_budget_is_each_method_s_own_but_full(self, sweep: Sweep, tmp_path: Path) -> None:
        more = ("--budget", "96", "method.rank=null", "--seeds", "7,", "--no-costs", "dept:method.prompt_length=2,4")
        main(sweep(tmp_path, *more, methods="dept,full"))
        entries = {(row["method"], row["prompt_length"]): row for row in rows(tmp_path / "table.csv")}
        assert entries["dept", "2"]["own"] == str(2 * 16 + 2 * (16 + 16))
        assert entries["dept", "4"]["own"] == str(4 * 16 + 1 * (16 + 16))
        assert (entries["full", ""]["own"], entries["full", ""]["beyond_budget"]) == ("10960", "True")
        settings = settings_from_yaml(tmp_path / "runs/tiny-t5/mrpc/dept/prompt_length=2-seed7/config.yaml")
        assert (settings.method.budget, settings.method.prompt_length, settings.training.seed) == (96, 2, 7)
        assert "full †" in (tmp_path / "table.md").read_text()

    def test_nothing_possible_is_an_error(
        self, sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = refused(sweep(tmp_path, methods="visual_only"), capsys)
        assert "error: No run of the sweep is possible. The first: method visual_only trains nothing" in message

    def test_a_method_without_features_is_not_possible(
        self, tiny_t5: Path, toy_vqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        where = ["--tasks", "vqa", "--data", str(toy_vqa), "--backbones", str(tiny_t5), "--output", str(tmp_path)]
        assert "--features is missing for vqa" in refused(["--methods", "dept", *where], capsys)


class TestResults:
    def test_the_numbers_are_those_of_the_runs(self, finished: Path) -> None:
        for row in rows(finished / "results.csv"):
            if row["state"] == "done":
                metrics = json.loads((Path(row["folder"]) / "evaluation" / "test" / "metrics.json").read_text())
                assert {name: str(value) for name, value in metrics.items()} == {
                    name: row[f"test.{name}"] for name in metrics
                }
                assert (row["own"], row["visual"], row["heads"]) == ("160", "0", "0")
                assert (row["step_seconds"], row["total"], row["percent"]) == ("0.25", "16000", "1.0")

    def test_the_table_is_printed_and_all_files_are_there(
        self, sweep: Sweep, finished: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(sweep(finished, "--collect"))
        captured = capsys.readouterr()
        assert captured.out == (finished / "table.md").read_text()
        assert "| prompt | 160 | 0.00 ± 0.00 |" in captured.out
        assert "| prompt | 1.00 % | 250.0 | 3 | 6.0 |" in captured.out
        names = {"table.md", "table.tex", "scores.svg", "parameters.svg", "step_time.svg", "memory.svg"}
        assert set(results(finished)) == names

    def test_costs_are_measured_once(
        self, sweep: Sweep, copy: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measured: list[str] = []

        def measure_apart(settings: Any, *rest: object, **named: object) -> cost.Cost:
            measured.append(settings.method.name)
            return made_up(settings)

        monkeypatch.setattr(cost, "measure_apart", measure_apart)
        main(sweep(copy))
        assert measured == []
        path = copy / "costs" / "tiny-t5" / "mrpc" / "dept.json"
        path.write_text(path.read_text().replace('"training.steps": 2', '"training.steps": 3'))
        main(sweep(copy))
        assert measured == ["dept"]

    def test_a_cost_that_cannot_be_measured_leaves_a_gap(
        self,
        sweep: Sweep,
        copy: Path,
        calls: Calls,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def measure_apart(*_: object, **__: object) -> cost.Cost:
            raise MemoryError("too little\nof it")

        monkeypatch.setattr(cost, "measure_apart", measure_apart)
        (copy / "costs" / "tiny-t5" / "mrpc" / "dept.json").unlink()
        main(sweep(copy))
        assert "The costs of tiny-t5/mrpc/dept could not be measured: too little of it" in capsys.readouterr().err
        assert "| dept | - | - | - | - |" in (copy / "table.md").read_text()


class TestGoingOn:
    def test_what_is_finished_is_not_even_loaded(
        self, sweep: Sweep, copy: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = results(copy)
        main(sweep(copy))
        assert calls == Calls([], [])
        assert results(copy) == before

    def test_a_killed_sweep_goes_on_without_doing_anything_twice(
        self, sweep: Sweep, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Killed(BaseException):
            pass

        evaluate = inference.evaluate_run

        def evaluate_run(folder: Path, split: str, **options: Any) -> None:
            if len(calls.evaluated) == 3:
                raise Killed  # as kill -9: nobody tidies up
            evaluate(folder, split, **options)

        monkeypatch.setattr(inference, "evaluate_run", evaluate_run)
        with pytest.raises(Killed):
            main(sweep(tmp_path, "--no-costs"))
        assert (calls.trained, len(calls.evaluated)) == (["dept/seed0", "prompt/seed0"], 3)
        monkeypatch.setattr(inference, "evaluate_run", evaluate)
        main(sweep(tmp_path, "--no-costs"))
        every = ["dept/seed0", "prompt/seed0", "dept/seed1", "prompt/seed1"]
        assert calls.trained == every
        assert calls.evaluated == [f"{name} {split}" for name in every for split in ("validation", "test")]

    def test_a_signal_saves_and_the_same_command_goes_on_to_equal_weights(
        self,
        sweep: Sweep,
        finished: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        original = training_run.train_run

        def train_run(**options: Any) -> None:
            if not options["dry_run"]:
                options["stop"].name = "SIGTERM"  # as if the signal came: the loop saves and ends
            original(**options)

        monkeypatch.setattr(training_run, "train_run", train_run)
        arguments = sweep(tmp_path / "out", "--no-costs", "--seeds", "1", methods="prompt")
        assert "stopped: SIGTERM at step 1 of 2" in refused(arguments, capsys, code=75)
        assert not (tmp_path / "out" / "results.csv").exists()
        monkeypatch.setattr(training_run, "train_run", original)
        main(arguments)
        assert "Resuming at step 1 of 2" in capsys.readouterr().err
        path = Path("runs/tiny-t5/mrpc/prompt/seed0/adapter/adapter_model.safetensors")
        assert (tmp_path / "out" / path).read_bytes() == (finished / path).read_bytes()

    def test_a_signal_between_training_and_evaluation(
        self,
        sweep: Sweep,
        tmp_path: Path,
        calls: Calls,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        original = training_run.train_run

        def train_run(**options: Any) -> None:
            original(**options)
            if not options["dry_run"]:
                options["stop"].name = "SIGUSR1"

        monkeypatch.setattr(training_run, "train_run", train_run)
        message = refused(sweep(tmp_path, "--no-costs"), capsys, code=75)
        assert "stopped: SIGUSR1 before the evaluation of " in message

    def test_runs_of_other_settings_are_refused_before_any_work(
        self, sweep: Sweep, copy: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = refused(sweep(copy, "prompt:optimizer.prompt_lr=0.1"), capsys, code=4)
        assert "prompt/seed0 is the run of other settings (expected: its own; got: this command's)" in message
        assert "optimizer.prompt_lr  0.3       0.1" in message
        assert message.endswith("Give another --output, or the settings of that run to go on with it\n")
        assert calls.trained == []


class TestFailures:
    @pytest.fixture
    def failing(self, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        """Names of runs that fail."""
        names: list[str] = []
        original = training_run.train_run

        def train_run(**options: Any) -> None:
            if not options["dry_run"] and name_of(options["output"]) in names:
                raise NumericalError("Loss nan at step 1")
            original(**options)

        monkeypatch.setattr(training_run, "train_run", train_run)
        return names

    def test_one_failure_is_told_by_name_and_the_others_go_on(
        self, sweep: Sweep, failing: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        failing.append("dept/seed0")
        arguments = sweep(tmp_path, "--no-costs", methods="dept,prompt")
        message = refused(arguments, capsys, code=1)
        place = tmp_path / "runs/tiny-t5/mrpc/dept/seed0"
        assert "Failed: runs/tiny-t5/mrpc/dept/seed0: Loss nan at step 1\n" in message
        assert f"Failed: {place} (exit code 7): Loss nan at step 1\n" in message
        assert message.endswith(
            "error: 1 of 4 runs have failed and 0 have not been run. The results are of the others. "
            "The same command tries them again\n"
        )
        states = {
            (row["method"], row["seed"]): (row["state"], row["exit_code"]) for row in rows(tmp_path / "results.csv")
        }
        assert states.pop(("dept", "0")) == ("failed", "7")
        assert set(states.values()) == {("done", "")}
        assert "- dept on mrpc: failed: Loss nan at step 1" in (tmp_path / "table.md").read_text()
        failing.clear()
        main(arguments)
        assert rows(tmp_path / "table.csv")[0]["seeds"] == "2"
        assert not list(tmp_path.rglob("*.failed.json"))

    def test_a_fault_of_ours_is_shown_and_counts_as_one(
        self,
        sweep: Sweep,
        tmp_path: Path,
        calls: Calls,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def run_cell(*_: object, **__: object) -> None:
            raise KeyError("what")

        monkeypatch.setattr(runner, "run_cell", run_cell)
        message = refused(sweep(tmp_path, "--no-costs", methods="dept"), capsys, code=1)
        assert "Traceback" in message
        assert "error: 2 of 2 runs have failed" in message

    def test_what_has_not_been_run_is_missing(
        self, sweep: Sweep, copy: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.rmtree(copy / "runs/tiny-t5/mrpc/dept/seed1/evaluation/test")
        message = refused(sweep(copy, "--collect"), capsys, code=1)
        assert "error: 0 of 6 runs have failed and 1 have not been run" in message
        assert "| dept | 160 | 0.00 [0.00, 0.00] (e) (1) |" in (copy / "table.md").read_text()
        assert "- dept on mrpc: missing" in (copy / "table.md").read_text()


class TestProcesses:
    """The commands of other processes are stood in for: each real one would load torch."""

    def test_cells_are_run_side_by_side_and_a_dead_one_is_a_failure(
        self,
        sweep: Sweep,
        tmp_path: Path,
        calls: Calls,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(runner, "visible_devices", list)
        monkeypatch.setattr(runner, "sys", type("Python", (), {"executable": shutil.which("false")}))
        message = refused(sweep(tmp_path, "--no-costs", "--jobs", "2", methods="dept"), capsys, code=1)
        name = "runs/tiny-t5/mrpc/dept/seed1"
        log = tmp_path / "logs" / f"{name}.log"
        assert f"Failed: {name}: it ended by exit code 1; see {log}\n" in message
        assert "[0/2 runs done, 2 failed]" in message
        assert log.is_file()

    def test_the_command_of_a_cell_does_that_cell(self, sweep: Sweep, tmp_path: Path, calls: Calls) -> None:
        main(sweep(tmp_path, "--cell", "1", "--no-costs"))
        main(sweep(tmp_path, "--cell", "3", "--no-costs"))
        assert calls.trained == ["prompt/seed0", "dept/seed1"]

    def test_a_cell_beyond_the_last(self, sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = refused(sweep(tmp_path, "--cell", "6"), capsys)
        assert message == "error: --cell is 6, but the sweep has the numbers 0 to 5\n"

    def test_a_cell_that_is_not_possible_ends_at_once(
        self, sweep: Sweep, copy: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(sweep(copy, "--cell", "2"))
        assert capsys.readouterr().err.startswith("Not possible: tiny-t5/mrpc/visual_only: method visual_only trains")
        assert calls.trained == []

    def test_a_launcher_starts_the_ordinary_commands(
        self, sweep: Sweep, tmp_path: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
    ) -> None:
        script = tmp_path / "launcher"
        script.write_text(f'#!/bin/sh\necho "$1 $2" >> {tmp_path}/launched\nexit 9\n')
        script.chmod(0o755)
        message = refused(
            sweep(tmp_path / "out", "--no-costs", "--launcher", str(script), methods="dept"), capsys, code=1
        )
        assert (tmp_path / "launched").read_text() == "dept_vl.train --task\n" * 2
        assert (
            "Failed: runs/tiny-t5/mrpc/dept/seed0: dept_vl.train ended with exit code 9; its last lines say why"
            in message
        )
        assert calls.trained == []


class TestSearch:
    def test_every_method_has_as_many_trials_and_its_best_rates_go_to_all_seeds(
        self, sweep: Sweep, tmp_path: Path, calls: Calls
    ) -> None:
        arguments = sweep(tmp_path, "--search", "3", "--no-costs", methods="dept,prompt")
        main(arguments)
        trials = rows(tmp_path / "search.csv")
        assert [(row["method"], row["trial"]) for row in trials] == [(m, t) for m in ("dept", "prompt") for t in "012"]
        assert (trials[0]["optimizer.prompt_lr"], trials[0]["optimizer.low_rank_lr"]) == ("0.3", "0.001")
        assert trials[3]["optimizer.low_rank_lr"] == ""
        chosen = {row["method"]: row for row in trials if row["chosen"] == "True"}
        for row in rows(tmp_path / "results.csv"):
            rate = chosen[row["method"]]["optimizer.prompt_lr"]
            assert f"optimizer.prompt_lr={rate}" in row["settings"]
            assert settings_from_yaml(Path(row["folder"]) / "config.yaml").optimizer.prompt_lr == float(rate)
        assert len(calls.trained) == 2 * 3 + 2 * 2
        assert len(calls.evaluated) == 2 * 2 * 2
        main(arguments)
        assert len(calls.trained) == 10

    def test_the_groups_of_a_real_run_are_searched(self, sweep: Sweep, tmp_path: Path) -> None:
        main(sweep(tmp_path, "--search", "1", "--no-costs", "--cell", "0", methods="dept"))
        (trial,) = json.loads((tmp_path / "search/tiny-t5/mrpc/dept/trials.json").read_text())["trials"]
        assert trial["rates"] == {"prompt": 0.3, "low_rank": 0.001}

    def test_a_killed_search_goes_on_with_equal_trials(
        self, sweep: Sweep, tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Killed(BaseException):
            pass

        train = training_run.train_run

        def train_run(**options: Any) -> None:
            if len(calls.trained) == 2:
                raise Killed
            train(**options)

        arguments = ["--search", "4", "--no-costs", "--seeds", "1"]
        main(sweep(tmp_path / "whole", *arguments, methods="dept"))
        calls.trained.clear()
        monkeypatch.setattr(training_run, "train_run", train_run)
        with pytest.raises(Killed):
            main(sweep(tmp_path / "killed", *arguments, methods="dept"))
        monkeypatch.setattr(training_run, "train_run", train)
        main(sweep(tmp_path / "killed", *arguments, methods="dept"))
        assert calls.trained == [*(f"dept/trial{number}" for number in range(4)), "dept/seed0"]
        trials = [
            (tmp_path / name / "search/tiny-t5/mrpc/dept/trials.json").read_bytes() for name in ("whole", "killed")
        ]
        assert trials[0] == trials[1]

    def test_a_search_of_other_settings_is_refused(
        self, sweep: Sweep, tmp_path: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main(sweep(tmp_path, "--search", "1", "--no-costs", "--cell", "0", methods="prompt"))
        arguments = sweep(tmp_path, "--search", "1", "--no-costs", "training.steps=3", methods="prompt")
        assert "is a search with other settings (expected: its own; got: this command's)" in refused(
            arguments, capsys, 4
        )

    def test_a_run_whose_search_is_not_done_fails_alone(
        self, sweep: Sweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = refused(sweep(tmp_path, "--search", "1", "--cell", "1", methods="prompt"), capsys)
        assert message == "error: The search for the rates of tiny-t5/mrpc/prompt has not ended with a score\n"


class TestSlurm:
    def test_the_script_runs_what_is_possible_as_an_array(
        self, sweep: Sweep, copy: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
    ) -> None:
        script = copy / "sweep.sh"
        main(sweep(copy, "--slurm", str(script), "--jobs", "8"))
        assert capsys.readouterr().err.endswith(f"Wrote {script}. Its first lines say how it is submitted\n")
        text = script.read_text()
        assert "#SBATCH --array=0-1,3-4%8\n" in text
        assert '--cell "$SLURM_ARRAY_TASK_ID"\n' in text


class TestRefusals:
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (("--methods", "dept,lorra"), "--methods has 'lorra'. Did you mean 'lora'? There are: dept, prompt,"),
            (("--methods", ","), "--methods has ','. There are: dept,"),
            (("--tasks", "mrcp"), "--tasks has 'mrcp'. Did you mean 'mrpc'?"),
            (("--seeds", "x"), "--seeds is 'x'; give how many, as in 3, or the seeds themselves, as in 0,3,7"),
            (("--seeds", "0"), "--seeds is '0'; give how many"),
            (("--jobs", "0"), "--jobs is 0; give 1 or more"),
            (("--search", "-1"), "--search is -1; give 0 or more"),
            (("--budget", "0"), "--budget is 0; give a number of parameters, 1 or more"),
            (("--reference", "full"), "--reference is 'full', which the sweep does not have. There are: dept, prompt"),
            (
                ("--launcher", "x", "--jobs", "2"),
                "--launcher gives a run all GPUs, so that runs go one after the other. Leave out --jobs",
            ),
            (
                ("--search", "2", "optimizer.prompt_lr=0.1,0.2"),
                "'optimizer.prompt_lr=0.1,0.2': --search chooses the rates. Give one value to start from, or none",
            ),
            (("--features", "x"), "--features is of no use for mrpc, without images. Leave it out"),
        ],
        ids=str,
    )
    def test_wrong_options(
        self, sweep: Sweep, tmp_path: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert refused(sweep(tmp_path / "out", *more), capsys).startswith(f"error: {message}")
        assert not (tmp_path / "out").exists()

    def test_help_is_quick_and_has_examples(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["--help"])
        assert "python -m dept_vl.sweep --methods dept,prompt,lora,full" in capsys.readouterr().out
