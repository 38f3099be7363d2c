from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from dept_vl.config import settings_from_yaml
from dept_vl.data.dataset import ExampleDataset
from dept_vl.data.device import on_device
from dept_vl.data.order import Turn
from dept_vl.model.backbone import Backbone
from dept_vl.training.run import make_set, read_inputs
from dept_vl.training.task_data import TaskData, keep_on_device, task_batches
from dept_vl.types import Batch

CPU = torch.device("cpu")
TURNS = [Turn(task, step) for step in range(4) for task in ("vqa", "nlvr2")]


@pytest.fixture(scope="module")
def tasks(finished_pair: Path, toy_vqa: Path, toy_nlvr2: Path, toy_store: Path) -> dict[str, TaskData]:
    """One image for each question, two for each sentence, all from the same store."""
    settings = settings_from_yaml(finished_pair / "config.yaml")
    data, features = {"vqa": toy_vqa, "nlvr2": toy_nlvr2}, dict.fromkeys(("vqa", "nlvr2"), toy_store)
    return read_inputs(settings, data, features, verify=False)[1]


def training_sets(tasks: Mapping[str, TaskData], backbone: Backbone) -> dict[str, ExampleDataset]:
    return {name: make_set(task, task.training, backbone) for name, task in tasks.items()}


def test_tasks_of_resident_features_give_the_batches_that_they_gave_before(
    tasks: dict[str, TaskData], backbone: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, resident = keep_on_device(tasks, CPU, setting="on", talks=True)
    assert capsys.readouterr().err.startswith("The features of 8 images take")  # of the train and validation splits
    assert resident is not None

    def batches(which: Mapping[str, TaskData]) -> list[Batch]:
        return list(task_batches(TURNS, which, training_sets(which, backbone), rank=0, world=1))

    plain, rows = batches(tasks), batches(kept)
    filled = list(on_device(iter(rows), CPU, resident))
    assert [batch.image_rows is not None for batch in rows] == [True] * len(TURNS)
    assert {tuple(batch.visual_tokens.shape[1:]) for batch in filled} == {(1, 4, 6), (2, 4, 6)}
    for one, other in zip(filled, plain, strict=True):
        assert (one.task, one.example_ids) == (other.task, other.example_ids)
        assert one.tensors().keys() == other.tensors().keys()
        assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_tasks_stay_as_they_are_where_nothing_is_kept(tasks: dict[str, TaskData], setting: str) -> None:
    assert keep_on_device(tasks, CPU, setting=setting, talks=True) == (tasks, None)
