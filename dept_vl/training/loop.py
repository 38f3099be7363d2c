"""The training loop, for every task and method, on one process or several."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from dept_vl.command_line import StopSignal, say
from dept_vl.memory import peak_memory
from dept_vl.model.adapter import restore_tensors, trained_tensors
from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.model.trainable import ParameterGroup
from dept_vl.settings import Settings
from dept_vl.training.captured import recorder_for
from dept_vl.training.checkpoint import Checkpoint, Progress, load_newest_checkpoint, save_checkpoint, tidy
from dept_vl.training.loss_log import LossLog
from dept_vl.training.optimizer import (
    GatedAdamW,
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    schedule_factor,
)
from dept_vl.training.step import TrainingStep
from dept_vl.types import Batch
from feature_extraction.durable import write_durably
from feature_extraction.errors import Interrupted, NumericalError

COLLAPSED_SHARE = 0.99  # of one answer among all predictions; above it the model has most likely learned nothing


class Validation(NamedTuple):
    """What a validation found."""

    metrics: dict[str, float | None]
    score: float  # the selection metric; the highest is best
    most_frequent_answer: str
    most_frequent_share: float  # of all predictions, 0 to 1


class TrainingResult(NamedTuple):
    """Where a run ended, and each task's best trained tensors."""

    progress: Progress
    best: dict[str, dict[str, Tensor]]


class _Run(NamedTuple):
    """What every part of the loop needs."""

    model: PromptedModel
    groups: Sequence[ParameterGroup]
    optimizer: GatedAdamW
    step: TrainingStep
    settings: Settings
    folder: Path
    accelerator: Accelerator
    log: LossLog | None  # on the main process only


def train(
    *,
    model: PromptedModel,
    groups: Sequence[ParameterGroup],
    batches_from: Callable[[int], Iterator[Batch]],
    validate: Callable[[PromptedModel], dict[str, Validation]],
    settings: Settings,
    total_steps: int,
    folder: Path,
    accelerator: Accelerator,
    stop: StopSignal,
) -> TrainingResult:
    """Train to the end, from the newest checkpoint in ``folder`` if there is one.

    Args:
        batches_from: gives this process's batches, on any device, starting with that of the given step.
        validate: scores the model on each task's validation split; called on every process.
        total_steps: updates of the whole run.
        stop: true once the run should save and end.

    Raises:
        NumericalError: a loss or gradient is not finite; the update is not made, the last checkpoint stays.
        Interrupted: a signal came; the state is saved.
        DamagedError: the newest checkpoint is not what was written.
    """
    model.to(accelerator.device)  # before the optimizer, whose restored state goes to the parameters' device
    optimizer = make_optimizer(groups, settings.optimizer)
    checkpoint = load_newest_checkpoint(folder / "checkpoints")
    progress, best = Progress(), dict[int, dict[str, Tensor]]()
    if checkpoint is not None:
        progress, best = checkpoint.progress, checkpoint.best
        restore_tensors(model, groups, checkpoint.model, folder / "checkpoints")
        restore_optimizer(optimizer, groups, checkpoint.optimizer, several_tasks=len(settings.tasks) > 1)
        if accelerator.is_main_process:
            say(f"Resuming at step {progress.step:,} of {total_steps:,}")
    log = None
    if accelerator.is_main_process:
        tidy(folder / "checkpoints")
        log = LossLog(folder / "log.jsonl", resume_step=progress.step)
    step = TrainingStep(
        model=model,
        optimizer=optimizer,
        clip_norm=settings.optimizer.clip_norm,
        bf16=settings.training.precision == "bf16",
        accumulation=settings.training.accumulation,
        processes=accelerator.num_processes,
        record=recorder_for(accelerator.device, checkpointed=settings.training.checkpoint_activations),
        talks=accelerator.is_main_process,
    )
    run = _Run(model, groups, optimizer, step, settings, folder, accelerator, log)

    bar = _progress_bar(progress.step, total_steps, shown=accelerator.is_main_process)
    try:
        batches = batches_from(progress.step)
        while progress.step < total_steps and not progress.finished:
            validates = (progress.step + 1) % settings.training.evaluate_every == 0 or progress.step + 1 == total_steps
            asked = time.monotonic()
            batch = next(batches).to(accelerator.device)
            waited = time.monotonic() - asked
            update_norms = _update(run, batch, progress, total_steps, measures=validates, waited=waited)
            bar.update()
            if validates:
                best = _validate(run, validate, progress, best, update_norms)
            stopping = _any_process(accelerator, bool(stop))
            progress.finished = progress.finished or progress.step == total_steps
            if progress.finished or stopping or progress.step % settings.training.checkpoint_every == 0:
                _save(run, progress, best)
            if stopping and not progress.finished:
                raise Interrupted(
                    f"{stop.name or 'a signal'} at step {progress.step:,} of {total_steps:,}, saved in {folder}. "
                    "Run the same command to go on"
                )
    finally:
        bar.close()
        if log is not None:
            log.close()
    return TrainingResult(progress, {task: best[step] for task, step in progress.best_step.items()})


