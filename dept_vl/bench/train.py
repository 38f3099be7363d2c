"""Training steps of all implementations: ``python -m dept_vl.bench train --help``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product

import torch
from torch import nn

from dept_vl.bench.flops import step_flops
from dept_vl.bench.peers import OfficialDept, peft_loss, peft_prompt_tuning, plain_step
from dept_vl.bench.rows import Row
from dept_vl.bench.shapes import (
    BUDGET_LENGTH,
    Workload,
    batches_of,
    config_of,
    our_model,
    random_t5,
)
from dept_vl.bench.timing import Make, Step, measure
from dept_vl.settings import OptimizerSettings
from dept_vl.training.captured import recorder_for
from dept_vl.training.optimizer import make_optimizer
from dept_vl.training.step import TrainingStep
from dept_vl.types import Batch


def train_rows(
    *,
    sizes: Sequence[str],
    workloads: Sequence[Workload],
    batch_sizes: Sequence[int],
    prompt_lengths: Sequence[int],
    rounds: int,
    batches: int,
    bf16: bool,
    device: torch.device,
    compiles_library: bool,
    peak_tflops: float | None,
) -> list[Row]:
    """Time training steps of PEFT, the official arithmetic, the library's layers and ours at every shape."""
    rows = []
    for size, workload, batch_size in product(sizes, workloads, batch_sizes):
        makes = _implementations(
            size,
            workload,
            batches_of(workload, size=batch_size, count=batches, bucketed=False),
            batches_of(workload, size=batch_size, count=batches, bucketed=workload.bucketed),
            prompt_lengths=prompt_lengths,
            bf16=bf16,
            device=device,
            compiles_library=compiles_library,
        )
        found = measure(
            {f"{name} {length}": make for (name, length), make in makes.items()},
            turns=batches,
            rounds=rounds,
            device=device,
        )
        for name, length in makes:
            measured = found[f"{name} {length}"]
            share = None
            if peak_tflops is not None and measured.milliseconds is not None and not workload.bucketed:
                flops = step_flops(
                    config_of(size),
                    batch=batch_size,
                    encoder_length=length + workload.text_length + workload.visual_tokens,
                    target_length=workload.target_length,
                )
                share = flops / (peak_tflops * 1e12) / (measured.milliseconds / 1000)
            rows.append(Row(size, workload.name, batch_size, name, length, measured, share))
    return rows


def _implementations(
    size: str,
    workload: Workload,
    padded: Sequence[Batch],
    ours: Sequence[Batch],
    *,
    prompt_lengths: Sequence[int],
    bf16: bool,
    device: torch.device,
    compiles_library: bool,
) -> dict[tuple[str, int], Make]:
    dtype = torch.bfloat16 if bf16 else torch.float32

    def peft(length: int) -> Step:
        model = peft_prompt_tuning(random_t5(size, dtype=dtype, device=device), prompt_length=length)
        return plain_step(model, lambda batch: peft_loss(model, batch), padded, bf16=False)

    def official(length: int) -> Step:
        t5 = random_t5(size, dtype=dtype, device=device, eager=True)
        model = OfficialDept(t5, workload, prompt_length=length)
        return plain_step(model, model, padded, bf16=bf16)

    def library(length: int, *, compiled: bool = False) -> Step:
        t5 = random_t5(size, dtype=dtype, device=device)
        model: nn.Module = our_model(t5, workload, prompt_length=length, engine="library").model.to(device)
        run = torch.compile(model, mode="reduce-overhead") if compiled else model
        return plain_step(model, lambda batch: run(batch).loss, padded, bf16=bf16)

    def engine(length: int) -> Step:
        t5 = random_t5(size, dtype=dtype, device=device)
        built = our_model(t5, workload, prompt_length=length, engine="lean", compiled=device.type == "cuda")
        built.model.to(device)
        step = TrainingStep(
            model=built.model,
            optimizer=make_optimizer(built.groups, OptimizerSettings()),
            clip_norm=1.0,
            bf16=bf16,
            record=recorder_for(device, checkpointed=False),
        )
        here = [batch.to(device) for batch in ours]
        return lambda number: step(here[number % len(here)], factor=1.0, seed=number)

    short = min(prompt_lengths, key=lambda length: abs(length - 20))
    makes: dict[tuple[str, int], Make] = {}
    if not workload.visual_tokens:  # which PEFT's prompt tuning has no place for
        makes["peft", BUDGET_LENGTH] = partial(peft, BUDGET_LENGTH)
    for length in dict.fromkeys((BUDGET_LENGTH, short)):
        makes["official", length] = partial(official, length)
    makes["library", short] = partial(library, short)
    if compiles_library:
        makes["library compiled", short] = partial(library, short, compiled=True)
    for length in dict.fromkeys((*prompt_lengths, BUDGET_LENGTH)):
        makes["ours", length] = partial(engine, length)
    return makes
