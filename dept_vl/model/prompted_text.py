"""Prompt and text as embeddings of a language model, wherever the padding stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from dept_vl.model.soft_prompt import SoftPrompt, TaskPrompts
from dept_vl.model.visual_embedding import VisualEmbedding
from dept_vl.types import Batch


class PromptedText(nn.Module):
    """The embeddings of [prompt | text], P + T positions.

    Args:
        embeddings: the frozen model's own, from token ids to [B T H].
        prompt: put before the text; None for none.
        dtype: of what is given to the model; None for that of prompt and table together (fp32 where the table is bf16).
    """

    def __init__(
        self,
        *,
        embeddings: nn.Module,
        prompt: SoftPrompt | TaskPrompts | None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.prompt = prompt
        self.dtype = dtype
        self.visual_embedding: VisualEmbedding | None = None

    def prompts(self) -> dict[str, SoftPrompt]:
        """The prompts by the names that their tensors begin with in an adapter; none where there is no prompt."""
        return {} if self.prompt is None else self.prompt.by_name()

    def embed(self, batch: Batch) -> tuple[Float[Tensor, "B S H"], Bool[Tensor, "B S"]]:
        """The embeddings of prompt and text, and which positions are real."""
        text = self.embed_tokens(batch.text_ids, batch.text_mask, task=batch.task)
        if self.prompt is None:
            return text, batch.text_mask
        prompt = self.prompt.for_task(batch.task).prompt.to(dtype=self.dtype).expand(len(text), -1, -1)
        mask = torch.cat([batch.text_mask.new_ones(prompt.shape[:2]), batch.text_mask], dim=1)
        return torch.cat([prompt, text], dim=1), mask

    def embed_tokens(
        self,
        ids: Int64[Tensor, "B T"],
        mask: Bool[Tensor, "B T"],
        *,
        task: str,
        before: Int64[Tensor, "B 1"] | None = None,
    ) -> Float[Tensor, "B T H"]:
        """Token embeddings with the task's offsets; ``before`` as in ``SoftPrompt.embed_text``."""
        embedded: Tensor = self.embeddings(ids)
        if self.prompt is not None:
            embedded = self.prompt.for_task(task).embed_text(embedded, mask, before=before)
        return embedded.to(dtype=self.dtype)

    @torch.no_grad()
    def fold(self) -> None:
        """Put ADePT's offsets into an embedding table of their own, after which they cost nothing.

        The model's table, which its head and decoder share, stays as it is. Prompts of several tasks have several
        offsets and are left alone.
        """
        if isinstance(self.prompt, SoftPrompt) and self.prompt.token_offset is not None:
            rows: Any = self.embeddings.num_embeddings
            device = next(self.embeddings.parameters()).device
            table = self.prompt.token_offset.fold(self.embeddings(torch.arange(rows, device=device)))
            self.embeddings = nn.Embedding(rows, table.shape[1], _weight=table, _freeze=True)
            self.prompt.token_offset = None


class PromptedEncoder(PromptedText):
    """The library's own encoder over [prompt | text]: of BART, BERT, RoBERTa and their like."""

    def __init__(
        self,
        *,
        encoder: nn.Module,
        embeddings: nn.Module,
        prompt: SoftPrompt | TaskPrompts | None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embeddings=embeddings, prompt=prompt, dtype=dtype)
        self.encoder = encoder

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "B S H"], Bool[Tensor, "B S"]]:
        """The encoder's last states, and which positions are real; padding comes last."""
        embedded, mask = pack(*self.embed(batch), last=False)
        return self.encoder(inputs_embeds=embedded, attention_mask=mask.long()).last_hidden_state, mask


class CausalInput(PromptedText):
    """What a decoder-only model reads before it answers: [padding | prompt | text], so that the answer follows."""

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "B S H"], Bool[Tensor, "B S"]]:
        """The embeddings, and which positions are real; padding comes first."""
        return pack(*self.embed(batch), last=True)

    @contextmanager
    def while_generating(self, model: nn.Module, task: str) -> Iterator[None]:
        """Give each generated token, which is read next, the offset that it has at its position in training."""
        prompt = None if self.prompt is None else self.prompt.for_task(task)
        length = 0 if prompt is None else prompt.prompt.shape[0]

        def embed_new(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            ids = kwargs.get("input_ids")
            if prompt is None or ids is None or not ids.numel():
                return None
            mask = kwargs.get("attention_mask")  # of prompt, text and answer so far; none where there is no padding
            if mask is None:
                mask = ids.new_ones(len(ids), kwargs["past_key_values"].get_seq_length() + ids.shape[1])
            before = mask.sum(dim=1, keepdim=True) - length - ids.shape[1]
            embedded = self.embed_tokens(ids, torch.ones_like(ids, dtype=torch.bool), task=task, before=before)
            return args, {**kwargs, "input_ids": None, "inputs_embeds": embedded}

        handle = model.register_forward_pre_hook(embed_new, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def pack(
    values: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"], *, last: bool
) -> tuple[Float[Tensor, "B S H"], Bool[Tensor, "B S"]]:
    """The same rows with real positions together, in their order: first, with the padding last, or last."""
    order = (mask if last else ~mask).long().argsort(dim=1, stable=True)
    return values.gather(1, order.unsqueeze(-1).expand_as(values)), mask.gather(1, order)
