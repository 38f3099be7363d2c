"""Two processes train and answer as one does, and every question is answered once."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dept_vl.answer_log import AnswerLog
from dept_vl.command_line import run
from dept_vl.evaluate import main as evaluate_main
from dept_vl.train import main as train_main
from dept_vl.training.loss_log import read_log

TrainArguments = Callable[..., list[str]]

APART = ("method.prompt_sharing=per_task", "tasks.vqa.head=classification")  # what one task trains alone


class Stopped(BaseException):
    """Stands for the end of the process: no handler of errors sees it."""


def on_two_processes(module: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "--", module, *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done


def settings(output: Path, arguments: TrainArguments) -> list[str]:
    # A rate that does not blow up the last bits, in which sums over two halves differ. Of the loss over all tokens, the
    # two halves of a batch have differing shares.
    rates = ("backbone.dropout=0", "optimizer.prompt_lr=0.01")
    return arguments(output, *rates, "training.steps=6", "task.loss=token")


@pytest.fixture(scope="module")
def alone(train_arguments: TrainArguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one process, and its answers."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert run(train_main, settings(folder, train_arguments)) == 0
    assert run(evaluate_main, ["--run", str(folder), "--split", "test"]) == 0
    return folder


def assert_equal_but_for_the_last_bits(one: Path, other: Path) -> None:
    """The logs and adapters of two runs, whose sums over the examples of a batch may differ in their order."""
    log, expected = read_log(one / "log.jsonl"), read_log(other / "log.jsonl")
    assert [record["step"] for record in log] == [record["step"] for record in expected]
    for record, theirs in zip(log, expected, strict=True):
        if "loss" in record:  # of the whole batch, not of one process's share
            assert record["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
            assert record["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)
        else:
            assert record["task"] == theirs["task"]
            assert record["validation"] == theirs["validation"]
    paths = sorted(path.relative_to(other) for path in other.glob("adapter/**/*.safetensors"))
    assert paths == sorted(path.relative_to(one) for path in one.glob("adapter/**/*.safetensors"))
    for path in paths:
        ours, tensors = load_file(one / path), load_file(other / path)
        assert ours.keys() == tensors.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, tensors[name], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def alone_pair(pair_arguments: TrainArguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two tasks on one process."""
    folder = tmp_path_factory.mktemp("alone") / "pair"
    assert run(train_main, [*settings(folder, pair_arguments), *APART]) == 0
    return folder


def test_training_on_two_processes_equals_training_on_one_at_the_same_global_batch(
    alone: Path, train_arguments: TrainArguments, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = on_two_processes("dept_vl.train", settings(folder, train_arguments))
    assert done.stderr.count(f"Adapter: {folder / 'adapter'}") == 1  # one process talks and writes
    assert_equal_but_for_the_last_bits(folder, alone)


def test_two_tasks_train_on_two_processes_in_parts_as_on_one_at_once(
    alone_pair: Path, pair_arguments: TrainArguments, tmp_path: Path
) -> None:
    """Each step leaves the other task's prompt and head without a gradient, on every process alike."""
    folder = tmp_path / "run"
    on_two_processes("dept_vl.train", [*settings(folder, pair_arguments), *APART, "training.accumulation=2"])
    assert_equal_but_for_the_last_bits(folder, alone_pair)


def test_evaluating_on_two_processes_gives_the_files_of_one(alone: Path, tmp_path: Path) -> None:
    done = on_two_processes(
        "dept_vl.evaluate",
        ["--run", str(alone), "--split", "test", "--output", str(tmp_path), "data.evaluation_batch_size=2"],
    )
    one = files(alone / "evaluation" / "test")
    assert files(tmp_path) == one
    ids = [row["question_id"] for row in json.loads(one["v2_OpenEnded_test_dept_results.json"])]
    assert sorted(ids) == list(range(3000, 3007))
    assert done.stdout.count("accuracy") == 1


def test_two_processes_go_on_with_an_evaluation_of_two_tasks_that_one_began(alone_pair: Path, tmp_path: Path) -> None:
    whole, stopped = (Path(shutil.copytree(alone_pair, tmp_path / name)) for name in ("whole", "stopped"))
    few = "data.evaluation_batch_size=2"
    assert run(evaluate_main, ["--run", str(whole), "--split", "test", few]) == 0
    with pytest.MonkeyPatch.context() as patch:
        original = AnswerLog.append

        def append(log: AnswerLog, answers: Mapping[str, str]) -> None:
            if "3002" in answers:  # a batch of vqa in the middle
                raise Stopped
            original(log, answers)

        patch.setattr(AnswerLog, "append", append)
        with pytest.raises(Stopped):
            evaluate_main(["--run", str(stopped), "--split", "test", few])
    done = on_two_processes("dept_vl.evaluate", ["--run", str(stopped), "--split", "test", few])
    told = [line for line in done.stderr.splitlines() if line.startswith("Going on: ")]
    assert len(told) == 1
    assert told[0] in [f"Going on: {count} of 7 examples are answered already" for count in (2, 4, 6)]
    assert files(stopped / "evaluation") == files(whole / "evaluation")
    assert len(files(whole / "evaluation")) == 6


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
