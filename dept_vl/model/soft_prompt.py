"""A learned prompt of continuous vectors (Lester et al. 2021), what it adds to the text, and the ways to start it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from dept_vl.model.token_offset import TokenOffset

COMMON_TOKENS = 5000  # Lester et al. sample the prompt from so many of the most common tokens


class SoftPrompt(nn.Module):
    """P vectors put before the text, whose tokens are embedded as the frozen model does, or with ADePT's offset.

    Args:
        prompt: the vectors to start from; None for a kind of prompt that computes them.
    """

    def __init__(self, prompt: Float[Tensor, "P H"] | None = None, *, token_offset: TokenOffset | None = None) -> None:
        super().__init__()
        if prompt is not None:
            self.prompt = nn.Parameter(prompt)
        self.token_offset = token_offset

    def for_task(self, task: str) -> SoftPrompt:
        """Itself: all tasks share it."""
        return self

    def by_name(self) -> dict[str, SoftPrompt]:
        """Itself, under the name that its tensors begin with in an adapter."""
        return {"prompt": self}

    def embed_text(
        self,
        embedded: Float[Tensor, "B T H"],
        mask: Bool[Tensor, "B T"],
        *,
        before: Int64[Tensor, "B 1"] | None = None,
    ) -> Float[Tensor, "B T H"]:
        """The token embeddings with what the prompt adds to them.

        ``before`` is how many real tokens came before the first of these, where a text is read in several pieces.
        """
        return embedded if self.token_offset is None else embedded + self.token_offset(embedded)

    def groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """What trains, by optimizer group and name: the prompt itself, and at the small rate all that goes with it."""
        more = {} if self.token_offset is None else dict(self.token_offset.named_parameters())
        return {"prompt": {"prompt": self.prompt}, "low_rank": more}


class TaskPrompts(nn.Module):
    """A prompt for each task, on the same backbone."""

    def __init__(self, prompts: Mapping[str, SoftPrompt]) -> None:
        super().__init__()
        self.prompts = nn.ModuleDict(prompts)

    def for_task(self, task: str) -> SoftPrompt:
        """The prompt of a task."""
        return cast(SoftPrompt, self.prompts[task])

    def by_name(self) -> dict[str, SoftPrompt]:
        """Each prompt under the name that its tensors begin with in an adapter."""
        return {f"prompt.{task}": self.for_task(task) for task in self.prompts}


def from_vocabulary(
    embeddings: Float[Tensor, "vocabulary H"],
    length: int,
    *,
    special_ids: Sequence[int],
    generator: torch.Generator,
) -> Float[Tensor, "P H"]:
    """The embeddings of tokens sampled from the most common ones (low ids), special tokens left out."""
    allowed = torch.ones(len(embeddings), dtype=torch.bool)
    allowed[list(special_ids)] = False
    candidates = allowed.nonzero().flatten()[:COMMON_TOKENS]
    chosen = candidates[torch.randint(len(candidates), (length,), generator=generator)]
    return embeddings[chosen].clone()


def from_text(
    embeddings: Float[Tensor, "vocabulary H"], length: int, *, token_ids: Sequence[int]
) -> Float[Tensor, "P H"]:
    """The embeddings of a text's tokens, repeated and cut to the length (the official DePT code)."""
    repeated = (list(token_ids) * -(-length // len(token_ids)))[:length]
    return embeddings[repeated].clone()


def from_normal(length: int, hidden_size: int, *, generator: torch.Generator) -> Float[Tensor, "P H"]:
    """Standard normal numbers."""
    return torch.randn(length, hidden_size, generator=generator)
