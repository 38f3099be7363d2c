"""Two tasks in one run, through the command lines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from dept_vl.command_line import run
from dept_vl.config import settings_from_yaml
from dept_vl.evaluate import main as evaluate_main
from dept_vl.train import main
from dept_vl.training.loss_log import MEASURED, LossLog, read_log
from feature_extraction.store.layout import seal, unseal

PairArguments = Callable[..., list[str]]

TASKS = ("vqa", "nlvr2")
TENSORS = "adapter_model.safetensors"
# Parameters of one task alone, of both, and an evaluation and checkpoints between any two turns.
APART = (
    *("method.prompt_sharing=per_task", "tasks.vqa.head=classification", "tasks.nlvr2.batch_size=2"),
    *("training.steps=6", "training.evaluate_every=2", "training.log_every=3"),
)

LEARNING = (  # fast enough for the scores to rise and fall, and a seed with which the tasks differ in their best step
    *("training.steps=40", "training.evaluate_every=5", "training.checkpoint_every=20", "backbone.dropout=0"),
    "training.seed=3",
    *(f"optimizer.{name}_lr=0.1" for name in ("prompt", "low_rank", "visual", "head")),
)


class Stopped(BaseException):
    """Stands for the end of the process: no handler of errors sees it."""


def contents(folder: Path) -> dict[str, Any]:
    """Everything in a run's folder that does not read a clock, by its path."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    records = read_log(folder / "log.jsonl")
    found["log.jsonl"] = [{name: value for name, value in record.items() if name not in MEASURED} for record in records]
    found["run.json"] = json.loads(found["run.json"]) | {"command": ""}
    return found


def validations(folder: Path, task: str) -> dict[int, dict[str, float]]:
    """The metrics of a task's validations by their steps."""
    records = read_log(folder / "log.jsonl")
    return {record["step"]: record["validation"] for record in records if record.get("task") == task}


def best_step(folder: Path, task: str) -> int:
    """The first of those with a task's highest accuracy."""
    found = validations(folder, task)
    return max(found, key=lambda step: (found[step]["accuracy"], -step))


def refused(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str], *, output: Path) -> str:
    capsys.readouterr()
    assert run(main, arguments) == code
    assert not output.exists()
    return capsys.readouterr().err


def test_a_run_of_two_tasks_has_an_adapter_of_each_and_says_so(
    pair_arguments: PairArguments, toy_vqa: Path, toy_nlvr2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert run(main, pair_arguments(folder, "tasks.nlvr2.batch_size=2", "training.steps=16")) == 0
    lines = capsys.readouterr().err.splitlines()
    # Three steps of an epoch are of vqa and five of nlvr2, whose batches are half as large.
    assert "vqa: 14 training and 6 validation examples, 6 steps of 4 (2.0 epochs)" in lines
    assert "nlvr2: 10 training and 5 validation examples, 10 steps of 2 (2.0 epochs)" in lines
    best = {task: best_step(folder, task) for task in TASKS}
    assert lines[-3:] == [
        *(
            f"Best step of {task} {best[task]}: accuracy {validations(folder, task)[best[task]]['accuracy']:.2f}"
            for task in TASKS
        ),
        f"Adapter: {folder / 'adapter'}",
    ]
    for task in TASKS:
        assert {path.name for path in (folder / "adapter" / task).iterdir()} == {
            "README.md",
            "adapter_config.json",
            TENSORS,
        }
        assert any(f"validation {task} accuracy " in line for line in lines)
    assert list(settings_from_yaml(folder / "config.yaml").tasks) == list(TASKS)
    record = json.loads((folder / "run.json").read_text())
    assert record["data"] == {"vqa": str(toy_vqa), "nlvr2": str(toy_nlvr2)}
    assert record["identity"]["task"] == "vqa,nlvr2"


@pytest.mark.parametrize("temperature", ["1", "1e9"])
def test_turns_are_shared_by_size_and_temperature(
    pair_arguments: PairArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str], temperature: str
) -> None:
    arguments = pair_arguments(tmp_path / "run", "training.steps=null", "training.epochs=20", "--dry-run")
    assert run(main, [*arguments, f"training.mixing_temperature={temperature}"]) == 0
    counts = (60, 40) if temperature == "1" else (50, 50)  # epochs of three and of two steps
    message = capsys.readouterr().err
    assert f"vqa: 14 training and 6 validation examples, {counts[0]} steps of 4 (" in message
    assert f"nlvr2: 10 training and 5 validation examples, {counts[1]} steps of 4 (" in message
    assert message.endswith("Dry run: everything fits together; nothing was written\n")
    assert not (tmp_path / "run").exists()


