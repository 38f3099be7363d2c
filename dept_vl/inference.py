"""Model and examples → predictions, each example exactly once on any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from dept_vl.command_line import say
from dept_vl.config import Settings
from dept_vl.data.dataset import ExampleDataset, VisualSource
from dept_vl.data.loader import evaluation_batches
from dept_vl.data.preflight import check_examples
from dept_vl.data.tokens import cache_folder, tokenize_examples
from dept_vl.leaderboard import write_evaluation
from dept_vl.model.backbone import Backbone
from dept_vl.model.vl_t5 import VLT5
from dept_vl.run_folder import load_run
from dept_vl.tasks.task import Task
from dept_vl.types import Batch, Example, Prediction


def predict(
    model: VLT5,
    dataset: ExampleDataset,
    *,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    accelerator: Accelerator,
) -> list[Prediction]:
    """Answer every example, in the order of the dataset; all processes get the whole list."""
    model.eval()
    answers: dict[str, str] = {}
    batches = evaluation_batches(
        dataset,
        batch_size=settings.data.evaluation_batch_size,
        bucket_width=settings.data.bucket_width,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        workers=settings.data.workers,
    )
    for batch in batches:
        here = batch.to(accelerator.device)
        answers.update(zip(batch.example_ids, answer_batch(model, here, task, tokenizer, settings), strict=True))
    everyone: Sequence[tuple[str, str]] = gather_object(list(answers.items()))
    collected = dict(everyone)
    return [Prediction(example.example_id, collected[example.example_id]) for example in dataset.examples]


def answer_batch(
    model: VLT5, batch: Batch, task: Task, tokenizer: PreTrainedTokenizerBase, settings: Settings
) -> list[str]:
    """The answers to a batch that is on the model's device, in the precision of the settings."""
    bf16 = settings.training.precision == "bf16"
    with torch.autocast(batch.text_ids.device.type, torch.bfloat16, enabled=bf16):
        ids = model.generate(batch, max_length=settings.task.max_target_length, num_beams=settings.task.num_beams)
    return [task.parse(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def evaluate_run(
    run: Path,
    split: str,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    features: Path | None = None,
    data: Path | None = None,
) -> dict[str, float | None]:
    """Answer a split with a trained run, score it and write the leaderboard file to ``output``.

    The default output is ``RUN/evaluation/SPLIT``. On several processes each answers its share, and the first writes.

    Raises:
        InputDataError: the run or its data is not complete.
        IncompatibleError: the run's adapter does not belong to the backbone or the features.
    """
    loaded = load_run(run, overrides=overrides, features=features, data=data)
    settings = loaded.settings
    examples = loaded.task.read(loaded.data, split)
    check_examples(examples, loaded.store, f"Split {split!r} of {loaded.data}")
    accelerator = Accelerator()
    loaded.model.to(accelerator.device)
    dataset = make_dataset(examples, loaded.store, loaded.backbone, settings, cache=cache_folder())
    predictions = predict(
        loaded.model,
        dataset,
        task=loaded.task,
        tokenizer=loaded.backbone.tokenizer,
        settings=settings,
        accelerator=accelerator,
    )
    metrics: dict[str, float | None] = {}
    if accelerator.is_main_process:
        folder = output or run / "evaluation" / split
        metrics = write_evaluation(folder, loaded.task, split, predictions, examples).metrics
        say(loaded.trainable.describe(settings.method.name))
        say(f"Leaderboard file: {folder / loaded.task.submission_name(split)}")
    accelerator.wait_for_everyone()
    return metrics


def make_dataset(
    examples: Sequence[Example], store: VisualSource, backbone: Backbone, settings: Settings, *, cache: Path | None
) -> ExampleDataset:
    """Examples with their token ids, from the cache folder where this was done before."""
    tokens = tokenize_examples(
        examples,
        backbone.tokenizer,
        prefix=settings.task.prefix,
        max_text_length=settings.task.max_text_length,
        max_target_length=settings.task.max_target_length,
        tokenizer_digest=backbone.tokenizer_digest,
        cache=cache,
    )
    return ExampleDataset(examples, tokens, store)
