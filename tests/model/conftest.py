from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import nn
from transformers import T5ForConditionalGeneration

from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.model.heads import Head
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.model.visual_embedding import VisualEmbedding


@pytest.fixture
def plain() -> Callable[..., PromptedModel]:
    """Models without prompt and images."""

    def make(t5: T5ForConditionalGeneration, head: Head) -> PromptedModel:
        encoder = MultimodalEncoder(t5_encoder=t5.encoder, prompt=None, visual_embedding=None)
        return PromptedModel(backbone=t5, encoder=encoder, heads={"vqa": head}).eval()

    return make


@pytest.fixture
def whole() -> Callable[..., PromptedModel]:
    """Models with a decomposed prompt and images; one head for the task vqa, or one for each task."""

    def make(t5: T5ForConditionalGeneration, heads: Head | Mapping[str, Head]) -> PromptedModel:
        generator = torch.Generator().manual_seed(2)
        torch.manual_seed(1)
        prompt = DecomposedPrompt(
            prompt=torch.randn(3, 16, generator=generator),
            a=torch.randn(8, 2, generator=generator),
            b=torch.randn(2, 16, generator=generator),
            scale=1.0,
        )
        prompt.trained_length.fill_(8)
        visual = VisualEmbedding(feature_width=6, hidden_size=16, images=1, tokens_per_image=4, epsilon=1e-6)
        encoder = MultimodalEncoder(t5_encoder=t5.encoder, prompt=prompt, visual_embedding=visual)
        by_task = {"vqa": heads} if isinstance(heads, nn.Module) else heads
        return PromptedModel(backbone=t5, encoder=encoder, heads=by_task).eval()

    return make
