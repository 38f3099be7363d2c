"""DePT: a short soft prompt, and a low-rank update of the frozen token embeddings (Shi & Lipani, ICLR 2024)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from dept_vl.model.budget import Budget
from dept_vl.model.soft_prompt import SoftPrompt
from dept_vl.model.token_offset import TokenOffset, initial_w1


class DecomposedPrompt(SoftPrompt):
    """Prompt P [P H] and update A·B, where A [s R] has a row for each text position and B is [R H].

    The token at position t is embedded as ``E[x_t] + scale * (A @ B)[t]`` (section 2.2 of the paper; scale 1 there,
    8 / sqrt(R) in the official code). B starts at zero, so training starts at the frozen model.

    Positions count real tokens, so padding on either side changes nothing. Rows that no training text was long enough
    to reach are still what the initialiser drew: at inference they add nothing.
    """

    trained_length: Int64[Tensor, ""]  # tokens of the longest text seen in training

    def __init__(
        self,
        *,
        prompt: Float[Tensor, "P H"],
        a: Float[Tensor, "s R"],
        b: Float[Tensor, "R H"],
        scale: float,
        token_offset: TokenOffset | None = None,
    ) -> None:
        super().__init__(prompt, token_offset=token_offset)
        self.a = nn.Parameter(a)
        self.b = nn.Parameter(b)
        self.scale = scale
        self.register_buffer("trained_length", torch.tensor(0))

    def embed_text(
        self,
        embedded: Float[Tensor, "B T H"],
        mask: Bool[Tensor, "B T"],
        *,
        before: Int64[Tensor, "B 1"] | None = None,
    ) -> Float[Tensor, "B T H"]:
        """Add to each real token the update's row of its position, and ADePT's offset if there is one."""
        positions = mask.cumsum(dim=1) - 1
        positions = positions if before is None else positions + before
        if self.training:
            self.trained_length.copy_(self.trained_length.maximum(positions.max() + 1).clamp(max=len(self.a)))
        rows = self.a[: mask.shape[1]] if before is None else self.a
        update: Tensor = self.scale * (rows @ self.b)
        applies = mask & (positions < self.trained_length)
        # Not update[positions]: its gradient is added up in whatever order the CPU's threads come.
        by_token = functional.embedding(positions.clamp(0, len(update) - 1), update)
        return super().embed_text(embedded, mask) + by_token * applies.unsqueeze(-1)

    def groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """As of a soft prompt, with A and B."""
        found = super().groups()
        return {**found, "low_rank": {"a": self.a, "b": self.b, **found["low_rank"]}}


def official_a(length: int, rank: int, *, generator: torch.Generator) -> Float[Tensor, "s R"]:
    """A as the official code starts it: uniform within 1/sqrt(R) (Kaiming with a = sqrt(5), fan-in R)."""
    return (torch.rand(length, rank, generator=generator) * 2 - 1) / math.sqrt(max(rank, 1))


def paper_a(length: int, rank: int, *, generator: torch.Generator) -> Float[Tensor, "s R"]:
    """A as the paper describes it: standard normal."""
    return torch.randn(length, rank, generator=generator)


def make_prompt(
    prompt: Float[Tensor, "P H"],
    budget: Budget,
    *,
    official_scale: bool,
    official_init: bool,
    token_dropout: float,
    generator: torch.Generator,
) -> SoftPrompt:
    """The short prompt with what the budget's kind of offset adds to the embeddings, initialised but for P."""
    token_offset = None
    if budget.offset != "position":
        w1 = initial_w1(budget.hidden_size, budget.rank, generator=generator)
        token_offset = TokenOffset(w1=w1, dropout=token_dropout)
    if budget.offset == "token":
        return SoftPrompt(prompt, token_offset=token_offset)
    make_a = official_a if official_init else paper_a
    return DecomposedPrompt(
        prompt=prompt,
        a=make_a(budget.max_text_length, budget.rank, generator=generator),
        b=torch.zeros(budget.rank, budget.hidden_size),
        scale=8 * max(budget.rank, 1) ** -0.5 if official_scale else 1.0,
        token_offset=token_offset,
    )
