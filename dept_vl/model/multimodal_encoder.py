"""T5's encoder over [prompt | text | visual tokens], with the library's blocks run unmodified.

What is ours is the order of the parts, the attention mask, and the relative position bias. Both are made once and
handed to every block as one additive tensor.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Attention, T5Stack

from dept_vl.model.soft_prompt import SoftPrompt, TaskPrompts
from dept_vl.model.visual_embedding import VisualEmbedding
from dept_vl.types import Batch


class MultimodalEncoder(nn.Module):
    """Encoder states of prompt, text and visual tokens, S = P + T + N positions.

    Args:
        prompt: put before the text; None for none.
        visual_embedding: makes visual tokens fit; None where examples have no images.
        vl_t5_positions: VL-T5's rule, where the bias is zero wherever a visual token takes part. Otherwise the joint
            rule: the bias of true positions, visual tokens following the example's last real text token.
    """

    def __init__(
        self,
        *,
        t5_encoder: T5Stack,
        prompt: SoftPrompt | TaskPrompts | None,
        visual_embedding: VisualEmbedding | None,
        vl_t5_positions: bool = False,
    ) -> None:
        super().__init__()
        self.t5_encoder = t5_encoder
        self.prompt = prompt
        self.visual_embedding = visual_embedding
        self.vl_t5_positions = vl_t5_positions

    def prompts(self) -> dict[str, SoftPrompt]:
        """The prompts by the names that their tensors begin with in an adapter; none where there is no prompt."""
        return {} if self.prompt is None else self.prompt.by_name()

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "B S H"], Bool[Tensor, "B S"]]:
        """The encoder's last states, and which positions are real."""
        text = self.t5_encoder.embed_tokens(batch.text_ids)
        parts, masks = [text], [batch.text_mask]
        if self.prompt is not None:
            chosen = self.prompt.for_task(batch.task)
            prompt = chosen.prompt.expand(len(text), -1, -1)
            parts = [prompt, chosen.embed_text(text, batch.text_mask)]
            masks = [masks[0].new_ones(prompt.shape[:2]), batch.text_mask]
        if self.visual_embedding is not None:
            parts.append(self.visual_embedding(batch.visual_tokens, batch.boxes))
            masks.append(batch.visual_mask.flatten(1))
        mask = torch.cat(masks, dim=1)
        visual_length = masks[-1].shape[1] if self.visual_embedding is not None else 0

        hidden = self.t5_encoder.dropout(torch.cat(parts, dim=1))
        bias = self._additive_bias(mask, visual_length).to(hidden.dtype)
        for block in self.t5_encoder.block:
            hidden = block(hidden, position_bias=bias)[0]
        return self.t5_encoder.dropout(self.t5_encoder.final_layer_norm(hidden)), mask

    def _additive_bias(self, mask: Bool[Tensor, "B S"], visual_length: int) -> Float[Tensor, "B heads S S"]:
        """T5's relative position bias, and minus infinity (the dtype's lowest) at keys that are padding."""
        # Real tokens are numbered 0, 1, ... over all parts, so that padding between text and images does not count.
        positions = mask.cumsum(dim=1) - 1
        relative = positions[:, None, :] - positions[:, :, None]
        bias: Tensor = self._attention.relative_attention_bias(self._bucket(relative)).permute(0, 3, 1, 2)
        if self.vl_t5_positions and visual_length:
            language = torch.arange(mask.shape[1], device=mask.device) < mask.shape[1] - visual_length
            bias = bias * (language[:, None] & language[None, :])
        return bias.masked_fill(~mask[:, None, None, :], torch.finfo(bias.dtype).min)

    @property
    def _attention(self) -> T5Attention:
        """The layer that holds the table of relative position biases, for all layers."""
        return cast(T5Attention, cast(Any, self.t5_encoder.block)[0].layer[0].SelfAttention)

    def _bucket(self, relative: Int64[Tensor, "B S S"]) -> Int64[Tensor, "B S S"]:
        attention: Any = self._attention
        buckets: Tensor = attention._relative_position_bucket(
            relative,
            bidirectional=True,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        return buckets
