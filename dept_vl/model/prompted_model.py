"""A language model with a prompt before its text, and perhaps visual tokens behind: a loss and answers from a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from dept_vl.model.heads import Head, StepOutput
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.model.prompted_text import CausalInput, PromptedEncoder
from dept_vl.types import Batch

Encoder = MultimodalEncoder | PromptedEncoder | CausalInput


class PromptedModel(nn.Module):
    """A frozen language model whose ``encoder`` makes states of prompt, text and visual tokens. Each task has a head.

    With a T5 this is VL-T5 (Cho et al. 2021), the decoder being the library's.
    """

    def __init__(
        self,
        *,
        backbone: PreTrainedModel,
        encoder: Encoder,
        heads: Mapping[str, Head],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)

    def forward(self, batch: Batch) -> StepOutput:
        """The loss, as ``loss`` gives it."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> StepOutput:
        """The loss of a batch, as the head of its task defines it."""
        states, mask = self.encoder(batch)
        return self._head(batch).loss(self.backbone, states, mask, batch)

    @torch.no_grad()
    def answer(self, batch: Batch) -> list[str]:
        """The answer to each example, over one run of the encoder."""
        states, mask = self.encoder(batch)
        return self._head(batch).answers(self.backbone, states, mask)

    def _head(self, batch: Batch) -> Head:
        return cast(Head, self.heads[batch.task])
