"""What others do in our place: PEFT's prompt tuning, and the arithmetic of the official DePT code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from dept_vl.bench.shapes import BUDGET_LENGTH, Workload
from dept_vl.bench.timing import Step
from dept_vl.types import Batch

LEARNING_RATE, CLIP_NORM = 1e-3, 1.0


class OfficialDept(nn.Module):
    """The released DePT code's way (Shi & Lipani 2024), around an eager T5.

    All s rows of A·B are repeated for each example and added to all s embeddings, padding or not: texts must be padded
    to exactly s. With a prompt of l vectors there are no A and B: prompt tuning. Visual tokens, which
    that code does not have, come last.
    """

    def __init__(self, t5: T5ForConditionalGeneration, workload: Workload, *, prompt_length: int) -> None:
        super().__init__()
        self.t5 = t5
        width, device = t5.config.d_model, t5.device
        rank = (BUDGET_LENGTH - prompt_length) * width // (workload.text_length + width)
        rank = min(rank, workload.text_length, width)  # more rows or columns than A·B has would change nothing
        self.prompt = nn.Parameter(torch.randn(prompt_length, width, device=device))
        self.a = nn.Parameter(torch.rand(workload.text_length, rank, device=device))
        self.b = nn.Parameter(torch.zeros(rank, width, device=device))
        self.visual = nn.Linear(workload.feature_width, width, device=device) if workload.visual_tokens else None

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[prompt | text | visual tokens] in the backbone's type, and which positions are real."""
        size = len(batch.text_ids)
        text: Tensor = self.t5.shared(batch.text_ids)
        if self.a.numel():
            text = text + (self.a @ self.b).unsqueeze(0).repeat(size, 1, 1)
        prompt = self.prompt.unsqueeze(0).repeat(size, 1, 1)
        parts, masks = [prompt, text], [batch.text_mask.new_ones(prompt.shape[:2]), batch.text_mask]
        if self.visual is not None:
            parts.append(self.visual(batch.visual_tokens).flatten(1, 2))
            masks.append(batch.visual_mask.flatten(1))
        dtype = self.t5.shared.weight.dtype
        return torch.cat([part.to(dtype) for part in parts], dim=1), torch.cat(masks, dim=1).long()

    def forward(self, batch: Batch) -> Tensor:
        """The loss."""
        embedded, mask = self.embed(batch)
        output: Any = self.t5(inputs_embeds=embedded, attention_mask=mask, labels=batch.target_ids, use_cache=False)
        loss: Tensor = output.loss
        return loss

    @torch.no_grad()
    def generate(self, batch: Batch, *, tokens: int) -> Tensor:
        """Greedy decoding of exactly so many tokens."""
        embedded, mask = self.embed(batch)
        states = self.t5.encoder(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        return generate(self.t5, tokens=tokens, encoder_outputs=BaseModelOutput(states), attention_mask=mask)


def peft_prompt_tuning(t5: T5ForConditionalGeneration, *, prompt_length: int) -> nn.Module:
    """PEFT's prompt tuning, with one prompt before the encoder's text as in the paper."""
    from peft import PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model

    config = PromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        num_virtual_tokens=prompt_length,
        prompt_tuning_init=PromptTuningInit.RANDOM,
        num_transformer_submodules=1,  # by default the prompt has twice the rows
    )
    tuned: nn.Module = get_peft_model(t5, config)
    return tuned


def peft_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of PEFT's model."""
    output = model(input_ids=batch.text_ids, attention_mask=batch.text_mask.long(), labels=batch.target_ids)
    loss: Tensor = output.loss
    return loss


def generate(model: Any, *, tokens: int, **inputs: Any) -> Tensor:  # noqa: ANN401 - a T5, or PEFT's model around one
    """Greedy decoding by the library of exactly so many tokens: it may not end before."""
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "num_beams": 1}
    ids: Tensor = model.generate(**inputs, **options)
    return ids


def plain_step(model: nn.Module, loss: Any, batches: Sequence[Batch], *, bf16: bool) -> Step:  # noqa: ANN401
    """A training step as most write it: loss, backward, clip, fused AdamW; autocast for what stays in fp32."""
    model.train()
    parameters = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)
    device = parameters[0].device
    here = [batch.to(device) for batch in batches]

    def step(number: int) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            value: Tensor = loss(here[number % len(here)])
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return value.detach()

    return step
