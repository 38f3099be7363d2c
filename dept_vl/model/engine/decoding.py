"""Answers of the lean T5 by greedy or beam search, which a GPU replays from recordings."""

from __future__ import annotations

from functools import partial
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dept_vl.model.engine import searches
from dept_vl.model.engine.graphs import graph_recorder
from dept_vl.model.engine.lean_t5 import LeanT5
from dept_vl.model.engine.recorded import RecordedSearches, Search
from dept_vl.model.engine.searches import Allowed

_RECORDED: WeakKeyDictionary[LeanT5, dict[torch.device, RecordedSearches]] = WeakKeyDictionary()


@torch.no_grad()
def greedy(
    lean: LeanT5,
    states: Float[Tensor, "B S H"],
    mask: Bool[Tensor, "B S"],
    *,
    max_length: int,
    allowed: Allowed | None = None,
) -> Int64[Tensor, "B L"]:
    """The token ids of a greedy search, those of the end included, padded to the longest answer.

    Args:
        states: the encoder's, and ``mask``, which of its positions are real.
        max_length: most tokens of an answer; a longer one is cut.
        allowed: the tokens that may follow others in a row of the batch; None for all.
    """
    search = partial(searches.greedy_search, lean, max_length=max_length, allowed=allowed)
    return _answers(lean, search, states, mask, kind=None if allowed else (max_length, 1))


@torch.no_grad()
def beam_search(
    lean: LeanT5,
    states: Float[Tensor, "B S H"],
    mask: Bool[Tensor, "B S"],
    *,
    max_length: int,
    num_beams: int,
    allowed: Allowed | None = None,
) -> Int64[Tensor, "B L"]:
    """As ``greedy``, by a search with so many beams; where padding is token 0, the end token is repeated instead."""
    search = partial(searches.beam_search, lean, max_length=max_length, num_beams=num_beams, allowed=allowed)
    return _answers(lean, search, states, mask, kind=None if allowed else (max_length, num_beams))


def _answers(
    lean: LeanT5, search: Search, states: Tensor, mask: Tensor, *, kind: tuple[int, int] | None
) -> Int64[Tensor, "B L"]:
    """The ids that a search finds; those of a kind can be recorded."""
    if kind is None:
        found = search(states, mask, early=True)
    else:
        of_model = _RECORDED.setdefault(lean, {})
        if states.device not in of_model:
            of_model[states.device] = RecordedSearches(graph_recorder(states.device, warm_ups=1))
        # A recording holds for the place of the weights, and with or without dropout.
        found = of_model[states.device](search, states, mask, kind=(*kind, lean.training, lean.cross.data_ptr()))
    return found.ids[:, : int(found.lengths.max())]
