"""A run of few steps over the very way of a long one, with a watch beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator

from dept_vl.command_line import StopSignal
from dept_vl.costs.synthetic import SyntheticImages, images_of, synthetic_tasks
from dept_vl.data.dataset import ExampleDataset, draw_targets
from dept_vl.data.device import on_device
from dept_vl.data.loader import evaluation_batches
from dept_vl.data.order import Turn, epoch_batches, evaluation_order
from dept_vl.inference import answer_batch, make_dataset, predict
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.settings import Settings
from dept_vl.training.loop import Validation, train
from dept_vl.training.run import Prepared, make_accelerator, make_set, prepare, read_inputs
from dept_vl.training.task_data import TaskData, task_batches
from dept_vl.types import Batch, Example
from feature_extraction import FeatureStore

REPEATS = 4  # windows that the timed steps are cut into, to see how far they differ
EVALUATED_BATCHES = 2  # timed, of each task's validation
SINGLE_EXAMPLES = 11  # answered one at a time, of each task
NEVER = 10**9  # steps


class ShortRun(NamedTuple):
    """The parts of a run, put together as for training."""

    settings: Settings
    tasks: dict[str, TaskData]
    parts: Prepared
    training_sets: dict[str, ExampleDataset]
    validation_sets: dict[str, ExampleDataset]
    accelerator: Accelerator


class Times(NamedTuple):
    """Seconds that the parts of a run take."""

    first_step: float  # when it began, by ``now``
    step: float  # mean of the timed ones
    windows: list[float]  # the same of each of up to REPEATS parts
    answered: dict[str, tuple[int, float]]  # of each task: examples, and seconds for them
    checkpoint: float


def assemble(
    settings: Settings, data: Mapping[str, Path] | None, features: Mapping[str, Path], folder: Path
) -> ShortRun:
    """Read or make up the data and build the model, as training does."""
    training = replace(settings.training, tracker="none")
    if data is None:  # without examples nobody knows how long an epoch is
        training = replace(training, steps=training.steps or 1, epochs=None)
    settings = replace(settings, training=training)
    accelerator = make_accelerator(settings, folder)
    if data is not None:
        settings, tasks, store = read_inputs(settings, data, features, verify=True)
        parts = prepare(settings, tasks, store)
    else:
        images = _synthetic_images(settings, features)
        tasks = synthetic_tasks(settings, images)
        parts = prepare(settings, tasks, images)
    return ShortRun(
        settings=replace(settings, training=replace(training, evaluate_every=NEVER, checkpoint_every=NEVER)),
        tasks=tasks,
        parts=parts,
        training_sets={name: make_set(task, task.training, parts.backbone) for name, task in tasks.items()},
        validation_sets={name: make_set(task, task.validation, parts.backbone) for name, task in tasks.items()},
        accelerator=accelerator,
    )


def _synthetic_images(settings: Settings, features: Mapping[str, Path]) -> SyntheticImages | None:
    """Images of the store's shape, or of that which the settings would give; None for tasks without any."""
    if features:
        store = FeatureStore.open(next(iter(features.values())))
        return SyntheticImages(store.visual_tokens, store.feature_width)
    pictured = any(task.images_per_example for task in settings.tasks.values())
    return images_of(settings.features) if pictured else None


