"""One training run from checked inputs to a published adapter."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import Accelerator

from dept_vl.command_line import StopSignal, say
from dept_vl.data.dataset import ExampleDataset, VisualSource
from dept_vl.data.device import on_device
from dept_vl.data.order import Turn, task_turns
from dept_vl.data.tokens import cache_folder
from dept_vl.inference import make_dataset, predict
from dept_vl.model.adapter import Adapter, load_adapter
from dept_vl.model.backbone import Backbone, load_backbone
from dept_vl.model.build import BuiltModel, build_model
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.model.trainable import TrainableCount
from dept_vl.model.transfer import find_adapter, start_from
from dept_vl.run_folder import compute_dtype, open_run, publish_adapters, run_identity, run_record
from dept_vl.settings import Settings
from dept_vl.training.loop import Validation, train
from dept_vl.training.task_data import TaskData, keep_on_device, read_tasks, task_batches
from dept_vl.types import Batch, Example, Prediction
from feature_extraction import FeatureStore
from feature_extraction.differences import refuse_differences
from feature_extraction.durable import write_durably
from feature_extraction.errors import DiskFullError, InputDataError, UsageError
from feature_extraction.weights import weight_digest


def train_run(
    *,
    settings: Settings,
    data: Mapping[str, Path],
    features: Mapping[str, Path],
    output: Path,
    command: str,
    dry_run: bool,
    stop: StopSignal,
) -> None:
    """Check everything, train or go on training, and put each task's best adapter into ``output/adapter``.

    ``data`` names the folder of each task, ``features`` the feature store of each task with images.

    Raises:
        UsageError, InputDataError, IncompatibleError, DamagedError, DiskFullError: a check failed; nothing was
            written.
        NumericalError, Interrupted: as ``training.loop.train``.
    """
    accelerator = make_accelerator(settings, output)
    talks = accelerator.is_main_process

    settings, tasks, store = read_inputs(settings, data, features, verify=talks)
    prepared = prepare(settings, tasks, store)
    built, turns = prepared.built, prepared.turns
    identity = run_identity(settings, prepared.backbone, store)
    start, source_digest = _start(settings, built, identity)
    _check_disk(output, built.trainable, tasks=len(tasks))
    if talks:
        for note in [*built.notes, *start]:
            say(note)
        steps = Counter(turn.task for turn in turns)
        for name, task in tasks.items():
            say(
                f"{f'{name}: ' if len(tasks) > 1 else ''}{len(task.training):,} training and "
                f"{len(task.validation):,} validation examples, {steps[name]:,} steps of {task.batch_size} "
                f"({steps[name] / task.epoch_steps:.1f} epochs)"
            )
    if dry_run:
        if talks:
            say("Dry run: everything fits together; nothing was written")
        return

    if talks:
        record = run_record(
            command=command,
            settings=settings,
            data=data,
            features=features,
            identity=identity,
            source_digest=source_digest,
        )
        open_run(output, settings, record)
        if settings.data.shots is not None:
            shots = {name: [example.example_id for example in task.training] for name, task in tasks.items()}
            write_durably(output / "shots.json", (json.dumps(shots, indent=1) + "\n").encode())
    accelerator.wait_for_everyone()
    if (output / "adapter").is_dir():
        if talks:
            say(f"{output} has finished already: {output / 'adapter'}")
        return
    _start_tracker(accelerator, settings)

    tasks, resident = keep_on_device(tasks, accelerator.device, setting=settings.data.resident_features, talks=talks)
    with accelerator.main_process_first():  # the first process tokenises, the others read its cache
        training_sets = {name: make_set(task, task.training, prepared.backbone) for name, task in tasks.items()}
        validation_sets = {name: make_set(task, task.validation, prepared.backbone) for name, task in tasks.items()}

    def batches_from(step: int) -> Iterator[Batch]:
        batches = task_batches(
            turns[step:], tasks, training_sets, rank=accelerator.process_index, world=accelerator.num_processes
        )
        return on_device(batches, accelerator.device, resident)

    def validate(model: PromptedModel) -> dict[str, Validation]:
        return {
            name: _validate(
                predict(
                    model,
                    validation_sets[name],
                    task=task.task,
                    settings=task.settings,
                    accelerator=accelerator,
                    resident=resident,
                ),
                task,
            )
            for name, task in tasks.items()
        }

    result = train(
        model=built.model,
        groups=built.groups,
        batches_from=batches_from,
        validate=validate,
        settings=settings,
        total_steps=len(turns),
        folder=output,
        accelerator=accelerator,
        stop=stop,
    )
    if talks:
        adapters = {
            name: Adapter(identity, asdict(settings), best, prepared.answers) for name, best in result.best.items()
        }
        folder = publish_adapters(output, adapters, settings)
        for name, step in result.progress.best_step.items():
            say(
                f"Best step{f' of {name}' if len(tasks) > 1 else ''} {step}: "
                f"{settings.tasks[name].selection_metric} {result.progress.best_score[name]:.2f}"
            )
        say(f"Adapter: {folder}")
    accelerator.end_training()


def read_inputs(
    settings: Settings, data: Mapping[str, Path], features: Mapping[str, Path], *, verify: bool
) -> tuple[Settings, dict[str, TaskData], FeatureStore | None]:
    """The settings with those of the features, each task's data, and a feature store if a task has images.

    ``verify`` reads the whole of the stores.

    Raises:
        InputDataError, IncompatibleError, DamagedError: examples and features are not whole, or do not fit together.
    """
    stores = {path: FeatureStore.open(path) for path in dict.fromkeys(features.values())}
    store = next(iter(stores.values()), None)  # none of tasks without images
    for path, other in stores.items():
        if store is not None:
            refuse_differences(
                store.identity,
                other.identity,
                what=f"The features of {store.path} and {path} were not extracted in the same way",
                advice="Tasks that train together share the visual embedding: extract all with one backbone and grid",
            )
            settings = replace(settings, features=store.settings)
    tasks = read_tasks(
        settings, data, {name: stores[features[name]] if name in features else store for name in settings.tasks}
    )
    if verify:
        for one in stores.values():
            one.verify()
    return settings, tasks, store


class Prepared(NamedTuple):
    """A run that is ready to start: everything fits together, and nothing has been written."""

    backbone: Backbone
    built: BuiltModel
    answers: dict[str, list[str]]  # of the tasks that answer from a list
    turns: Sequence[Turn]  # one for each step


def prepare(settings: Settings, tasks: Mapping[str, TaskData], source: VisualSource | None) -> Prepared:
    """Load the backbone, build the model, and lay out the steps.

    Raises:
        UsageError, InputDataError, DamagedError: as ``load_backbone`` and ``build_model``.
    """
    backbone = load_backbone(settings.backbone, dtype=compute_dtype(settings))
    answers = {name: task.answers for name, task in tasks.items() if task.answers is not None}
    built = build_model(
        settings,
        backbone,
        visual_tokens=source.visual_tokens if source else 0,
        feature_width=source.feature_width if source else 0,
        seed=settings.training.seed,
        answers=answers,
    )
    epoch_steps = {name: task.epoch_steps for name, task in tasks.items()}
    turns = task_turns(
        epoch_steps,
        total_steps=settings.training.steps or math.ceil((settings.training.epochs or 0) * sum(epoch_steps.values())),
        temperature=settings.training.mixing_temperature,
        seed=settings.training.seed,
    )
    return Prepared(backbone, built, answers, turns)


def make_set(task: TaskData, examples: Sequence[Example], backbone: Backbone) -> ExampleDataset:
    """Some of a task's examples with their token ids, from the cache folder where this was done before."""
    answers = task.answers if task.settings.task.head == "classification" else None
    return make_dataset(examples, task.store, backbone, task.settings, cache=cache_folder(), answers=answers or ())


