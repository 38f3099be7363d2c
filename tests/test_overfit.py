"""Eight examples reach the score 100 on a CPU, through the command lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dept_vl import evaluate, train
from dept_vl.command_line import run


def test_dept_learns_eight_examples_by_heart(
    make_vqa: Callable[..., Path], train_arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    """On the embedded backbone. Questions alone do not tell the answers, so the images are needed as well."""
    folder = tmp_path / "run"
    arguments = train_arguments(
        folder,
        *("task.max_text_length=16", "task.splits={train: train, validation: train}", "backbone.dropout=0"),
        *("method.budget_length=20", "method.prompt_length=10", "data.batch_size=8"),
        *("optimizer.prompt_lr=2", "optimizer.low_rank_lr=0.02", "optimizer.visual_lr=0.02"),  # high, to be done soon
        *("training.steps=80", "training.evaluate_every=1000", "training.checkpoint_every=1000"),
        backbone="t5-mini",
        data=make_vqa({"train": 8}),
    )
    assert run(train.main, arguments) == 0
    assert run(evaluate.main, ["--run", str(folder), "--split", "train"]) == 0
    assert json.loads((folder / "evaluation" / "train" / "metrics.json").read_text())["accuracy"] == 100