def train_shortly(run: ShortRun, *, steps: int, warmup: int, folder: Path) -> Times:
    """Train for a few steps; after the last one, as after a run's last, come a validation and a checkpoint."""
    largest = [_largest_batch(run, name) for name in run.tasks]
    first = len(largest) + warmup  # the first timed step
    edges = sorted({first + steps * window // REPEATS for window in range(REPEATS + 1)})
    marks: dict[int, float] = {}
    answered: dict[str, tuple[int, float]] = {}
    validated = [0.0]

    def batches_from(step: int) -> Iterator[Batch]:
        turns = list(islice(cycle(run.parts.turns), warmup + steps + 1))  # the last is not timed: much comes after it
        order = [*[[turn] for turn in largest], turns]
        batches = (
            batch for part in order for batch in task_batches(part, run.tasks, run.training_sets, rank=0, world=1)
        )
        for number, batch in enumerate(on_device(batches, run.accelerator.device)):
            if number in (0, *edges):
                marks[number] = now(run.accelerator)
            yield batch

    def validate(model: PromptedModel) -> dict[str, Validation]:
        for name in run.tasks:
            longest, others = _evaluated(run, name)
            _answer_all(run, name, longest)  # for the peak of memory
            started = now(run.accelerator)
            _answer_all(run, name, others)
            answered[name] = (len(others), now(run.accelerator) - started)
        validated[0] = now(run.accelerator)
        return {name: Validation({}, 0.0, "", 0.0) for name in run.tasks}

    train(
        model=run.parts.built.model,
        groups=run.parts.built.groups,
        batches_from=batches_from,
        validate=validate,
        settings=run.settings,
        total_steps=first + steps + 1,
        folder=folder,
        accelerator=run.accelerator,
        stop=StopSignal(),
    )
    checkpoint = now(run.accelerator) - validated[0]
    windows = [(marks[end] - marks[start]) / (end - start) for start, end in pairwise(edges)]
    step = (marks[edges[-1]] - marks[edges[0]]) / steps
    return Times(marks[0], step, windows, answered, checkpoint)


def _largest_batch(run: ShortRun, name: str) -> Turn:
    """A task's batch with the most tokens, of those that the run's first pass over its examples has."""
    task, tokens = run.tasks[name], run.training_sets[name].tokens
    seed = run.settings.training.seed
    texts, targets = tokens.texts.lengths(), tokens.targets.lengths()[draw_targets(tokens, seed=seed, epoch=0)]
    batches = epoch_batches(
        texts, seed=seed, epoch=0, batch_size=task.batch_size, bucket_width=run.settings.data.bucket_width
    )
    turns = sum(turn.task == name for turn in run.parts.turns)
    sizes = [len(batch) * (texts[batch].max() + targets[batch].max()) for batch in batches[: max(turns, 1)]]
    return Turn(name, int(np.argmax(sizes)))


def _evaluated(run: ShortRun, name: str) -> tuple[list[Example], list[Example]]:
    """The examples of a validation's first batch, which are the longest, and of some evenly spread over all lengths."""
    dataset = run.validation_sets[name]
    order = evaluation_order(dataset.tokens.texts.lengths(), batch_size=run.settings.data.evaluation_batch_size)
    count = min(EVALUATED_BATCHES, len(order))
    spread = [order[(2 * part + 1) * len(order) // (2 * count)] for part in range(count)]
    longest, others = order[0], np.concatenate(spread)
    return [dataset.examples[index] for index in longest], [dataset.examples[index] for index in others]


def _answer_all(run: ShortRun, name: str, examples: list[Example]) -> None:
    task = run.tasks[name]
    dataset = make_dataset(examples, task.store, run.parts.backbone, task.settings, cache=None)
    predict(run.parts.built.model, dataset, task=task.task, settings=task.settings, accelerator=run.accelerator)


def latencies(run: ShortRun) -> list[float]:
    """Seconds for each of some examples, answered alone by the model as it is used after training."""
    model = run.parts.built.model
    model.encoder.fold()
    model.eval()
    seconds = []
    for task in run.tasks.values():
        chosen = np.linspace(0, len(task.validation) - 1, SINGLE_EXAMPLES).astype(int)
        examples = [task.validation[index] for index in dict.fromkeys(chosen.tolist())]
        dataset = make_dataset(examples, task.store, run.parts.backbone, task.settings, cache=None)
        for batch in evaluation_batches(dataset, batch_size=1, bucket_width=run.settings.data.bucket_width):
            started = now(run.accelerator)
            answer_batch(model, batch.to(run.accelerator.device), task.task, task.settings)
            seconds.append(now(run.accelerator) - started)
    return seconds


def now(accelerator: Accelerator) -> float:
    """Seconds of a clock, after all that the device was given to do."""
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize(accelerator.device)
    return time.monotonic()
