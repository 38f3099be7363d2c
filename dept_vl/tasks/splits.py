"""Parts of an official file by DePT's rule, so that our splits hold the examples of its published runs.

A split's source is FILE, or FILE/part with one of PARTS. DePT shuffles the file's examples by
``torch.randperm(n, generator=torch.Generator().manual_seed(42))`` and cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from dept_vl.settings import nearest
from feature_extraction.errors import UsageError

SEED = 42  # DePT's, whatever the run's
HELD_OUT = 1_000  # examples of a large training set that DePT validates on
PARTS = {
    "first_half": "its first half, when shuffled",
    "second_half": "the other half, which is one longer where the number is odd",
    "held_out": "1,000 of its examples (half of them, where it has less than 2,000)",
    "rest": "all but those held out",
}

Item = TypeVar("Item")


class Source(NamedTuple):
    """Where a split comes from."""

    file: str  # its name without suffix
    part: str = ""  # of PARTS; "" is the whole

    @property
    def name(self) -> str:
        """The source as a part of file names."""
        return f"{self.file}_{self.part}" if self.part else self.file


def split_source(text: str, split: str) -> Source:
    """Read a split's source.

    Raises:
        UsageError: there is no such part.
    """
    source = Source(*text.split("/", maxsplit=1))
    if "/" in text and source.part not in PARTS:
        raise UsageError(
            f"task.splits.{split} is {text!r}, but {source.part!r} is no part of a file."
            f"{nearest(source.part, list(PARTS))} Write FILE, or FILE/ and one of: {', '.join(PARTS)}"
        )
    return source


def take(items: Sequence[Item], part: str) -> list[Item]:
    """The items of a part of PARTS, in their own order; all of them for the part ""."""
    if not part:
        return list(items)
    order = shuffled(len(items))
    half = len(items) // 2
    cut = half if part in ("first_half", "second_half") else min(HELD_OUT, half)
    chosen = order[:cut] if part in ("first_half", "held_out") else order[cut:]
    return [items[index] for index in np.sort(chosen)]


def shuffled(count: int, seed: int = SEED) -> np.ndarray:
    """``torch.randperm(count)`` of a CPU generator with this seed, without torch.

    Both draw raw 32-bit numbers of MT19937, seeded alike; torch then swaps item i with item i + number % (count - i).
    """
    numbers = np.random.RandomState(seed).randint(0, 1 << 32, size=max(count - 1, 0), dtype=np.uint32).astype(np.int64)
    partners = np.arange(len(numbers)) + numbers % (count - np.arange(len(numbers)))
    order = list(range(count))
    for index, partner in enumerate(partners.tolist()):
        order[index], order[partner] = order[partner], order[index]
    return np.asarray(order, dtype=np.int64)
