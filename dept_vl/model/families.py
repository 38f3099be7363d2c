"""How the three families of language models are asked for a target's logits, for a state, and for an answer.

Each is given what its encoder or input module made of prompt and text, and which positions are real.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from dept_vl.model.prompted_text import CausalInput
from dept_vl.types import Batch


class EncoderDecoder:
    """T5, BART and their like: the decoder attends to the encoder's states."""

    start = 1  # the decoder's start token

    def target_entropy(
        self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"], batch: Batch
    ) -> Float[Tensor, "B L"]:
        """The cross-entropy of each target token, the tokens before it given."""
        return _entropy(self.target_logits(model, states, mask, batch), batch)

    def target_logits(
        self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"], batch: Batch
    ) -> Float[Tensor, "B L vocabulary"]:
        """The logits of each target token, the tokens before it given."""
        logits: Tensor = self._decode(model, states, mask, shift_right(batch.target_ids, _start_id(model))).logits
        return logits

    def first_logits(
        self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B vocabulary"]:
        """The logits at the decoder's start token."""
        logits: Tensor = self._decode(model, states, mask, self._start(model, states)).logits
        return logits[:, 0]

    def first_state(
        self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B width"]:
        """The decoder's last state at its start token."""
        output = self._decode(model, states, mask, self._start(model, states), output_hidden_states=True)
        state: Tensor = output.decoder_hidden_states[-1]
        return state[:, 0]

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
        """The library's greedy or beam search."""
        ids: Tensor = cast(Any, model).generate(
            # A new object for each call: the library expands it in place for beams.
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask.long(),
            max_new_tokens=max_length,
            num_beams=num_beams,
            do_sample=False,
            prefix_allowed_tokens_fn=allowed,
        )
        return ids[:, 1:]

    def _decode(self, model: Any, states: Tensor, mask: Tensor, ids: Tensor, **options: bool) -> Any:  # noqa: ANN401
        return model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask.long(),
            decoder_input_ids=ids,
            use_cache=False,
            **options,
        )

    def _start(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        return torch.full((len(states), 1), _start_id(model), device=states.device)


class DecoderOnly:
    """GPT-2, Llama, Qwen and their like: the answer follows the text, and its tokens get the offsets of their places.

    Args:
        text: what made the ``states``, here embeddings of [padding | prompt | text].
        task: whose prompt it uses.
    """

    start = 0

    def __init__(self, text: CausalInput, *, task: str) -> None:
        self._text = text
        self._task = task

    def target_entropy(
        self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"], batch: Batch
    ) -> Float[Tensor, "B L"]:
        """The cross-entropy of each target token, the tokens before it given."""
        return _entropy(self.target_logits(model, states, mask, batch), batch)

    def target_logits(
        self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"], batch: Batch
    ) -> Float[Tensor, "B L vocabulary"]:
        """The logits of each target token, the tokens before it given."""
        before = batch.text_mask.sum(dim=1, keepdim=True)
        target = self._text.embed_tokens(batch.target_ids, batch.target_mask, task=self._task, before=before)
        whole, real = torch.cat([states, target], dim=1), torch.cat([mask, batch.target_mask], dim=1)
        logits: Tensor = self._run(model, whole, real, last=target.shape[1] + 1).logits
        return logits[:, -target.shape[1] - 1 : -1]

    def first_logits(
        self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B vocabulary"]:
        """The logits after the text."""
        logits: Tensor = self._run(model, states, mask, last=1).logits
        return logits[:, -1]

    def first_state(
        self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B width"]:
        """The last state of the text's last token."""
        state: Tensor = self._run(model, states, mask, last=1, output_hidden_states=True).hidden_states[-1]
        return state[:, -1]

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
        """The library's greedy or beam search, with its cache."""
        with self._text.while_generating(model, self._task):
            ids: Tensor = cast(Any, model).generate(
                inputs_embeds=states,
                attention_mask=mask.long(),
                max_new_tokens=max_length,
                num_beams=num_beams,
                do_sample=False,
                prefix_allowed_tokens_fn=allowed,
            )
        return ids

    def _run(self, model: Any, embedded: Tensor, mask: Tensor, *, last: int, **options: bool) -> Any:  # noqa: ANN401
        """The model's output with the logits of the ``last`` positions at least."""
        accepted = inspect.signature(model.forward).parameters
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        more: dict[str, Any] = {"position_ids": positions} if "position_ids" in accepted else {}
        # Logits of every position of every text would be the largest tensor of the step.
        more |= {"logits_to_keep": last} if "logits_to_keep" in accepted else {}
        return model(inputs_embeds=embedded, attention_mask=mask.long(), use_cache=False, **more, **options)


class EncoderOnly:
    """BERT, RoBERTa and their like, which have no decoder: only their states can be read.

    Args:
        prompt_length: positions before the text.
    """

    start = 0

    def __init__(self, *, prompt_length: int) -> None:
        self._prompt_length = prompt_length

    def first_state(
        self, model: PreTrainedModel, states: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"]
    ) -> Float[Tensor, "B width"]:
        """The last state of the text's first token ([CLS], <s>)."""
        return states[:, self._prompt_length]


Family = EncoderDecoder | DecoderOnly  # those that generate


def shift_right(ids: Int64[Tensor, "B L"], start_id: int) -> Int64[Tensor, "B L"]:
    """What the decoder reads to predict these ids: the start token, and all but the last of them."""
    return torch.cat([ids.new_full((len(ids), 1), start_id), ids[:, :-1]], dim=1)


def _entropy(logits: Float[Tensor, "B L vocabulary"], batch: Batch) -> Float[Tensor, "B L"]:
    return functional.cross_entropy(logits.float().transpose(1, 2), batch.target_ids, reduction="none")


def _start_id(model: PreTrainedModel) -> int:
    return cast(int, model.config.decoder_start_token_id)
