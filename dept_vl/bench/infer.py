"""Greedy answers of all implementations, and of many adapters at once: ``python -m dept_vl.bench infer --help``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from operator import itemgetter
from typing import cast

import torch

from dept_vl.bench.peers import OfficialDept, generate, peft_prompt_tuning
from dept_vl.bench.rows import Row
from dept_vl.bench.shapes import BUDGET_LENGTH, Workload, batches_of, our_model, random_backbone, random_t5
from dept_vl.bench.timing import Make, Step, measure
from dept_vl.model.heads import GenerationHead
from dept_vl.serving.adapters import MergedPrompt, ServedAdapter
from dept_vl.serving.mixed_model import MixedModel
from dept_vl.settings import BackboneSettings, Settings, TaskSettings, TrainingSettings
from dept_vl.tasks.task import load_task
from dept_vl.types import Batch

TOKENS = 8  # of an answer
SHORT = 20  # m of the adapters that share a batch


def infer_rows(
    *,
    sizes: Sequence[str],
    workload: Workload,
    batch_sizes: Sequence[int],
    prompt_lengths: Sequence[int],
    adapters: int,
    rounds: int,
    bf16: bool,
    device: torch.device,
) -> list[Row]:
    """Time greedy decoding of ``TOKENS`` tokens at each batch size, and of one request to each of many adapters."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    rows = []
    for size, batch_size in product(sizes, batch_sizes):
        batches = batches_of(workload, size=batch_size, count=2, bucketed=False)
        makes = _one_adapter(size, workload, batches, prompt_lengths=prompt_lengths, dtype=dtype, device=device)
        rows += _rows(size, workload, batch_size, makes, rounds=rounds, device=device)
    for size in sizes:
        (batch,) = batches_of(workload, size=adapters, count=1, bucketed=False)
        makes = _many_adapters(size, workload, batch, dtype=dtype, device=device)
        rows += _rows(size, workload, adapters, makes, rounds=rounds, device=device)
    return rows


def _rows(
    size: str,
    workload: Workload,
    batch_size: int,
    makes: dict[tuple[str, int], Make],
    *,
    rounds: int,
    device: torch.device,
) -> list[Row]:
    # Twice before anything counts: the second search of a shape is the one that is recorded.
    found = measure({f"{name} {m}": make for (name, m), make in makes.items()}, turns=2, rounds=rounds, device=device)
    return [Row(size, workload.name, batch_size, name, m, found[f"{name} {m}"]) for name, m in makes]


def _one_adapter(
    size: str,
    workload: Workload,
    batches: Sequence[Batch],
    *,
    prompt_lengths: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[tuple[str, int], Make]:
    here = [batch.to(device) for batch in batches]

    def official(length: int) -> Step:
        t5 = random_t5(size, dtype=dtype, device=device, eager=True)
        model = OfficialDept(t5, workload, prompt_length=length).eval()
        return lambda number: model.generate(here[number % len(here)], tokens=TOKENS)

    def ours(engine: str, length: int) -> Step:
        t5 = random_t5(size, dtype=dtype, device=device)
        built = our_model(t5, workload, prompt_length=length, engine=engine, compiled=device.type == "cuda")
        model = built.model.to(device).eval()
        family = cast(GenerationHead, model.heads["vqa"]).family

        def step(number: int) -> object:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                states, mask = model.encoder(here[number % len(here)])
                return family.generate(model.backbone, states, mask, max_length=TOKENS, num_beams=1, allowed=None)

        return step

    short = min(prompt_lengths, key=lambda length: abs(length - SHORT))
    makes: dict[tuple[str, int], Make] = {}
    if not workload.visual_tokens:
        makes["peft", BUDGET_LENGTH] = lambda: _peft(size, here, dtype=dtype, device=device)
    for length in dict.fromkeys((BUDGET_LENGTH, short)):
        makes["official", length] = partial(official, length)
    makes["library", short] = partial(ours, "library", short)
    for length in dict.fromkeys((*prompt_lengths, BUDGET_LENGTH)):
        makes["ours", length] = partial(ours, "lean", length)
    return makes


def _many_adapters(
    size: str, workload: Workload, batch: Batch, *, dtype: torch.dtype, device: torch.device
) -> dict[tuple[str, int], Make]:
    """Each row of a batch asks an adapter of its own: as many calls of PEFT or ours, or one mixed batch of ours."""
    here, count = batch.to(device), len(batch.example_ids)
    single = [_row(here, row) for row in range(count)]

    def mixed(names: Callable[[int], str], *, apart: bool = False) -> Step:
        model = _mixed_model(size, workload, count, dtype=dtype, device=device)
        if apart:
            return lambda number: [model.answer(one, [names(row)]) for row, one in enumerate(single)]
        return lambda number: model.answer(here, [names(row) for row in range(count)])

    makes: dict[tuple[str, int], Make] = {}
    if not workload.visual_tokens:
        makes[f"peft, {count} calls", BUDGET_LENGTH] = lambda: _calls(
            _peft(size, single, dtype=dtype, device=device), count
        )
    makes[f"ours, {count} calls", SHORT] = lambda: mixed(str, apart=True)
    makes["ours, one adapter", SHORT] = lambda: mixed(lambda row: "0")
    makes[f"ours, {count} adapters", SHORT] = lambda: mixed(str)
    return makes


def _peft(size: str, batches: Sequence[Batch], *, dtype: torch.dtype, device: torch.device) -> Step:
    model = peft_prompt_tuning(random_t5(size, dtype=dtype, device=device), prompt_length=BUDGET_LENGTH).eval()

    def step(number: int) -> object:
        batch = batches[number % len(batches)]
        mask = batch.text_mask.long()
        return generate(model, tokens=TOKENS, input_ids=batch.text_ids, attention_mask=mask)

    return step


def _calls(step: Step, count: int) -> Step:
    return lambda number: [step(row) for row in range(count)]


def _row(batch: Batch, row: int) -> Batch:
    return replace(batch.map(itemgetter(slice(row, row + 1))), example_ids=batch.example_ids[row : row + 1])


def _mixed_model(size: str, workload: Workload, count: int, *, dtype: torch.dtype, device: torch.device) -> MixedModel:
    """A model with so many adapters of random contents, m = 20 and s rows each, all without images."""
    on_gpu = device.type == "cuda"
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    backbone = random_backbone(random_t5(size, dtype=dtype, device=device))
    model = MixedModel(
        backbone,
        device=device,
        settings=Settings(
            backbone=BackboneSettings(engine="lean", compiled=on_gpu), training=TrainingSettings(precision=precision)
        ),
        few_shapes=on_gpu,
    )
    settings = TaskSettings(max_text_length=workload.text_length, images_per_example=0, max_target_length=TOKENS)
    head = GenerationHead(tokenizer=backbone.tokenizer, max_length=TOKENS, family=model.family)
    served = ServedAdapter("dept", load_task(settings), settings, head, None, "", vl_t5_positions=False)
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        prompt, table = (
            torch.randn(rows, backbone.hidden_size, generator=generator) for rows in (SHORT, workload.text_length)
        )
        model.put(str(number), MergedPrompt(prompt, table), served)
    return model
