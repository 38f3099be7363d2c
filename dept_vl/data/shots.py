"""Few-shot training: which examples a run of ``data.shots=k`` learns from."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from dept_vl.command_line import say
from dept_vl.types import Example
from feature_extraction.errors import UsageError


def choose_shots(examples: Sequence[Example], count: int, *, labels: Sequence[str], seed: int) -> list[Example]:
    """Exactly ``count`` training examples, in their original order.

    Where the task has labels, each label gives equally many, up to one: the examples of each label are shuffled, and
    the labels, in a drawn order, are dealt from in turn. A label that has run out leaves its turns to the others.
    Without labels the choice is uniform. The choice depends on the examples and the seed only, and a smaller count
    chooses a part of what a larger one does.

    Args:
        labels: the texts that the task's targets are among; empty for free text.
        seed: of this choice alone.

    Raises:
        UsageError: there are fewer examples with a target to train on.
    """
    piles: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        if example.targets:
            piles[example.targets[0].text if labels else ""].append(index)
    available = sum(map(len, piles.values()))
    if count > available:
        raise UsageError(
            f"data.shots is {count:,}, but the training split has {available:,} examples with an answer. "
            f"Set data.shots to {available:,} or less, or data.shots=null for all of them"
        )
    generator = np.random.default_rng(seed)
    names = sorted(piles)  # by name: the order of the file has no say in which label gets one more
    shuffled = [generator.permutation(piles[names[place]]).tolist() for place in generator.permutation(len(names))]
    dealt = [index for turn in zip_longest(*shuffled) for index in turn if index is not None][:count]
    chosen = [examples[index] for index in sorted(dealt)]
    if labels:
        _tell_shortages(chosen, {name: len(pile) for name, pile in piles.items()}, labels)
    return chosen


def _tell_shortages(chosen: Sequence[Example], available: dict[str, int], labels: Sequence[str]) -> None:
    """Say which labels have too few examples for an equal share."""
    taken = Counter(example.targets[0].text for example in chosen)
    most = max(taken.values(), default=0)
    short = [name for name in labels if taken[name] < most - 1 or (not available.get(name) and most)]
    if short:
        counts = ", ".join(f"{name!r} ({available.get(name, 0)})" for name in short)
        say(
            f"data.shots={len(chosen)}: of these labels the training split has too few examples for an equal share, "
            f"and the other labels take it: {counts}"
        )
