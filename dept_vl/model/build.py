"""Settings → model: the only place that branches on the method."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dept_vl.config import MethodSettings, Settings
from dept_vl.model.backbone import Backbone
from dept_vl.model.budget import solve_budget
from dept_vl.model.decomposed_prompt import DecomposedPrompt, official_a, paper_a
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.model.soft_prompt import SoftPrompt, from_normal, from_text, from_vocabulary
from dept_vl.model.trainable import ParameterGroup, TrainableCount, count_trainable, select_trainable
from dept_vl.model.visual_embedding import VisualEmbedding
from dept_vl.model.vl_t5 import VLT5


class BuiltModel(NamedTuple):
    """A model, what trains in it, and what to tell the user about it."""

    model: VLT5
    groups: list[ParameterGroup]
    trainable: TrainableCount
    notes: list[str]


def build_model(
    settings: Settings, backbone: Backbone, *, visual_tokens: int, feature_width: int, seed: int
) -> BuiltModel:
    """Assemble the model of the settings around a loaded backbone, initialised from the seed.

    Args:
        visual_tokens: V of the feature store.
        feature_width: D of the feature store.

    Raises:
        UsageError: DePT's sizes overspend their budget.
    """
    method, config = settings.method, backbone.t5.config
    generator = torch.Generator().manual_seed(seed)
    prompt: SoftPrompt | None = None
    notes: list[str] = []
    if method.name == "prompt":
        prompt = SoftPrompt(_initial_prompt(method, backbone, method.budget_length, generator))
    elif method.name == "dept":
        budget = solve_budget(
            budget_length=method.budget_length,
            prompt_length=method.prompt_length,
            max_text_length=settings.task.max_text_length,
            hidden_size=config.d_model,
            rank=method.rank,
        )
        make_a = official_a if method.low_rank_init == "official" else paper_a
        prompt = DecomposedPrompt(
            prompt=_initial_prompt(method, backbone, budget.prompt_length, generator),
            a=make_a(budget.max_text_length, budget.rank, generator=generator),
            b=torch.zeros(budget.rank, config.d_model),
            scale=8 * max(budget.rank, 1) ** -0.5 if method.low_rank_scale == "official" else 1.0,
        )
        notes.append(budget.describe())

    visual = None
    if settings.task.images_per_example:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            visual = VisualEmbedding(
                feature_width=feature_width,
                hidden_size=config.d_model,
                images=settings.task.images_per_example,
                tokens_per_image=visual_tokens,
                epsilon=config.layer_norm_epsilon,
                vl_t5_area=settings.visual.area == "vl_t5",
            )
    encoder = MultimodalEncoder(
        t5_encoder=backbone.t5.encoder,
        prompt=prompt,
        visual_embedding=visual,
        vl_t5_positions=settings.visual.position_rule == "vl_t5",
    )
    model = VLT5(t5=backbone.t5, encoder=encoder)
    groups = select_trainable(model, train_backbone=method.name == "full", optimizer=settings.optimizer)
    count = count_trainable(model, groups)
    return BuiltModel(model, groups, count, [*notes, count.describe(method.name)])


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