def _start(settings: Settings, built: BuiltModel, identity: Mapping[str, object]) -> tuple[list[str], str | None]:
    """Start from another run's trained tensors where the settings say so: what to tell the user, and their digest."""
    if settings.method.init_from is None:
        return [], None
    path = find_adapter(Path(settings.method.init_from))
    source = load_adapter(path)
    parts = settings.method.init_parts
    notes = start_from(built.model, built.groups, source, parts=parts, identity=identity, path=path)
    return notes, weight_digest(source.tensors)


def _validate(predictions: Sequence[Prediction], task: TaskData) -> Validation:
    """The scores that choose the best step, and whether the model says anything but one thing.

    Raises:
        InputDataError: the validation examples do not allow the selection metric.
    """
    scores = (task.task.score_validation or task.task.score)(predictions, task.validation)
    name = task.settings.task.selection_metric
    score = scores.metrics.get(name)
    if score is None:
        reason = scores.reasons.get(name, "its examples have no reference answers, or the task has no such metric")
        known = ", ".join(metric for metric, value in scores.metrics.items() if value is not None)
        raise InputDataError(
            f"task.selection_metric is {name!r}, which the validation split of {task.task.name} does not give "
            f"({reason}). Give annotated validation data, or choose one of: {known}"
        )
    answers, counts = np.unique([prediction.answer for prediction in predictions], return_counts=True)
    return Validation(
        metrics=scores.metrics,
        score=score,
        most_frequent_answer=str(answers[counts.argmax()]),
        most_frequent_share=float(counts.max() / counts.sum()),
    )


def make_accelerator(settings: Settings, output: Path) -> Accelerator:
    """What knows of the other processes and of the device, with the tracker of the settings.

    Raises:
        UsageError: the tracker is not installed.
    """
    tracker = settings.training.tracker
    if tracker != "none" and importlib.util.find_spec(tracker) is None:
        raise UsageError(
            f"training.tracker is {tracker!r}, but the package {tracker} is not installed. Run: pip install {tracker}, "
            "or leave this setting out: log.jsonl is always written"
        )
    return Accelerator(
        mixed_precision="bf16" if settings.training.precision == "bf16" else "no",
        log_with=None if tracker == "none" else tracker,
        project_dir=str(output),
    )


def _start_tracker(accelerator: Accelerator, settings: Settings) -> None:
    if settings.training.tracker == "none":
        return
    flat = {
        f"{section}.{key}": value
        for section, values in asdict(settings).items()
        for key, value in (values.items() if section != "tasks" else _task_settings(values))
        if isinstance(value, str | int | float)
    }
    try:
        accelerator.init_trackers("dept_vl", config=flat)
    except Exception as error:  # an outage never stops training
        say(f"Tracker {settings.training.tracker} did not start ({error}); log.jsonl is written all the same")


def _task_settings(tasks: Mapping[str, Mapping[str, object]]) -> Iterator[tuple[str, object]]:
    return ((f"{task}.{key}", value) for task, values in tasks.items() for key, value in values.items())


def _check_disk(output: Path, trainable: TrainableCount, *, tasks: int) -> None:
    """Three checkpoints at a time (two kept, one being written), each of model, best models and two moments in fp32."""
    needed = 3 * 4 * (3 + tasks) * trainable.trained
    existing = next(parent for parent in [output.resolve(), *output.resolve().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < 1.1 * needed:
        raise DiskFullError(
            f"Too little space for the checkpoints of {output}: {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB "
            "free. Free some, or give an --output on another disk"
        )
