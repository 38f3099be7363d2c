"""Settings → model: the only place that branches on the method and the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from dept_vl.model.backbone import Backbone
from dept_vl.model.budget import solve_budget
from dept_vl.model.decomposed_prompt import DecomposedPrompt, official_a, paper_a
from dept_vl.model.heads import ClassificationHead, FirstStepHead, GenerationHead, Head
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.model.soft_prompt import SoftPrompt, TaskPrompts, from_normal, from_text, from_vocabulary
from dept_vl.model.trainable import ParameterGroup, TrainableCount, count_trainable, select_trainable
from dept_vl.model.visual_embedding import VisualEmbedding
from dept_vl.model.vl_t5 import VLT5
from dept_vl.settings import MethodSettings, Settings, TaskSettings
from feature_extraction.errors import UsageError


class BuiltModel(NamedTuple):
    """A model, what trains in it, and what to tell the user about it."""

    model: VLT5
    groups: list[ParameterGroup]
    trainable: TrainableCount
    notes: list[str]


def build_model(
    settings: Settings,
    backbone: Backbone,
    *,
    visual_tokens: int,
    feature_width: int,
    seed: int,
    answers: Mapping[str, Sequence[str]] | None = None,
) -> BuiltModel:
    """Assemble the model of the settings around a loaded backbone, initialised from the seed.

    Args:
        visual_tokens: V of the feature store.
        feature_width: D of the feature store.
        answers: for each task that answers from a list, that list.

    Raises:
        UsageError: DePT's sizes overspend their budget, or a head does not suit its task's answers.
    """
    config, tasks = backbone.t5.config, settings.tasks
    prompt, notes = _build_prompts(settings, backbone, torch.Generator().manual_seed(seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        visual = None
        images = max(task.images_per_example for task in tasks.values())
        if images:
            visual = VisualEmbedding(
                feature_width=feature_width,
                hidden_size=config.d_model,
                images=images,
                tokens_per_image=visual_tokens,
                epsilon=config.layer_norm_epsilon,
                vl_t5_area=settings.visual.area == "vl_t5",
            )
        heads = {name: _build_head(task, backbone, (answers or {}).get(name)) for name, task in tasks.items()}
    encoder = MultimodalEncoder(
        t5_encoder=backbone.t5.encoder,
        prompt=prompt,
        visual_embedding=visual,
        vl_t5_positions=settings.visual.position_rule == "vl_t5",
    )
    model = VLT5(t5=backbone.t5, encoder=encoder, heads=heads)
    groups = select_trainable(model, train_backbone=settings.method.name == "full", optimizer=settings.optimizer)
    count = count_trainable(model, groups)
    return BuiltModel(model, groups, count, [*notes, count.describe(settings.method.name)])


def _build_prompts(
    settings: Settings, backbone: Backbone, generator: torch.Generator
) -> tuple[SoftPrompt | TaskPrompts | None, list[str]]:
    """The prompt that all tasks share, or one for each, and what to tell the user about it."""
    if settings.method.prompt_sharing == "shared":
        longest = max(task.max_text_length for task in settings.tasks.values())
        return _build_prompt(settings.method, backbone, longest, generator)
    built = {
        name: _build_prompt(settings.method, backbone, task.max_text_length, generator)
        for name, task in settings.tasks.items()
    }
    prompts = {name: prompt for name, (prompt, _) in built.items() if prompt is not None}
    return (
        TaskPrompts(prompts) if prompts else None,
        [f"{name}: {note}" for name, (_, notes) in built.items() for note in notes],
    )


def _build_prompt(
    method: MethodSettings, backbone: Backbone, max_text_length: int, generator: torch.Generator
) -> tuple[SoftPrompt | None, list[str]]:
    if method.name == "prompt":
        return SoftPrompt(_initial_prompt(method, backbone, method.budget_length, generator)), []
    if method.name != "dept":
        return None, []
    hidden_size = backbone.t5.config.d_model
    budget = solve_budget(
        budget_length=method.budget_length,
        prompt_length=method.prompt_length,
        max_text_length=max_text_length,
        hidden_size=hidden_size,
        rank=method.rank,
    )
    make_a = official_a if method.low_rank_init == "official" else paper_a
    prompt = DecomposedPrompt(
        prompt=_initial_prompt(method, backbone, budget.prompt_length, generator),
        a=make_a(budget.max_text_length, budget.rank, generator=generator),
        b=torch.zeros(budget.rank, hidden_size),
        scale=8 * max(budget.rank, 1) ** -0.5 if method.low_rank_scale == "official" else 1.0,
    )
    return prompt, [budget.describe()]


def _build_head(task: TaskSettings, backbone: Backbone, answers: Sequence[str] | None) -> Head:
    if (task.head == "classification" or task.constrained) and not answers:
        raise UsageError(
            f"Task {task.name} is to answer from a list (task.head={task.head}, task.constrained="
            f"{str(task.constrained).lower()}), but none is given. Training makes it from the training examples"
        )
    if task.head == "classification":
        return ClassificationHead(answers=answers or (), hidden_size=backbone.t5.config.d_model)
    if task.head == "first_step":
        return FirstStepHead(tokenizer=backbone.tokenizer, max_length=task.max_target_length, labels=answers or ())
    return GenerationHead(
        tokenizer=backbone.tokenizer,
        max_length=task.max_target_length,
        num_beams=task.num_beams,
        token_mean=task.loss == "token",
        answers=answers if task.constrained else None,
    )


def _initial_prompt(
    method: MethodSettings, backbone: Backbone, length: int, generator: torch.Generator
) -> torch.Tensor:
    embeddings = backbone.t5.shared.weight.detach().float().cpu()
    if method.prompt_init == "normal":
        return from_normal(length, embeddings.shape[1], generator=generator)
    if method.prompt_init == "text":
        return from_text(embeddings, length, token_ids=backbone.tokenizer(method.prompt_text)["input_ids"])
    special = [*backbone.tokenizer.all_special_ids]
    # Rows past the tokenizer's vocabulary only pad the table.
    return from_vocabulary(embeddings[: len(backbone.tokenizer)], length, special_ids=special, generator=generator)
