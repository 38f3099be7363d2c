"""The prompt of a new adapter, from a Hugging Face model's own embeddings."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedConfig

from dept_vl.integrations.dept_config import DeptConfig
from dept_vl.model.budget import Budget
from dept_vl.model.decomposed_prompt import DecomposedPrompt, make_prompt
from dept_vl.model.soft_prompt import COMMON_TOKENS, SoftPrompt, from_normal, from_text, from_vocabulary


def initial_prompt(config: DeptConfig, budget: Budget, embeddings: nn.Embedding, model: PreTrainedConfig) -> SoftPrompt:
    """The prompt and offsets that a configuration asks for, in fp32 on the CPU."""
    generator = torch.Generator().manual_seed(config.seed)
    start = _start(config, embeddings, model, generator)
    if config.offset == "none":
        return SoftPrompt(start)
    prompt = make_prompt(
        start,
        budget,
        official_scale=config.scale == "official",
        official_init=config.low_rank_init == "official",
        token_dropout=config.token_dropout,
        generator=generator,
    )
    if isinstance(prompt, DecomposedPrompt) and not isinstance(config.scale, str):
        prompt.scale = float(config.scale)
    return prompt


def _start(
    config: DeptConfig, embeddings: nn.Embedding, model: PreTrainedConfig, generator: torch.Generator
) -> Float[Tensor, "P H"]:
    length = config.prompt_length
    if config.prompt_init == "normal":
        return from_normal(length, embeddings.embedding_dim, generator=generator)
    if config.prompt_init == "text":
        ids = cast(list[int], config.prompt_ids)
        return from_text(_rows(embeddings, torch.tensor(ids)), length, token_ids=range(len(ids)))
    special = _special_ids(model)
    rows = _rows(embeddings, torch.arange(min(embeddings.num_embeddings, COMMON_TOKENS + len(special))))
    return from_vocabulary(rows, length, special_ids=[one for one in special if one < len(rows)], generator=generator)


@torch.no_grad()
def _rows(embeddings: nn.Embedding, ids: Int64[Tensor, " rows"]) -> Float[Tensor, "rows H"]:
    return cast(Tensor, embeddings(ids.to(embeddings.weight.device))).float().cpu()


def _special_ids(model: PreTrainedConfig) -> list[int]:
    """The special tokens that the model itself knows of."""
    found = [value for key, value in model.to_dict().items() if key.endswith("_token_id")]
    flat = [one for value in found for one in (value if isinstance(value, list) else [value])]
    return sorted({one for one in flat if isinstance(one, int) and one >= 0})
