"""Visual tokens and their boxes as encoder inputs (VL-T5, Cho et al. 2021, section 3.1)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class VisualEmbedding(nn.Module):
    """``norm(W f) + norm(U box) + image order + object order`` for each visual token.

    A box is five numbers: x0, y0, x1, y1 and the area. The norms are T5's (root mean square, scale only). With
    ``vl_t5_area`` it is (y0 - x0) * (y1 - x1), as the published VL-T5 models compute it by taking the numbers for
    x0, x1, y0, y1; that serves to load those models.
    """

    def __init__(
        self,
        *,
        feature_width: int,
        hidden_size: int,
        images: int,
        tokens_per_image: int,
        epsilon: float,
        vl_t5_area: bool = False,
    ) -> None:
        super().__init__()
        self.feature_projection = nn.Linear(feature_width, hidden_size)
        self.feature_norm = nn.RMSNorm(hidden_size, eps=epsilon)
        self.box_projection = nn.Linear(5, hidden_size)
        self.box_norm = nn.RMSNorm(hidden_size, eps=epsilon)
        self.image_order = nn.Embedding(images, hidden_size)
        self.object_order = nn.Embedding(tokens_per_image, hidden_size)
        self.vl_t5_area = vl_t5_area

    def forward(
        self, visual_tokens: Float[Tensor, "B I V D"], boxes: Float[Tensor, "B I V 4"]
    ) -> Float[Tensor, "B N H"]:
        """Embed all tokens of all images, image after image (N = I * V)."""
        features = self.feature_projection(visual_tokens)
        places = self.box_projection(torch.cat([boxes, self._area(boxes)], dim=-1))
        # Under bf16 autocast the projections are bf16; norms stay in their own precision, as T5's do.
        features = self.feature_norm(features.type_as(self.feature_norm.weight))
        places = self.box_norm(places.type_as(self.box_norm.weight))
        _, images, tokens, _ = visual_tokens.shape
        orders = self.image_order.weight[:images, None] + self.object_order.weight[:tokens]
        embedded: Tensor = features + places + orders
        return embedded.flatten(1, 2)

    def _area(self, boxes: Float[Tensor, "B I V 4"]) -> Float[Tensor, "B I V 1"]:
        x0, y0, x1, y1 = boxes.unbind(dim=-1)
        if self.vl_t5_area:
            x0, x1, y0, y1 = x0, y0, x1, y1
        return ((x1 - x0) * (y1 - y0)).unsqueeze(-1)
