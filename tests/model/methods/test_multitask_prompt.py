"""Multitask prompts: what tasks share and what each has of its own, at which rate, and how long they may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from dept_vl.model.adapter import restore_tensors, trained_tensors
from dept_vl.model.backbone import Backbone
from dept_vl.model.methods.multitask_prompt import MultitaskPrompt, make_multitask_prompt
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.model.soft_prompt import SoftPrompt
from dept_vl.model.trainable import ParameterGroup, select_trainable
from dept_vl.settings import OptimizerSettings
from dept_vl.types import Batch
from feature_extraction.errors import UsageError


def multitask(*tasks: str, seed: int = 0) -> MultitaskPrompt:
    generator = torch.Generator().manual_seed(seed)
    prompt = MultitaskPrompt(torch.randn(3, 16, generator=generator), tasks=tasks or ("vqa", "caption"))
    for parameters in prompt.groups().values():
        for value in parameters.values():
            value.data.copy_(torch.randn(value.shape, generator=generator))
    return prompt


def assemble(backbone: Backbone, prompt: SoftPrompt) -> tuple[PromptedModel, list[ParameterGroup]]:
    t5: Any = backbone.model
    encoder = MultimodalEncoder(t5_encoder=t5.encoder, prompt=prompt, visual_embedding=None)
    model = PromptedModel(backbone=t5, encoder=encoder, heads={}).eval()
    return model, select_trainable(model, [], OptimizerSettings())


def test_it_starts_at_the_shared_prompt() -> None:
    initial = torch.randn(3, 16)
    prompt = MultitaskPrompt(initial.clone(), tasks=["vqa", "caption"])
    for task in ("vqa", "caption"):
        assert torch.equal(prompt.for_task(task).prompt, initial)
    assert torch.equal(prompt.prompt, initial)


def test_a_tasks_prompt_is_the_shared_one_times_its_rank_one_matrix() -> None:
    prompt = multitask()
    shared, own = prompt.groups()["prompt"]["prompt"], prompt.groups()["low_rank"]
    for task in ("vqa", "caption"):
        expected = shared * torch.outer(own[f"u_{task}"], own[f"v_{task}"])
        torch.testing.assert_close(prompt.for_task(task).prompt, expected)
    assert not torch.equal(prompt.for_task("vqa").prompt, prompt.for_task("caption").prompt)


def test_it_stands_before_the_text_as_a_plain_prompt_would(
    backbone: Backbone, make_batch: Callable[..., Batch]
) -> None:
    prompt = multitask()
    for task in ("vqa", "caption"):
        plain, batch = SoftPrompt(prompt.for_task(task).prompt.detach()), make_batch(images=0, task=task)
        got, expected = (assemble(backbone, one)[0].encoder(batch) for one in (prompt, plain))
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


def test_the_shared_prompt_has_the_prompts_rate_and_what_tasks_own_the_small_one(backbone: Backbone) -> None:
    prompt = multitask()
    model, groups = assemble(backbone, prompt)
    own = {f"prompt.{name}_{task}" for name in "uv" for task in ("vqa", "caption")}
    assert {group.name: set(group.parameters) for group in groups} == {"prompt": {"prompt.prompt"}, "low_rank": own}
    assert {group.name: group.learning_rate for group in groups} == {"prompt": 0.3, "low_rank": 1e-3}
    trained = {id(value) for group in groups for value in group.parameters.values()}
    assert {id(value) for value in model.parameters() if value.requires_grad} == trained
    assert len(trained) == len(list(prompt.parameters()))  # the shared prompt counts once


def test_a_batch_moves_the_shared_prompt_and_its_own_task(backbone: Backbone, make_batch: Callable[..., Batch]) -> None:
    model, groups = assemble(backbone, multitask())
    cast(Any, model.encoder(make_batch(images=0, task="caption"))[0].pow(3).sum()).backward()
    moving = {name for group in groups for name, value in group.parameters.items() if value.grad is not None}
    assert moving == {"prompt.prompt", "prompt.u_caption", "prompt.v_caption"}


def test_it_comes_back_from_its_tensors(backbone: Backbone, make_batch: Callable[..., Batch]) -> None:
    (model, groups), (other, other_groups) = (assemble(backbone, multitask(seed=seed)) for seed in (0, 1))
    restore_tensors(other, other_groups, trained_tensors(model, groups), Path("adapter"))
    for task in ("vqa", "caption"):
        batch = make_batch(images=0, task=task)
        assert torch.equal(other.encoder(batch)[0], model.encoder(batch)[0])


def test_one_module_moved_to_another_type_stays_shared() -> None:
    prompt = multitask().double()
    prompt.prompt.data.fill_(2)
    assert prompt.for_task("vqa").prompt.dtype == torch.float64
    own = prompt.groups()["low_rank"]
    torch.testing.assert_close(prompt.for_task("vqa").prompt, 2 * torch.outer(own["u_vqa"], own["v_vqa"]))


@pytest.mark.parametrize(
    ("tasks", "allowed", "length", "note"),
    [
        (["vqa"], 76_800, 98, "prompt length 98 in a prompt for vqa: 76,130 of 76,800 parameters"),
        (["vqa"], 77_668, 100, "prompt length 100 in a prompt for vqa: 77,668 of 77,668 parameters"),
        (["vqa", "gqa"], 76_800, 97, "prompt length 97 in a prompt for vqa, gqa: 76,226 of 76,800 parameters"),
    ],
)
def test_the_longest_prompt_of_t5_base_within_a_budget(tasks: list[str], allowed: int, length: int, note: str) -> None:
    prompt, told = make_multitask_prompt(
        lambda size: torch.zeros(size, 768), hidden_size=768, tasks=tasks, allowed=allowed
    )
    size = sum(value.numel() for value in prompt.parameters())
    assert prompt.prompt.shape == (length, 768)
    assert told == f"Multitask prompt tuning: {note}"
    assert f": {size:,} " in told


def test_a_budget_without_room_for_one_vector_is_refused() -> None:
    with pytest.raises(UsageError) as raised:
        make_multitask_prompt(lambda size: torch.zeros(size, 768), hidden_size=768, tasks=["vqa"], allowed=1536)
    assert str(raised.value) == (
        "Multitask prompt tuning cannot meet the budget of 1,536 parameters: the nearest setting, prompt length 1 in "
        "a prompt for vqa, costs 1,537. Raise method.budget to that or choose another method"
    )
