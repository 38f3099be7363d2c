"""The lean T5 behind the calls by which heads ask a language model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers import PreTrainedModel

from dept_vl.model.engine.decoding import beam_search, greedy
from dept_vl.model.engine.lean_t5 import LeanT5
from dept_vl.model.families import EncoderDecoder, shift_right
from dept_vl.types import Batch


class LeanEncoderDecoder(EncoderDecoder):
    """As ``EncoderDecoder``, with another decoder; the library's model that it is given is not asked."""

    def __init__(self, lean: LeanT5) -> None:
        self._lean = lean

    def target_entropy(
        self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"], batch: Batch
    ) -> Float[Tensor, "B L"]:
        """The cross-entropy of each target token, the tokens before it given."""
        return self._lean.entropy(self._target_states(states, mask, batch), batch.target_ids)

    def target_logits(
        self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"], batch: Batch
    ) -> Float[Tensor, "B L vocabulary"]:
        """The logits of each target token, the tokens before it given."""
        return self._lean.head(self._target_states(states, mask, batch))

    def first_logits(
        self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B vocabulary"]:
        """The logits at the decoder's start token."""
        return self._lean.head(self._first_states(states, mask))[:, 0]

    def first_state(
        self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B width"]:
        """The decoder's last state at its start token."""
        return self._first_states(states, mask)[:, 0]

    def generate(
        self,
        model: PreTrainedModel,
        states: Float[Tensor, "B S H"],
        mask: Bool[Tensor, "B S"],
        *,
        max_length: int,
        num_beams: int,
        allowed: Callable[[int, Tensor], list[int]] | None,
    ) -> Int64[Tensor, "B L"]:
        """Greedy or beam search; the same tokens as the library's."""
        if num_beams == 1:
            return greedy(self._lean, states, mask, max_length=max_length, allowed=allowed)
        return beam_search(self._lean, states, mask, max_length=max_length, num_beams=num_beams, allowed=allowed)

    def _target_states(self, states: Tensor, mask: Tensor, batch: Batch) -> Tensor:
        ids = shift_right(batch.target_ids, self._lean.start_id)
        return self._lean.decode(ids, self._lean.cross_keys_values(states), mask)

    def _first_states(self, states: Tensor, mask: Tensor) -> Tensor:
        ids = torch.full((len(states), 1), self._lean.start_id, device=states.device)
        return self._lean.decode(ids, self._lean.cross_keys_values(states), mask)
