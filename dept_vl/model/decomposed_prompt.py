"""DePT: a short soft prompt, and a low-rank update of the frozen token embeddings (Shi & Lipani, ICLR 2024)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from dept_vl.model.soft_prompt import SoftPrompt


class DecomposedPrompt(SoftPrompt):
    """Prompt P [P H] and update A·B, where A [s R] has a row for each text position and B is [R H].

    The token at position t is embedded as ``E[x_t] + scale * (A @ B)[t]`` (section 2.2 of the paper; scale 1 there,
    8 / sqrt(R) in the official code). B starts at zero, so training starts at the frozen model.

    Positions count real tokens, so padding on either side changes nothing. Rows that no training text was long enough
    to reach are still what the initialiser drew: at inference they add nothing.
    """

    trained_length: Int64[Tensor, ""]  # tokens of the longest text seen in training

    def __init__(
        self, *, prompt: Float[Tensor, "P H"], a: Float[Tensor, "s R"], b: Float[Tensor, "R H"], scale: float
    ) -> None:
        super().__init__(prompt)
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(b)
        self.scale = scale
        self.register_buffer("trained_length", torch.tensor(0))

    def embed_text(self, embedded: Float[Tensor, "B T H"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T H"]:
        """Add to each real token the row of the update that belongs to its position."""
        positions = mask.cumsum(dim=1) - 1
        if self.training:
            longest = mask.sum(dim=1).max().clamp(max=len(self.a))
            self.trained_length.copy_(torch.maximum(self.trained_length, longest))
        update: Tensor = self.scale * (self.a[: mask.shape[1]] @ self.b)
        applies = mask & (positions < self.trained_length)
        # Not update[positions]: its gradient is added up in whatever order the CPU's threads come.
        by_token = functional.embedding(positions.clamp(0, len(update) - 1), update)
        return embedded + by_token * applies.unsqueeze(-1)


def official_a(length: int, rank: int, *, generator: torch.Generator) -> Float[Tensor, "s R"]:
    """A as the official code starts it: uniform within 1/sqrt(R) (Kaiming with a = sqrt(5), fan-in R)."""
    return (torch.rand(length, rank, generator=generator) * 2 - 1) / math.sqrt(max(rank, 1))


def paper_a(length: int, rank: int, *, generator: torch.Generator) -> Float[Tensor, "s R"]:
    """A as the paper describes it: standard normal."""
    return torch.randn(length, rank, generator=generator)