def test_a_shared_prompt_is_one_and_prompts_of_each_task_are_two(
    pair_arguments: PairArguments, finished_pair: Path, tmp_path: Path
) -> None:
    assert run(main, pair_arguments(tmp_path / "run", "training.steps=2")) == 0
    shared, own = (
        {name for name in load_file(folder / "adapter" / "vqa" / TENSORS) if name.startswith("prompt.")}
        for folder in (tmp_path / "run", finished_pair)
    )
    parts = ("prompt", "a", "b", "trained_length")
    assert shared == {f"prompt.{part}" for part in parts}
    assert own == {f"prompt.{task}.{part}" for task in TASKS for part in parts}


@pytest.mark.parametrize("heads", [(), ("tasks.vqa.head=classification",), ("tasks.vqa.constrained=true",)])
def test_the_best_adapter_of_each_task_gives_the_scores_that_it_was_chosen_for(
    pair_arguments: PairArguments, tmp_path: Path, heads: tuple[str, ...]
) -> None:
    """What was saved answers as what was in memory, of every kind of head (nlvr2 has first_step)."""
    folder = tmp_path / "run"
    assert run(main, pair_arguments(folder, *LEARNING, *heads)) == 0
    best = {task: best_step(folder, task) for task in TASKS}
    assert best["vqa"] != best["nlvr2"]
    vqa, nlvr2 = (load_file(folder / "adapter" / task / TENSORS) for task in TASKS)
    assert vqa.keys() == nlvr2.keys()
    assert not torch.equal(vqa["prompt.prompt"], nlvr2["prompt.prompt"])
    assert run(evaluate_main, ["--run", str(folder), "--split", "validation"]) == 0
    for task in TASKS:
        found = validations(folder, task)
        assert len(found) == 8
        written = json.loads((folder / "evaluation" / task / "validation" / "metrics.json").read_text())
        assert written == found[best[task]]


def test_an_evaluation_is_of_all_tasks_or_of_the_named_one(
    finished_pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished_pair, tmp_path / "run"))
    assert run(evaluate_main, ["--run", str(folder), "--split", "test", "--task", "nlvr2"]) == 0
    assert not capsys.readouterr().out.startswith("nlvr2")  # one table needs no title
    assert [path.name for path in (folder / "evaluation").iterdir()] == ["nlvr2"]
    alone = (folder / "evaluation" / "nlvr2" / "test" / "nlvr2_test_dept_results.csv").read_bytes()
    assert len(alone.splitlines()) == 6
    assert run(evaluate_main, ["--run", str(folder), "--split", "test"]) == 0
    captured = capsys.readouterr()
    assert [line for line in captured.out.splitlines() if "test" in line] == ["vqa test", "nlvr2 test"]
    for task, file in (("vqa", "v2_OpenEnded_test_dept_results.json"), ("nlvr2", "nlvr2_test_dept_results.csv")):
        path = folder / "evaluation" / task / "test" / file
        assert path.is_file()
        assert f"Leaderboard file: {path}\n" in captured.err
    assert (folder / "evaluation" / "nlvr2" / "test" / "nlvr2_test_dept_results.csv").read_bytes() == alone


