"""VL-T5 on the library's T5: a loss and answers from a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn
from transformers import T5ForConditionalGeneration

from dept_vl.model.heads import Head, StepOutput
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.types import Batch


class VLT5(nn.Module):
    """A T5 whose encoder also sees a prompt and visual tokens; the decoder is the library's. Each task has a head."""

    def __init__(
        self, *, t5: T5ForConditionalGeneration, encoder: MultimodalEncoder, heads: Mapping[str, Head]
    ) -> None:
        super().__init__()
        self.t5 = t5
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)

    def forward(self, batch: Batch) -> StepOutput:
        """The loss; under this name so that wrappers which average gradients over processes see the call."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> StepOutput:
        """The loss of a batch, as the head of its task defines it."""
        states, mask = self.encoder(batch)
        return self._head(batch).loss(self.t5, states, mask, batch)

    @torch.no_grad()
    def answer(self, batch: Batch) -> list[str]:
        """The answer to each example, over one run of the encoder."""
        states, mask = self.encoder(batch)
        return self._head(batch).answers(self.t5, states, mask)

    def _head(self, batch: Batch) -> Head:
        return cast(Head, self.heads[batch.task])
