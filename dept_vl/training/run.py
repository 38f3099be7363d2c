"""One training run from checked inputs to a published adapter."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from dept_vl.command_line import StopSignal, say
from dept_vl.config import Settings
from dept_vl.data.loader import training_batches
from dept_vl.data.order import steps_per_epoch
from dept_vl.data.preflight import check_examples
from dept_vl.data.tokens import cache_folder
from dept_vl.inference import make_dataset, predict
from dept_vl.model.adapter import Adapter, adapter_identity
from dept_vl.model.backbone import load_backbone
from dept_vl.model.build import build_model
from dept_vl.model.trainable import TrainableCount
from dept_vl.model.vl_t5 import VLT5
from dept_vl.run_folder import compute_dtype, open_run, publish_adapter, run_record
from dept_vl.tasks.task import load_task
from dept_vl.training.loop import Validation, train
from dept_vl.types import Batch, Example
from feature_extraction import FeatureStore
from feature_extraction.errors import DiskFullError, UsageError

VALIDATION_SEED = 0  # every run scores the same validation examples, whatever its own seed


def train_run(
    *,
    settings: Settings,
    data: Path,
    features: Path,
    output: Path,
    command: str,
    dry_run: bool,
    stop: StopSignal,
) -> None:
    """Check everything, train or go on training, and put the best adapter into ``output/adapter``.

    Raises:
        UsageError, InputDataError, IncompatibleError, DamagedError, DiskFullError: a check failed; nothing was
            written.
        NumericalError, Interrupted: as ``training.loop.train``.
    """
    accelerator = _accelerator(settings, output)
    talks = accelerator.is_main_process

    store = FeatureStore.open(features)
    settings = replace(settings, features=store.settings)
    task = load_task(settings.task)
    training_examples, all_validation_examples = task.read(data, "train"), task.read(data, "validation")
    check_examples(training_examples, store, f"Split 'train' of {data}")
    check_examples(all_validation_examples, store, f"Split 'validation' of {data}")
    validation_examples = _choose(all_validation_examples, settings.training.validation_examples)
    if talks:
        store.verify()

    backbone = load_backbone(settings.backbone, dtype=compute_dtype(settings))
    built = build_model(
        settings,
        backbone,
        visual_tokens=store.visual_tokens,
        feature_width=store.feature_width,
        seed=settings.training.seed,
    )
    steps_in_epoch = steps_per_epoch(len(training_examples), settings.data.batch_size)
    total_steps = settings.training.steps or math.ceil((settings.training.epochs or 0) * steps_in_epoch)
    _check_disk(output, built.trainable)
    if talks:
        for note in built.notes:
            say(note)
        say(
            f"{len(training_examples):,} training and {len(validation_examples):,} validation examples, "
            f"{total_steps:,} steps of {settings.data.batch_size} ({total_steps / steps_in_epoch:.1f} epochs)"
        )
    if dry_run:
        if talks:
            say("Dry run: everything fits together; nothing was written")
        return

    identity = adapter_identity(backbone, task=settings.task.name, method=settings.method.name, features=store.identity)
    if talks:
        record = run_record(command=command, settings=settings, data=data, features=features, identity=identity)
        open_run(output, settings, record)
    accelerator.wait_for_everyone()
    if (output / "adapter").is_dir():
        if talks:
            say(f"{output} has finished already: {output / 'adapter'}")
        return
    _start_tracker(accelerator, settings)

    with accelerator.main_process_first():  # the first process tokenises, the others read its cache
        training_set = make_dataset(training_examples, store, backbone, settings, cache=cache_folder())
        validation_set = make_dataset(validation_examples, store, backbone, settings, cache=cache_folder())

    def batches_from(step: int) -> Iterator[Batch]:
        epoch, position = divmod(step, steps_in_epoch)
        return (
            placed.batch
            for placed in training_batches(
                training_set,
                batch_size=settings.data.batch_size,
                bucket_width=settings.data.bucket_width,
                seed=settings.training.seed,
                epoch=epoch,
                position=position,
                rank=accelerator.process_index,
                world=accelerator.num_processes,
                workers=settings.data.workers,
            )
        )

    def validate(model: VLT5) -> Validation:
        predictions = predict(
            model,
            validation_set,
            task=task,
            tokenizer=backbone.tokenizer,
            settings=settings,
            accelerator=accelerator,
        )
        metrics = task.score(predictions, validation_examples).metrics
        answers, counts = np.unique([prediction.answer for prediction in predictions], return_counts=True)
        return Validation(
            metrics=metrics,
            score=metrics[settings.task.selection_metric] or 0.0,
            most_frequent_answer=str(answers[counts.argmax()]),
            most_frequent_share=float(counts.max() / counts.sum()),
        )

    result = train(
        model=built.model,
        groups=built.groups,
        batches_from=batches_from,
        validate=validate,
        settings=settings,
        total_steps=total_steps,
        folder=output,
        accelerator=accelerator,
        stop=stop,
    )
    if talks:
        folder = publish_adapter(output, Adapter(identity, asdict(settings), result.best))
        say(f"Best step {result.progress.best_step}: {settings.task.selection_metric} {result.progress.best_score:.2f}")
        say(f"Adapter: {folder}")
    accelerator.end_training()


def _accelerator(settings: Settings, output: Path) -> Accelerator:
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
        # DePT's count of trained rows is shared by the loop; a broadcast before each step would undo it.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def _start_tracker(accelerator: Accelerator, settings: Settings) -> None:
    if settings.training.tracker == "none":
        return
    flat = {
        f"{section}.{key}": value
        for section, values in asdict(settings).items()
        for key, value in values.items()
        if isinstance(value, str | int | float)
    }
    try:
        accelerator.init_trackers("dept_vl", config=flat)
    except Exception as error:  # an outage never stops training
        say(f"Tracker {settings.training.tracker} did not start ({error}); log.jsonl is written all the same")


def _choose(examples: Sequence[Example], wanted: int | None) -> Sequence[Example]:
    if wanted is None or wanted >= len(examples):
        return examples
    chosen = np.random.default_rng(VALIDATION_SEED).choice(len(examples), wanted, replace=False)
    return [examples[index] for index in sorted(chosen)]


def _check_disk(output: Path, trainable: TrainableCount) -> None:
    """Three checkpoints at a time (two kept, one being written), each of model, best model and two moments in fp32."""
    needed = 3 * 4 * 4 * (trainable.own + trainable.visual)
    existing = next(parent for parent in [output.resolve(), *output.resolve().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < 1.1 * needed:
        raise DiskFullError(
            f"Too little space for the checkpoints of {output}: {needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB "
            "free. Free some, or give an --output on another disk"
        )
