"""Each task's data of a run: read and checked before a model is loaded, and given out in the order of the turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dept_vl.data.dataset import ExampleDataset, VisualSource
from dept_vl.data.loader import TrainingBatch, training_batches
from dept_vl.data.order import Turn, steps_per_epoch
from dept_vl.data.preflight import check_examples
from dept_vl.data.resident import ResidentFeatures, load_resident
from dept_vl.data.shots import choose_shots
from dept_vl.settings import Settings, TaskSettings
from dept_vl.tasks.answers import task_answers
from dept_vl.tasks.task import Task, load_task
from dept_vl.types import Batch, Example
from feature_extraction import FeatureStore
from feature_extraction.errors import InputDataError

VALIDATION_SEED = 0  # every run scores the same validation examples, whatever its own seed


class TaskData(NamedTuple):
    """One task's data."""

    task: Task
    settings: Settings  # as this task sees them
    store: VisualSource | None  # of its images; None where it has none
    training: Sequence[Example]
    validation: Sequence[Example]
    answers: list[str] | None

    @property
    def batch_size(self) -> int:
        """Examples in this task's steps, over all processes."""
        return self.settings.task.batch_size or self.settings.data.batch_size

    @property
    def pass_steps(self) -> int:
        """Steps in which all training examples are seen once."""
        return steps_per_epoch(len(self.training), self.batch_size)

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""
        return self.pass_steps * self.settings.task.passes_per_epoch


def read_tasks(
    settings: Settings, data: Mapping[str, Path], stores: Mapping[str, FeatureStore | None]
) -> dict[str, TaskData]:
    """Each task's examples, checked against each other and against the features.

    Raises:
        InputDataError: names what is wrong with all splits of all tasks.
    """
    loaded = {name: load_task(settings.tasks[name]) for name in settings.tasks}
    examples: dict[tuple[str, str], Sequence[Example]] = {}
    faults: dict[str, None] = {}  # in order, each once
    for (name, task), split in product(loaded.items(), ("train", "validation")):
        try:
            examples[name, split] = task.read(data[name], split)
            check_examples(examples[name, split], stores[name], f"Split {split!r} of {data[name]}")
            _check_answers(examples[name, split], split, settings.tasks[name], data[name])
        except InputDataError as error:
            faults[str(error)] = None
    if faults:
        raise InputDataError(". Also: ".join(faults))
    shots = settings.data.shots
    tasks = {}
    for name, task in loaded.items():
        training = examples[name, "train"]
        if shots is not None:
            training = choose_shots(training, shots, labels=task.labels, seed=settings.data.shots_seed)
        tasks[name] = TaskData(
            task=task,
            settings=settings.of(name),
            store=stores[name],
            training=training,
            validation=_choose(examples[name, "validation"], settings.training.validation_examples),
            answers=task_answers(task, settings.tasks[name], training, data[name]),
        )
    return tasks


def task_batches(
    turns: Sequence[Turn],
    tasks: Mapping[str, TaskData],
    training_sets: Mapping[str, ExampleDataset],
    *,
    rank: int,
    world: int,
) -> Iterator[Batch]:
    """The batches of process ``rank`` of ``world`` for some turns, which may begin in the middle of a run."""
    streams: dict[str, Iterator[TrainingBatch]] = {}
    for turn in turns:
        if turn.task not in streams:
            task = tasks[turn.task]
            epoch, position = divmod(turn.step, task.pass_steps)
            streams[turn.task] = training_batches(
                training_sets[turn.task],
                batch_size=task.batch_size,
                bucket_width=task.settings.data.bucket_width,
                seed=task.settings.training.seed,
                epoch=epoch,
                position=position,
                rank=rank,
                world=world,
                workers=task.settings.data.workers,
            )
        yield next(streams[turn.task]).batch


def keep_on_device(
    tasks: Mapping[str, TaskData], device: torch.device, *, setting: str, talks: bool
) -> tuple[dict[str, TaskData], ResidentFeatures | None]:
    """The tasks, and the features of all their images where these are kept on the device (``load_resident``)."""
    examples = [(task.store, [*task.training, *task.validation]) for task in tasks.values()]
    resident = load_resident(examples, device, setting=setting, talks=talks)
    if resident is None:
        return dict(tasks), None
    return {name: task._replace(store=resident.source(task.store)) for name, task in tasks.items()}, resident


def _check_answers(examples: Sequence[Example], split: str, settings: TaskSettings, data: Path) -> None:
    """Refuse a training split without anything to train on, and a validation split without anything to score by.

    Raises:
        InputDataError: no example has an answer.
    """
    what = "to train on" if split == "train" else "to choose the best step by"
    if not any(example.targets if split == "train" else example.references for example in examples):
        raise InputDataError(
            f"None of the {len(examples):,} examples of split {split!r} ({settings.splits.get(split)}) of {data} has "
            f"an answer {what}. Give the annotations too, or set task.splits.{split} to a split that has them"
        )


def _choose(examples: Sequence[Example], wanted: int | None) -> Sequence[Example]:
    if wanted is None or wanted >= len(examples):
        return examples
    chosen = np.random.default_rng(VALIDATION_SEED).choice(len(examples), wanted, replace=False)
    return [examples[index] for index in sorted(chosen)]
