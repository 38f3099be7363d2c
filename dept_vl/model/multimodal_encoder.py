"""T5's encoder over [prompt | text | visual tokens], with the library's blocks run unmodified, or our lean ones.

What is ours is the order of the parts, the attention mask, and the relative position bias. Both are made once and
handed to every block as one additive tensor.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention, T5Stack

from dept_vl.model.engine.lean_t5 import LeanT5
from dept_vl.model.prompted_text import PromptedText
from dept_vl.model.soft_prompt import SoftPrompt, TaskPrompts
from dept_vl.model.visual_embedding import VisualEmbedding
from dept_vl.types import Batch


class MultimodalEncoder(PromptedText):
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
        super().__init__(embeddings=t5_encoder.embed_tokens, prompt=prompt)
        self.t5_encoder = t5_encoder
        self.visual_embedding = visual_embedding
        self.vl_t5_positions = vl_t5_positions
        self.lean: LeanT5 | None = None  # once it has taken over the library's layers

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "B S H"], Bool[Tensor, "B S"]]:
        """The encoder's last states, and which positions are real."""
        return self.encode(*self.assemble(batch))

    def assemble(self, batch: Batch) -> tuple[Float[Tensor, "B S H"], Bool[Tensor, "B S"], int]:
        """The embeddings of all parts, which positions are real, and how many of the last are visual tokens."""
        embedded, mask = self.embed(batch)
        if self.visual_embedding is None:
            return embedded, mask, 0
        visual = self.visual_embedding(batch.visual_tokens, batch.boxes)
        mask = torch.cat([mask, batch.visual_mask.flatten(1)], dim=1)
        return torch.cat([embedded, visual], dim=1), mask, visual.shape[1]

    def encode(
        self, embedded: Float[Tensor, "B S H"], mask: Bool[Tensor, "B S"], visual_length: int
    ) -> tuple[Float[Tensor, "B S2 width"], Bool[Tensor, "B S2"]]:
        """The encoder's states of embeddings, and which are real; the lean engine may add positions of padding."""
        if self.lean is not None:
            return self.lean.encode(embedded, mask, visual_length=visual_length, vl_t5_positions=self.vl_t5_positions)
        hidden = self.t5_encoder.dropout(embedded)
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
