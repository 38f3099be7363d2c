"""ADePT: an offset of each frozen token embedding that depends on the token (Tang et al., ICLR 2025)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class TokenOffset(nn.Module):
    """A small network on the embedding e, the same for every token: ``W2 · relu(W1 · e + b1) + b2``.

    W1 is [H R] and starts uniform within 1/sqrt(H), everything else at zero, so training starts at the frozen model.
    As the offset depends on the token alone, it can be folded into a table of embeddings after training.

    Args:
        dropout: on ``W1 · e + b1`` during training, as in the authors' code.
    """

    def __init__(self, *, w1: Float[Tensor, "H R"], dropout: float) -> None:
        super().__init__()
        hidden_size, rank = w1.shape
        self.w1 = nn.Parameter(w1)
        self.b1 = nn.Parameter(torch.zeros(rank))
        self.w2 = nn.Parameter(torch.zeros(rank, hidden_size))
        self.b2 = nn.Parameter(torch.zeros(hidden_size))
        self.dropout = dropout

    def forward(self, embedded: Float[Tensor, "*rows H"]) -> Float[Tensor, "*rows H"]:
        """The offset of each embedding."""
        # In the network's own precision: a quantised or bf16 backbone embeds in less.
        inner: Tensor = embedded.to(self.w1.dtype) @ self.w1 + self.b1
        hidden = functional.dropout(inner, self.dropout, self.training).relu()
        offset: Tensor = hidden @ self.w2 + self.b2
        return offset

    @torch.no_grad()
    def fold(self, table: Float[Tensor, "vocabulary H"]) -> Float[Tensor, "vocabulary H"]:
        """A table of embeddings with the offsets in it, for input only: head and decoder keep the original."""
        folded: Tensor = table + self(table)
        return folded


def initial_w1(hidden_size: int, rank: int, *, generator: torch.Generator) -> Float[Tensor, "H R"]:
    """W1 as the authors' code starts it: Kaiming uniform with a = sqrt(5) and fan-in H, within 1/sqrt(H)."""
    return (torch.rand(hidden_size, rank, generator=generator) * 2 - 1) / math.sqrt(hidden_size)
