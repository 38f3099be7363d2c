"""An example and its visual tokens as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float16, Float32, Int64

from dept_vl.data.order import TARGETS, random_stream
from dept_vl.data.tokens import TokenIds, TokenTable
from dept_vl.types import Example
from feature_extraction.store.layout import StoredImage

NO_TARGET = -1
Features = Float16[np.ndarray, "I V D"] | Float32[np.ndarray, "I V D"]  # as the store holds them


class Item(NamedTuple):
    """One example, not yet padded."""

    example_id: str
    text_ids: TokenIds
    visual_tokens: Features
    boxes: Float32[np.ndarray, "I V 4"]
    visual_mask: Bool[np.ndarray, "I V"]
    target_ids: TokenIds
    target_weight: float
    answer_scores: Float32[np.ndarray, " A"]
    image_rows: tuple[int, ...] | None = None  # where the features are on the device; then V = 0 here


def draw_targets(tokens: TokenTable, *, seed: int, epoch: int) -> Int64[np.ndarray, " examples"]:
    """For each example the row of the target to train on in this epoch, or NO_TARGET.

    A target is drawn in proportion to its weight, by the example's own number in the stream of (seed, epoch); where
    all weights are zero it is the first.
    """
    uniform = random_stream(TARGETS, seed=seed, epoch=epoch).random(len(tokens))
    first, end = tokens.first_target[:-1], tokens.first_target[1:]
    sums = np.concatenate([[0.0], np.cumsum(tokens.target_weights)])
    # The row whose part of the weights' line, from sums[row] to sums[row + 1], holds the drawn point.
    drawn = np.searchsorted(sums, sums[first] + uniform * (sums[end] - sums[first]), side="right") - 1
    drawn = np.where(sums[end] > sums[first], np.clip(drawn, first, end - 1), first)
    return np.where(end > first, drawn, NO_TARGET)


@runtime_checkable
class VisualSource(Protocol):
    """What a dataset asks of a feature store."""

    @property
    def visual_tokens(self) -> int:
        """V."""

    @property
    def feature_width(self) -> int:
        """D."""

    def read(self, image_id: str, /) -> StoredImage:
        """The visual tokens and boxes of one image."""


@runtime_checkable
class RowSource(VisualSource, Protocol):
    """A store that has its features on the device, and gives no visual tokens but their rows there."""

    def row(self, image_id: str, /) -> int:
        """The row of one image."""


class ExampleDataset:
    """A task's examples by index, with the visual tokens of their images read from a feature store when asked for."""

    def __init__(
        self,
        examples: Sequence[Example],
        tokens: TokenTable,
        store: VisualSource | None,
        *,
        task: str,
        answers: Sequence[str] = (),
    ) -> None:
        """Take a store of None for examples without images, whose visual tokens are [0 0 0].

        ``answers`` is the vocabulary of a classification head; items then carry each answer's score.
        """
        self.task = task
        self.tokens = tokens
        self.examples = examples
        self._store = store
        self._resident = store if isinstance(store, RowSource) else None
        self._no_target = np.array([*tokens.frame.target_before, *tokens.frame.target_after], dtype=np.int32)
        self._place = {answer: place for place, answer in enumerate(answers)}

    def __len__(self) -> int:
        return len(self.examples)

    def item(self, index: int, target: int = NO_TARGET) -> Item:
        """One example with the target of a given row; without one, its target is the frame alone, of weight 0."""
        example = self.examples[index]
        visual_tokens, boxes, visual_mask = self._read(example.image_ids)
        known = target != NO_TARGET
        return Item(
            example_id=example.example_id,
            text_ids=self.tokens.texts.row(index),
            visual_tokens=visual_tokens,
            boxes=boxes,
            visual_mask=visual_mask,
            target_ids=self.tokens.targets.row(target) if known else self._no_target,
            target_weight=float(self.tokens.target_weights[target]) if known else 0.0,
            answer_scores=self._answer_scores(example),
            image_rows=tuple(map(self._resident.row, example.image_ids)) if self._resident else None,
        )

    def _answer_scores(self, example: Example) -> Float32[np.ndarray, " A"]:
        scores = np.zeros(len(self._place), np.float32)
        for target in example.targets if self._place else ():
            if target.text in self._place:
                scores[self._place[target.text]] = target.weight
        return scores

    def _read(
        self, image_ids: tuple[str, ...]
    ) -> tuple[Features, Float32[np.ndarray, "I V 4"], Bool[np.ndarray, "I V"]]:
        if not image_ids or self._store is None:
            tokens, width = (self._store.visual_tokens, self._store.feature_width) if self._store else (0, 0)
            empty = np.empty((0, tokens, width), np.float16)
            return empty, np.empty((0, tokens, 4), np.float32), np.empty((0, tokens), np.bool_)
        features, boxes, mask = zip(*(self._store.read(image_id) for image_id in image_ids), strict=True)
        if len(image_ids) == 1:  # the usual case, without copying: collate copies anyway
            return features[0][np.newaxis], boxes[0][np.newaxis], mask[0][np.newaxis]
        return np.stack(features), np.stack(boxes), np.stack(mask)
