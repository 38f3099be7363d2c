"""Two processes train and answer as one does, and every question is answered once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dept_vl.command_line import run
from dept_vl.evaluate import main as evaluate_main
from dept_vl.train import main as train_main
from dept_vl.training.loss_log import read_log

TrainArguments = Callable[..., list[str]]


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
    # A rate that does not blow up the last bits, in which sums over two halves differ.
    return arguments(output, "backbone.dropout=0", "training.steps=6", "optimizer.prompt_lr=0.01")


@pytest.fixture(scope="module")
def alone(train_arguments: TrainArguments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one process, and its answers."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert run(train_main, settings(folder, train_arguments)) == 0
    assert run(evaluate_main, ["--run", str(folder), "--split", "test"]) == 0
    return folder


def test_training_on_two_processes_equals_training_on_one_at_the_same_global_batch(
    alone: Path, train_arguments: TrainArguments, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = on_two_processes("dept_vl.train", settings(folder, train_arguments))
    assert done.stderr.count(f"Adapter: {folder / 'adapter'}") == 1  # one process talks and writes
    ours, theirs = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (folder, alone))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-5)
    log, expected = read_log(folder / "log.jsonl"), read_log(alone / "log.jsonl")
    assert [record["step"] for record in log] == [record["step"] for record in expected]
    for record, other in zip(log, expected, strict=True):
        if "loss" in record:  # of the whole batch, not of one process's share
            assert record["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert record["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
        else:
            assert record["validation"] == other["validation"]


def test_evaluating_on_two_processes_gives_the_files_of_one(alone: Path, tmp_path: Path) -> None:
    done = on_two_processes(
        "dept_vl.evaluate",
        ["--run", str(alone), "--split", "test", "--output", str(tmp_path), "data.evaluation_batch_size=2"],
    )
    one = {path.name: path.read_bytes() for path in (alone / "evaluation" / "test").iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == one
    ids = [row["question_id"] for row in json.loads(one["v2_OpenEnded_test_dept_results.json"])]
    assert sorted(ids) == list(range(3000, 3007))
    assert done.stdout.count("accuracy") == 1
