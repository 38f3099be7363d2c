"""What a method adds to a backbone, and how large it may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

from feature_extraction.errors import UsageError


class Insertion(NamedTuple):
    """What a method trains inside a backbone; everything is registered there, under names that stay the same."""

    group: str  # of the optimizer: adapter (added) or backbone (its own)
    parameters: list[nn.Parameter]
    note: str  # one line for the user: sizes, and what they cost


class Placement(NamedTuple):
    """Places that a method can take in a backbone, and what it costs to take them all."""

    where: str  # as in "q and v of every layer"
    targets: Sequence[str]  # names of the modules in the backbone
    cost: Callable[[int], int]  # parameters at a size, which never fall as the size grows


def choose_size(
    *, method: str, unit: str, placements: Sequence[Placement], size: int | None, allowed: int | None
) -> tuple[Placement, int]:
    """The first placement that the budget allows, and the largest size there.

    Args:
        unit: what the size is, as in "rank".
        placements: those to choose from, the preferred first.
        size: a size to check instead; None for the largest.
        allowed: parameters; None for no limit, where the size must be given.

    Raises:
        UsageError: no placement fits, or neither size nor limit is given; the message names the cheapest setting.
    """
    if allowed is None:
        if size is None:
            raise UsageError(f"{method} has neither a {unit} nor a budget. Set method.budget, or the {unit} itself")
        return placements[0], size
    for placement in placements:
        if placement.cost(size or 1) <= allowed:
            return placement, size or _largest(placement.cost, allowed)
    cheapest = min(placements, key=lambda one: one.cost(size or 1))
    raise UsageError(
        f"{method} cannot meet the budget of {allowed:,} parameters: the nearest setting, {unit} {size or 1} in "
        f"{cheapest.where}, costs {cheapest.cost(size or 1):,}. Raise method.budget to that"
        + (f", lower the {unit}," if size is not None and size > 1 else "")
        + " or choose another method"
    )


def describe(method: str, unit: str, placement: Placement, size: int, allowed: int | None) -> str:
    """One line with a method's size and place, and its share of the budget."""
    of = "" if allowed is None else f" of {allowed:,}"
    return f"{method}: {unit} {size} in {placement.where}: {placement.cost(size):,}{of} parameters"


def _largest(cost: Callable[[int], int], allowed: int) -> int:
    """The largest size that costs no more than allowed, where size 1 does."""
    low, high = 1, 2
    while cost(high) <= allowed:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= allowed else (low, middle)
    return low