def _update(
    run: _Run,
    batch: Batch,
    progress: Progress,
    total_steps: int,
    *,
    measures: bool,
    waited: float,
) -> dict[str, float]:
    """One optimizer step, and a line of the loss log where a window of steps ends.

    ``waited`` is how many seconds the batch was waited for. Returns how far each group moved, where the log or the
    caller (``measures``) wants to know.
    """
    training, step = run.settings.training, progress.step
    started = time.monotonic()
    logs = (step + 1) % training.log_every == 0
    measured = run.groups if logs or measures else []
    before = {group.name: [value.detach().clone() for value in group.parameters.values()] for group in measured}
    factor = schedule_factor(step, total_steps=total_steps, warmup_fraction=run.settings.optimizer.warmup_fraction)
    # Dropout is a function of (seed, step, process): resuming needs no generator state.
    seed = hash((training.seed, step, run.accelerator.process_index))
    loss, norm = run.step(batch, factor=factor, seed=seed)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        _refuse_update(run, batch, step, loss, norm)
    progress.step += 1
    progress.window_loss[batch.task] = progress.window_loss.get(batch.task, 0.0) + loss
    progress.window_steps[batch.task] = progress.window_steps.get(batch.task, 0) + 1
    update_norms = {group.name: _distance(group.parameters.values(), before[group.name]) for group in measured}
    if logs:
        _record(
            run,
            {
                "step": progress.step,
                "loss": sum(progress.window_loss.values()) / sum(progress.window_steps.values()),
                **_losses_by_task(progress),
                "gradient_norm": norm,
                "learning_rate": {group.name: group.learning_rate * factor for group in run.groups},
                "update_norm": update_norms,
                "seconds": {"update": time.monotonic() - started, "waiting_for_batch": waited},
            },
        )
        progress.window_loss, progress.window_steps = {}, {}
    return update_norms


def _losses_by_task(progress: Progress) -> dict[str, dict[str, float]]:
    """Of several tasks, the mean loss of each: their sizes have nothing to do with each other."""
    losses = {task: loss / progress.window_steps[task] for task, loss in progress.window_loss.items()}
    return {"task_loss": losses} if len(losses) > 1 else {}


def _validate(
    run: _Run,
    validate: Callable[[PromptedModel], dict[str, Validation]],
    progress: Progress,
    best: dict[int, dict[str, Tensor]],
    update_norms: Mapping[str, float],
) -> dict[int, dict[str, Tensor]]:
    """Score the model, say whether it is learning, and return the best tensors so far, by their steps."""
    _share_trained_length(run)
    run.model.eval()
    results = validate(run.model)
    gained = [
        task
        for task, result in results.items()
        if task not in progress.best_score or result.score > progress.best_score[task]
    ]
    for task, result in results.items():
        _report_validation(run, progress.step, task, result, update_norms)
        if task in gained:
            progress.best_score[task], progress.best_step[task] = result.score, progress.step

    if gained:
        progress.validations_without_gain = 0
        best = {**best, progress.step: trained_tensors(run.model, run.groups)}
        return {step: tensors for step, tensors in best.items() if step in progress.best_step.values()}
    progress.validations_without_gain += 1
    patience = run.settings.training.patience
    if patience is not None and progress.validations_without_gain >= patience:
        progress.finished = True
        if run.accelerator.is_main_process:
            metrics = ", ".join(dict.fromkeys(task.selection_metric for task in run.settings.tasks.values()))
            say(f"No better {metrics} in {patience} validations: stopped early at step {progress.step:,}")
    return best


