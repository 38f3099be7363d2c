"""What a run would cost: a short one of the same settings, timed.

It goes the way of every run, over ``training.loop.train`` with its optimizer, log, validation and checkpoint, so that
what is measured is what will be paid. Only the steps are fewer, and of the validation examples a part is answered.
"""

from __future__ import annotations

import contextlib
import io
import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from dept_vl.apart import call_apart
from dept_vl.costs.short_run import assemble, latencies, train_shortly
from dept_vl.memory import peak_memory
from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.model.soft_prompt import SoftPrompt
from dept_vl.settings import Settings


class Cost(NamedTuple):
    """What a run of some settings costs on this machine, in one process."""

    device: str  # cpu, or the GPU's name
    own: int  # parameters that train: the method's own
    visual: int  # of the visual embedding
    heads: int  # of classification heads
    total: int  # of the whole model, trained or not
    prompt_length: int | None  # m, or l of prompt tuning; None without a prompt
    prompt_parameters: int  # of ``own``, those of the prompt
    rank: int | None  # r of what is added to the embeddings; None where that is nothing
    step_seconds: float  # mean of an optimizer step, with the wait for its batch
    step_seconds_low: float  # of the quickest of a few windows
    step_seconds_high: float  # of the slowest
    peak_memory_bytes: int  # of training and validation, see memory.peak_memory
    latency_seconds: float  # median answer to one example alone
    examples_per_second: float  # answered in batches of data.evaluation_batch_size
    startup_seconds: float  # before the first step
    validation_seconds: float  # of all validation examples, once
    checkpoint_seconds: float  # of one
    total_steps: int | None  # of the whole run; None where they depend on data that is not there
    training_seconds: float | None  # of the whole run, validations and checkpoints included
    synthetic: bool  # measured on made-up data of the largest shapes: an upper bound


def measure_apart(
    settings: Settings, data: Mapping[str, Path] | None, features: Mapping[str, Path], *, steps: int, warmup: int
) -> Cost:
    """As ``measure``, in a fresh process, so that the peak of memory is of these settings alone.

    Raises:
        MemoryError: it does not fit.
        Any error of ``measure``.
    """
    return call_apart(_measure_since, time.time(), settings, data, features, steps=steps, warmup=warmup)


def _measure_since(
    started: float,
    settings: Settings,
    data: Mapping[str, Path] | None,
    features: Mapping[str, Path],
    *,
    steps: int,
    warmup: int,
) -> Cost:
    """In the fresh process: its start, and the loading of torch, belong to the costs too."""
    before = time.time() - started
    cost = measure(settings, data, features, steps=steps, warmup=warmup)
    whole = None if cost.training_seconds is None else cost.training_seconds + before
    return cost._replace(startup_seconds=cost.startup_seconds + before, training_seconds=whole)


def measure(
    settings: Settings, data: Mapping[str, Path] | None, features: Mapping[str, Path], *, steps: int, warmup: int
) -> Cost:
    """Measure in this process.

    The first steps, not timed, see the largest batches of the run, which make its peak of memory. Then come ``warmup``
    steps in the run's own order, not timed either, and ``steps`` timed ones.

    Args:
        data: for each task its data folder; None for made-up examples of the longest texts and targets.
        features: for each task with images its feature store. Without ``data`` it may be empty: the shapes are then
            those that the settings of the features give.

    Raises:
        MemoryError: it does not fit.
        UsageError, InputDataError, IncompatibleError, DamagedError, NumericalError: as of ``train_run``.
    """
    # What a run says is no news for somebody who compares costs.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        try:
            return _measure(settings, data, features, steps, warmup, Path(folder))
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise MemoryError(str(error).partition("\n")[0]) from error
            raise


def _measure(
    settings: Settings,
    data: Mapping[str, Path] | None,
    features: Mapping[str, Path],
    steps: int,
    warmup: int,
    folder: Path,
) -> Cost:
    started = time.monotonic()
    run = assemble(settings, data, features, folder)
    device = run.accelerator.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = train_shortly(run, steps=steps, warmup=warmup, folder=folder)
    peak = peak_memory(device)
    prompt = next(iter(run.parts.built.model.encoder.prompts().values()), None)
    rank = _rank(prompt)
    alone = latencies(run)  # from here on the model is as after training, with its offsets folded
    seconds = [spent / count for count, spent in times.answered.values()]
    validation = sum(one * len(task.validation) for one, task in zip(seconds, run.tasks.values(), strict=True))
    step, startup = times.step, times.first_step - started
    known = data is not None or settings.training.steps is not None
    total_steps = len(run.parts.turns)
    training = startup + total_steps * step
    training += math.ceil(total_steps / settings.training.evaluate_every) * validation
    training += math.ceil(total_steps / settings.training.checkpoint_every) * times.checkpoint
    trainable = run.parts.built.trainable
    return Cost(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        own=trainable.own,
        visual=trainable.visual,
        heads=trainable.heads,
        total=trainable.total,
        prompt_length=None if prompt is None else len(prompt.prompt),
        prompt_parameters=0 if prompt is None else prompt.prompt.numel(),
        rank=rank,
        step_seconds=step,
        step_seconds_low=min(times.windows),
        step_seconds_high=max(times.windows),
        peak_memory_bytes=peak,
        latency_seconds=statistics.median(alone),
        examples_per_second=sum(count for count, _ in times.answered.values())
        / sum(spent for _, spent in times.answered.values()),
        startup_seconds=startup,
        validation_seconds=validation,
        checkpoint_seconds=times.checkpoint,
        total_steps=total_steps if known else None,
        training_seconds=training if known else None,
        synthetic=data is None,
    )


def _rank(prompt: SoftPrompt | None) -> int | None:
    if isinstance(prompt, DecomposedPrompt):
        return prompt.a.shape[1]
    return None if prompt is None or prompt.token_offset is None else prompt.token_offset.w1.shape[1]
