"""VL-T5 on the library's T5: a loss and generated answers from a batch."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.types import Batch


class StepOutput(NamedTuple):
    """What one training step needs to know."""

    loss: Float[Tensor, ""]
    target_tokens: Int64[Tensor, ""]  # not padding


class VLT5(nn.Module):
    """A T5 whose encoder also sees a prompt and visual tokens; the decoder is the library's."""

    def __init__(self, *, t5: T5ForConditionalGeneration, encoder: MultimodalEncoder) -> None:
        super().__init__()
        self.t5 = t5
        self.encoder = encoder

    def forward(self, batch: Batch) -> StepOutput:
        """The loss; under this name so that wrappers which average gradients over processes see the call."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> StepOutput:
        """Cross-entropy per target token, mean over an example's tokens, times its weight, mean over the batch.

        This is VL-T5's VQA loss; with all weights 1 it is the plain mean over examples.
        """
        states, mask = self.encoder(batch)
        start = batch.target_ids.new_full((len(batch.target_ids), 1), self.t5.config.decoder_start_token_id)
        logits = self.t5(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            decoder_input_ids=torch.cat([start, batch.target_ids[:, :-1]], dim=1),
            use_cache=False,
        ).logits
        by_token = functional.cross_entropy(logits.float().transpose(1, 2), batch.target_ids, reduction="none")
        tokens = batch.target_mask.sum(dim=1)
        by_example = (by_token * batch.target_mask).sum(dim=1) / tokens.clamp(min=1)
        return StepOutput(loss=(by_example * batch.target_weights).mean(), target_tokens=tokens.sum())

    @torch.no_grad()
    def generate(self, batch: Batch, *, max_length: int, num_beams: int = 1) -> Int64[Tensor, "B L"]:
        """Token ids of the most likely answers, by greedy or beam search over one run of the encoder.

        Args:
            max_length: most new tokens, end token included.
        """
        states, mask = self.encoder(batch)
        ids: Tensor = cast(Any, self.t5).generate(
            # A new object for each call: the library expands it in place for beams.
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            max_new_tokens=max_length,
            num_beams=num_beams,
            do_sample=False,
        )
        return ids[:, 1:]  # without the start token
