"""Model and examples → predictions, each example exactly once on any number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from dept_vl.answer_log import AnswerLog
from dept_vl.command_line import say
from dept_vl.config import settings_from_yaml
from dept_vl.data.dataset import ExampleDataset, VisualSource
from dept_vl.data.device import on_device
from dept_vl.data.loader import evaluation_batches
from dept_vl.data.preflight import check_examples
from dept_vl.data.resident import ResidentFeatures
from dept_vl.data.tokens import cache_folder, tokenize_examples
from dept_vl.leaderboard import write_evaluation
from dept_vl.model.backbone import Backbone
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.run_folder import LoadedRun, choose_task, load_run, read_record, task_folder
from dept_vl.settings import Settings
from dept_vl.tasks.task import Task
from dept_vl.types import Batch, Example, Prediction, Scores
from feature_extraction.store.layout import digest
from feature_extraction.weights import weight_digest


def predict(
    model: PromptedModel,
    dataset: ExampleDataset,
    *,
    task: Task,
    settings: Settings,
    accelerator: Accelerator,
    log: AnswerLog | None = None,
    resident: ResidentFeatures | None = None,
) -> list[Prediction]:
    """Answer every example, in the order of the dataset; all processes get the whole list.

    With a log, answers that it has already are not given again. ``resident`` has the features of a dataset that gives
    their rows.
    """
    model.eval()
    answers: dict[str, str] = {}
    if log is not None:
        if accelerator.is_main_process:
            log.collect()
        accelerator.wait_for_everyone()
        answers = log.read()
        if answers and accelerator.is_main_process:
            say(f"Going on: {len(answers):,} of {len(dataset):,} examples are answered already")
        accelerator.wait_for_everyone()
    batches = evaluation_batches(
        dataset,
        batch_size=settings.data.evaluation_batch_size,
        bucket_width=settings.data.bucket_width,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        workers=settings.data.workers,
        done=frozenset(answers),
    )
    for batch in on_device(batches, accelerator.device, resident):
        given = answer_batch(model, batch, task, settings)
        answered = dict(zip(batch.example_ids, given, strict=True))
        if log is not None:
            log.append(answered)
        answers |= answered
    everyone: Sequence[tuple[str, str]] = gather_object(list(answers.items()))
    collected = dict(everyone)
    return [Prediction(example.example_id, collected[example.example_id]) for example in dataset.examples]


def answer_batch(model: PromptedModel, batch: Batch, task: Task, settings: Settings) -> list[str]:
    """The answers to a batch that is on the model's device, in the precision of the settings."""
    bf16 = settings.training.precision == "bf16"
    with torch.autocast(batch.text_ids.device.type, torch.bfloat16, enabled=bf16):
        return [task.parse(text) for text in model.answer(batch)]


class Evaluation(NamedTuple):
    """What was evaluated, and its scores; of several processes, only the first has them."""

    task: str
    split: str
    scores: Scores


def evaluate_run(
    run: Path,
    split: str,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    task: str | None = None,
    features: Path | None = None,
    data: Path | None = None,
    single: bool = False,
) -> list[Evaluation]:
    """Answer a split with a trained run, score it and write the leaderboard file.

    On several processes each answers its share, and the first writes. The same call again goes on with an evaluation
    that was stopped.

    Args:
        output: folder for all files; ``RUN/evaluation/SPLIT`` if None. Where the server takes several splits only
            together, the others are evaluated into folders of their names beside it.
        task: which of the run's tasks; None for all.
        single: this split alone, even if the server takes it only with others.

    Raises:
        InputDataError: the run or its data is not complete.
        IncompatibleError: the run's adapter does not belong to the backbone or the features.
        UsageError: the run has no such task, or there is one ``output`` for several.
    """
    read_record(run)  # raises where the folder is that of no run
    settings = settings_from_yaml(run / "config.yaml", overrides)
    names = list(settings.tasks) if task is None else [choose_task(run, settings, task)]
    if len(names) > 1 and (output or features or data):
        choose_task(run, settings, task)  # raises: such an option is about one task
    accelerator = Accelerator()
    evaluations = []
    for name in names:
        loaded = load_run(run, task=name, overrides=overrides, features=features, data=data)
        loaded.model.to(accelerator.device)
        folder = output or task_folder(run / "evaluation", settings, name) / split
        splits = (split,) if single else loaded.task.server_splits(split)
        folders = {one: folder if one == split else folder.with_name(one) for one in splits}
        for one, place in folders.items():
            scores = _evaluate_split(loaded, one, place, accelerator)
            if accelerator.is_main_process:
                evaluations.append(Evaluation(name, one, scores))
        if accelerator.is_main_process:
            say(loaded.trainable.describe(settings.method.name))
            files = {one: place / loaded.task.submission_name(one) for one, place in folders.items()}
            leaderboard_file = files[split]
            if len(splits) > 1 and loaded.task.bundle is not None:
                leaderboard_file = folder / "results.zip"
                loaded.task.bundle(files, leaderboard_file)
            say(f"Leaderboard file: {leaderboard_file}")
        accelerator.wait_for_everyone()
    accelerator.end_training()  # closes the connections; left to the interpreter's end, their threads may abort it
    return evaluations


def _evaluate_split(run: LoadedRun, split: str, folder: Path, accelerator: Accelerator) -> Scores:
    """Answer and score one split; the scores are empty but on the first process."""
    examples = run.task.read(run.data, split)
    check_examples(examples, run.store, f"Split {split!r} of {run.data}")
    blank_ids = run.task.blank_ids(run.data, split)
    dataset = make_dataset(examples, run.store, run.backbone, run.settings, cache=cache_folder())
    log = AnswerLog(
        folder / "answers.partial",
        identity={
            "adapter": weight_digest(run.adapter.tensors),
            "examples": digest([[one.example_id, one.text, one.image_ids] for one in examples]),
            "settings": {name: asdict(run.settings)[name] for name in ("tasks", "data", "visual", "features")},
            "precision": run.settings.training.precision,
        },
        rank=accelerator.process_index,
    )
    predictions = predict(run.model, dataset, task=run.task, settings=run.settings, accelerator=accelerator, log=log)
    scores = Scores({}, {})
    if accelerator.is_main_process:
        scores = write_evaluation(folder, run.task, split, predictions, examples, blank_ids=blank_ids)
        log.delete()
    accelerator.wait_for_everyone()
    return scores


def make_dataset(
    examples: Sequence[Example],
    store: VisualSource | None,
    backbone: Backbone,
    settings: Settings,
    *,
    cache: Path | None,
    answers: Sequence[str] = (),
) -> ExampleDataset:
    """A task's examples with their token ids, from the cache folder where this was done before."""
    tokens = tokenize_examples(
        examples,
        backbone.tokenizer,
        frame=backbone.frame(settings.task.cue),
        prefix=settings.task.chosen_prefix,
        max_text_length=settings.task.max_text_length,
        max_target_length=settings.task.max_target_length,
        tokenizer_digest=backbone.tokenizer_digest,
        cache=cache,
    )
    (task,) = settings.tasks
    return ExampleDataset(examples, tokens, store, task=task, answers=answers)