@pytest.mark.parametrize("option", ["--output", "--data", "--features"])
def test_a_folder_for_one_task_is_refused_for_several(
    finished_pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert run(evaluate_main, ["--run", str(finished_pair), "--split", "test", option, str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == (
        f"error: {finished_pair} has several tasks; name one of them, as in --task vqa: vqa, nlvr2\n"
    )
    assert not (tmp_path / "x").exists()


def test_a_named_task_may_have_its_own_folders(
    finished_pair: Path, toy_nlvr2: Path, toy_store: Path, tmp_path: Path
) -> None:
    data, store = (Path(shutil.copytree(path, tmp_path / path.name)) for path in (toy_nlvr2, toy_store))
    arguments = ["--run", str(finished_pair), "--task", "nlvr2", "--split", "test", "--output", str(tmp_path / "out")]
    assert run(evaluate_main, [*arguments, "--data", str(data), "--features", str(store)]) == 0
    assert (tmp_path / "out" / "nlvr2_test_dept_results.csv").is_file()


def test_a_task_that_the_run_does_not_have_is_refused(finished_pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(evaluate_main, ["--run", str(finished_pair), "--split", "test", "--task", "nlvr"]) == 2
    assert capsys.readouterr().err == (
        f"error: {finished_pair} has no task 'nlvr'. Did you mean 'nlvr2'? It has: vqa, nlvr2\n"
    )


def test_two_uninterrupted_runs_have_equal_bytes(pair_arguments: PairArguments, tmp_path: Path) -> None:
    for name in ("one", "other"):
        assert run(main, pair_arguments(tmp_path / name, *APART)) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stop_at_every_line_of_the_log_and_the_same_command_end_in_the_same_bytes(
    pair_arguments: PairArguments, tmp_path: Path, workers: int
) -> None:
    arguments = (*APART, "training.log_every=1", f"data.workers={workers}")
    assert run(main, pair_arguments(tmp_path / "whole", *arguments)) == 0
    expected = contents(tmp_path / "whole")
    lines = len(expected["log.jsonl"])
    assert lines == 6 + 3 * 2
    for wanted in range(0, lines, 1 if workers == 0 else 5):
        folder = tmp_path / f"stop-{wanted}"
        with pytest.MonkeyPatch.context() as patch:
            stop_at_line(patch, wanted)
            with pytest.raises(Stopped):
                main(pair_arguments(folder, *arguments))
        assert run(main, pair_arguments(folder, *arguments)) == 0
        assert contents(folder) == expected, f"stop {wanted}"


def stop_at_line(patch: pytest.MonkeyPatch, wanted: int) -> None:
    written = 0
    original = LossLog.write

    def write(self: LossLog, record: dict[str, Any]) -> None:
        nonlocal written
        if written == wanted:
            raise Stopped
        written += 1
        original(self, record)

    patch.setattr(LossLog, "write", write)


def test_a_finished_run_of_several_tasks_says_so(
    pair_arguments: PairArguments, finished_pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, pair_arguments(finished_pair, "method.prompt_sharing=per_task")) == 0
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"{finished_pair} has finished already: {finished_pair / 'adapter'}"
    )


def test_another_order_of_tasks_is_another_run(
    pair_arguments: PairArguments, finished_pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = pair_arguments(finished_pair, "method.prompt_sharing=per_task")
    arguments[arguments.index("vqa,nlvr2")] = "nlvr2,vqa"
    assert run(main, arguments) == 4
    assert "  task   vqa,nlvr2  nlvr2,vqa\n" in capsys.readouterr().err


def test_spaces_and_repeated_commas_in_the_list_of_tasks(
    pair_arguments: PairArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = pair_arguments(tmp_path / "run", "--dry-run")
    place = arguments.index("vqa,nlvr2")
    arguments[place] = " vqa , nlvr2"
    assert run(main, arguments) == 0
    for wrong, message in (
        ("vqa,nlvr2,vqa", "--task names 'vqa' twice. Name each task once, as in --task vqa,caption"),
        ("vqa,nlvr2,vqq", "--data is missing for vqq. Give --data vqq=PATH too"),
        ("vqa", f"--data nlvr2={arguments[1].partition('=')[2]} is about task 'nlvr2', but --task names vqa"),
    ):
        arguments[place] = wrong
        assert refused(arguments, 2, capsys, output=tmp_path / "run") == f"error: {message}\n"


def test_tasks_are_not_named_by_a_setting(
    pair_arguments: PairArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(pair_arguments(tmp_path / "run", "task=nlvr2"), 2, capsys, output=tmp_path / "run")
    assert message == "error: task=nlvr2: the tasks of a training are named by --task alone\n"


def test_each_task_may_have_a_store_of_its_own_if_both_were_extracted_alike(
    pair_arguments: PairArguments, toy_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(toy_store, tmp_path / "other"))
    arguments = pair_arguments(tmp_path / "run", "training.steps=2", store=f"vqa={toy_store}")
    assert run(main, ["--features", f"nlvr2={other}", *arguments]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["features"] == {"nlvr2": str(other), "vqa": str(toy_store)}
    assert run(evaluate_main, ["--run", str(tmp_path / "run"), "--split", "test"]) == 0
    shutil.rmtree(other)
    capsys.readouterr()
    assert run(evaluate_main, ["--run", str(tmp_path / "run"), "--split", "test", "--task", "vqa"]) == 0
    assert run(evaluate_main, ["--run", str(tmp_path / "run"), "--split", "test", "--task", "nlvr2"]) == 3


def test_stores_that_were_not_extracted_alike_are_refused(
    pair_arguments: PairArguments, toy_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(toy_store, tmp_path / "other"))
    manifest = unseal((other / "manifest.json").read_bytes())
    assert manifest is not None
    manifest["identity"]["weight_digest"] = "1" * 64
    (other / "manifest.json").write_bytes(seal(manifest, indent=1))
    arguments = ["--features", f"nlvr2={other}", *pair_arguments(tmp_path / "run", store=f"vqa={toy_store}")]
    lines = refused(arguments, 4, capsys, output=tmp_path / "run").splitlines()
    # In the order of the options.
    assert lines[0] == f"error: The features of {other} and {toy_store} were not extracted in the same way:"
    assert lines[2].split()[0] == "weight_digest"
    assert lines[3] == ("Tasks that train together share the visual embedding: extract all with one backbone and grid")


def test_a_damaged_store_of_any_task_is_refused(
    pair_arguments: PairArguments, toy_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(toy_store, tmp_path / "other"))
    shard = next(other.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    for task, rest in (("nlvr2", "vqa"), ("vqa", "nlvr2")):
        arguments = pair_arguments(tmp_path / "run", store=f"{rest}={toy_store}")
        message = refused(["--features", f"{task}={other}", *arguments], 5, capsys, output=tmp_path / "run")
        assert message.startswith(f"error: {shard} is damaged")


def test_faults_name_the_task_s_own_data(
    pair_arguments: PairArguments, toy_nlvr2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(toy_nlvr2, tmp_path / "data"))
    path = data / "val.json"
    path.write_text(path.read_text().replace("toy_val_000000000001", "elsewhere"))
    arguments = pair_arguments(tmp_path / "run")
    arguments[1] = f"nlvr2={data}"
    message = refused(arguments, 3, capsys, output=tmp_path / "run")
    assert message.startswith(
        f"error: Split 'validation' of {data}: 2 of 5 examples refer to 1 images without features"
    )


def test_a_tracker_gets_the_settings_of_every_task(
    pair_arguments: PairArguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, name, config: given.update(config))
    monkeypatch.setattr(Accelerator, "log", lambda *arguments, **options: None)
    arguments = pair_arguments(tmp_path / "run", "training.steps=2", "training.tracker=tensorboard")
    assert run(main, [*arguments, "tasks.nlvr2.batch_size=2"]) == 0
    assert given["method.name"] == "dept"
    assert given["tasks.vqa.head"] == "generation"
    assert given["tasks.nlvr2.head"] == "first_step"
    assert given["tasks.nlvr2.batch_size"] == 2