def _report_validation(run: _Run, step: int, task: str, result: Validation, update_norms: Mapping[str, float]) -> None:
    """Write one task's validation to the log and to the user."""
    prompts = run.model.encoder.prompts().values()
    prompt_norm = float(torch.stack([one.prompt.detach().norm() for one in prompts]).mean()) if prompts else None
    _record(
        run,
        {
            "step": step,
            "task": task,
            "validation": result.metrics,
            "prompt_norm": prompt_norm,
            "update_norm": update_norms,
            "most_frequent_answer": result.most_frequent_answer,
            "most_frequent_share": result.most_frequent_share,
        },
    )
    if not run.accelerator.is_main_process:
        return
    name = run.settings.tasks[task].selection_metric
    line = f"step {step:,}: validation {f'{task} ' if len(run.settings.tasks) > 1 else ''}{name} {result.score:.2f}"
    line += "" if prompt_norm is None else f", prompt norm {prompt_norm:.1f}"
    line += f", last update {', '.join(f'{group} {norm:.2g}' for group, norm in update_norms.items())}"
    line += f", {result.most_frequent_share:.0%} of the answers are {result.most_frequent_answer!r}"
    if result.most_frequent_share >= COLLAPSED_SHARE:
        line += ". It is not learning yet: if this stays, change optimizer.prompt_lr or train for more steps"
    tqdm.write(line, file=sys.stderr)


def _save(run: _Run, progress: Progress, best: dict[int, dict[str, Tensor]]) -> None:
    _share_trained_length(run)
    if run.accelerator.is_main_process:
        checkpoint = Checkpoint(
            progress, trained_tensors(run.model, run.groups), best, optimizer_tensors(run.optimizer, run.groups)
        )
        save_checkpoint(run.folder / "checkpoints", checkpoint)
    run.accelerator.wait_for_everyone()


def _refuse_update(run: _Run, batch: Batch, step: int, loss: float, norm: float) -> None:
    path = run.folder / "nan_batch.json"
    example_ids = gather_object(list(batch.example_ids))
    record = {"step": step, "loss": str(loss), "gradient_norm": str(norm), "example_ids": example_ids}
    if run.accelerator.is_main_process:
        write_durably(path, (json.dumps(record, indent=1) + "\n").encode())
    raise NumericalError(
        f"Loss {loss} and gradient norm {norm} at step {step:,} are not both finite; the update was not made. "
        f"The example ids are in {path}, the last good checkpoint in {run.folder / 'checkpoints'}. "
        "Try a lower optimizer.prompt_lr in a new --output folder, or training.precision=fp32"
    )


def _record(run: _Run, record: Mapping[str, Any]) -> None:
    """Write to the local log, and hand the numbers to the tracker, whose failure never stops training."""
    if run.log is None:
        return
    record = {**record, "peak_memory_bytes": peak_memory(run.accelerator.device)}
    run.log.write(record)
    # At a validation each task has a record of the same step.
    prefix = f"{record['task']}/" if "task" in record and len(run.settings.tasks) > 1 else ""
    numbers = {
        f"{prefix}{key}/{name}" if name else f"{prefix}{key}": value
        for key, entry in record.items()
        for name, value in (entry.items() if isinstance(entry, Mapping) else [("", entry)])
        if isinstance(value, int | float) and key != "step"
    }
    try:
        run.accelerator.log(numbers, step=record["step"])
    except Exception as error:
        say(f"The tracker did not take step {record['step']} ({error}); log.jsonl has it, training goes on")


def _share_trained_length(run: _Run) -> None:
    """DePT's count of trained rows is the largest of all processes, each of which saw other texts."""
    for prompt in run.model.encoder.prompts().values():
        if isinstance(prompt, DecomposedPrompt):
            prompt.trained_length.copy_(run.accelerator.gather(prompt.trained_length.reshape(1)).max())


def _any_process(accelerator: Accelerator, flag: bool) -> bool:
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.gather(torch.tensor([flag], device=accelerator.device)).any())


def _distance(parameters: Iterable[Tensor], old: Sequence[Tensor]) -> float:
    squares = [(new.detach() - former).square().sum() for new, former in zip(parameters, old, strict=True)]
    return float(torch.stack(squares).sum().sqrt())


def _progress_bar(step: int, total_steps: int, *, shown: bool) -> tqdm[Any]:
    interval = 0.5 if sys.stderr.isatty() else 30.0  # seconds; a log file wants few lines
    return tqdm(total=total_steps, initial=step, unit="step", disable=not shown, mininterval=interval)
