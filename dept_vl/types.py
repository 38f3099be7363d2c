"""The records that travel from disk to leaderboard file, and the letters of their axes.

B batch, T text tokens, I images per example, V visual tokens per image, N = I * V visual tokens per example,
P prompt length, S = P + T + N encoder length, L target length, D feature width, H hidden size, R rank, A answers.

Boxes are fractions of image width and height, 0 to 1, in the order x0, y0, x1, y1. All identities are strings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # this file is read by the scorers, which work without torch
    import torch
    from jaxtyping import Bool, Float, Int64
    from torch import Tensor


class Target(NamedTuple):
    """A text to train on, and its weight in the loss: 1, or an answer's soft score (VL-T5)."""

    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class Example:
    """One question, sentence or image to answer, with everything known about it.

    ``text`` goes to the encoder as it is, after the task's prefix. A training step draws one of ``targets`` in
    proportion to the weights. ``slices`` names the groups that scores are split by, such as answer_type: yes/no.
    ``facts`` is whatever else the task's own score needs; nobody but the task looks at it.
    """

    example_id: str
    text: str
    image_ids: tuple[str, ...]
    references: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    slices: Mapping[str, str] = field(default_factory=dict)
    facts: object = None


class Prediction(NamedTuple):
    """Our answer to one example."""

    example_id: str
    answer: str


class Frame(NamedTuple):
    """The token ids that a language model wants around texts and targets; whatever is cut, the frame is not."""

    text_before: tuple[int, ...] = ()
    text_after: tuple[int, ...] = ()
    target_before: tuple[int, ...] = ()
    target_after: tuple[int, ...] = ()
    target_prefix: str = ""  # put before the target's text, not a token of its own
    pad_id: int = 0


class Scores(NamedTuple):
    """The numbers of one evaluation.

    ``metrics`` are times 100, None where the data does not allow a number; ``per_example`` maps each example id to
    its own score, 0 to 1. ``reasons`` says why a metric is None, where that is not plain.
    """

    metrics: dict[str, float | None]
    per_example: dict[str, float]
    reasons: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples of one task as tensors. Texts are padded on the right; masks are True at real tokens."""

    task: str
    example_ids: tuple[str, ...]
    text_ids: Int64[Tensor, "B T"]
    text_mask: Bool[Tensor, "B T"]
    visual_tokens: Float[Tensor, "B I V D"]
    boxes: Float[Tensor, "B I V 4"]
    visual_mask: Bool[Tensor, "B I V"]
    target_ids: Int64[Tensor, "B L"]
    target_mask: Bool[Tensor, "B L"]
    target_weights: Float[Tensor, " B"]
    answer_scores: Float[Tensor, "B A"]  # of the answer vocabulary's answers; A = 0 where the task has none
    image_rows: Int64[Tensor, "B I"] | None = None  # of resident features; V = 0 until these are filled in

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name; all have B rows."""
        values = {name: getattr(self, name) for name in self.__slots__ if name not in ("task", "example_ids")}
        return {name: value for name, value in values.items() if value is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with each of its tensors changed."""
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))
