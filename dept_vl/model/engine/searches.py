"""Greedy and beam search on the lean layers, step by step: the library's rules and so its tokens.

All that a search knows is in tensors on the device, whose sizes do not depend on what is found, so that a search can be
recorded as a CUDA graph. Only two things look at them from the host: leaving early, and tokens that a function allows.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from dept_vl.model.engine.lean_t5 import LeanT5

Allowed = Callable[[int, Tensor], list[int]]  # the tokens that may follow in a row of the batch, by those before

NEVER = -1e9  # the library's score of what is no choice; a finite one, which it divides by lengths


class Found(NamedTuple):
    """The answer to each example, padded to the most steps, and its tokens, those of the end included."""

    ids: Int64[Tensor, "B longest"]
    lengths: Int64[Tensor, " B"]


def greedy_search(
    lean: LeanT5,
    states: Float[Tensor, "B S H"],
    mask: Bool[Tensor, "B S"],
    *,
    max_length: int,
    allowed: Allowed | None,
    early: bool,
) -> Found:
    """The likeliest token, one after the other; ``early`` to stop, at the price of a look, once all have ended."""
    cross = lean.cross_keys_values(states)
    cache, places = _cache(lean, cross, len(mask), max_length), torch.arange(max_length, device=mask.device)
    ids = places.new_full((len(mask), max_length + 1), lean.pad_id)
    ids[:, 0] = lean.start_id
    going, lengths = torch.ones_like(mask[:, 0]), torch.zeros_like(ids[:, 0])
    for step in range(max_length):
        state = lean.decode_one(ids[:, step, None], places[step], cache, cross, mask)
        scores = lean.head(state)[:, 0].float()
        if allowed is not None:
            scores = _restricted(scores, ids[:, : step + 1], allowed)
        tokens = scores.argmax(dim=1)
        ids[:, step + 1] = torch.where(going, tokens, lean.pad_id)
        lengths += going
        going = going & (tokens != lean.end_id)
        if early and not going.any():
            break
    return Found(ids[:, 1:], lengths)


class _Beams(NamedTuple):
    """Of each example K answers that go on and K that have ended, the best first; start token included."""

    running: Int64[Tensor, "B K longest"]
    scores: Float[Tensor, "B K"]  # log probabilities
    ended: Int64[Tensor, "B K longest"]
    ended_scores: Float[Tensor, "B K"]  # log probabilities over lengths
    lengths: Int64[Tensor, "B K"]  # of those that have ended; 0: none has
    hopeful: Bool[Tensor, "B 1"]  # whether one that goes on may become better than one that has ended


def beam_search(
    lean: LeanT5,
    states: Float[Tensor, "B S H"],
    mask: Bool[Tensor, "B S"],
    *,
    max_length: int,
    num_beams: int,
    allowed: Allowed | None,
    early: bool,
) -> Found:
    """The best by mean log probability that a search with so many beams ends; arguments as for ``greedy_search``.

    The beams of an example are rows next to each other, which share its keys and values of the encoder.
    """
    cross = lean.cross_keys_values(states)
    cache = _cache(lean, cross, len(mask) * num_beams, max_length)
    places = torch.arange(max_length, device=mask.device)
    first_rows = num_beams * torch.arange(len(mask), device=mask.device)[:, None]
    beams = _first_beams(lean, mask, num_beams, max_length)
    for step in range(max_length):
        tokens = beams.running[:, :, step].reshape(-1, 1)
        state = lean.decode_one(tokens, places[step], cache, cross, mask)
        scores = lean.head(state)[:, 0].float().log_softmax(dim=1)
        if allowed is not None:
            scores = _restricted(scores, beams.running[:, :, : step + 1].flatten(0, 1), allowed, rows=num_beams)
        beams, parents = _next_beams(beams, scores, step, max_length=max_length, end_id=lean.end_id)
        if step + 1 == max_length or (early and not beams.hopeful.any()):
            break
        cache = cache.index_select(2, (first_rows + parents).flatten())
    return Found(beams.ended[:, 0, 1:], beams.lengths[:, 0])


def _first_beams(lean: LeanT5, mask: Bool[Tensor, "B S"], num_beams: int, max_length: int) -> _Beams:
    """Before the first step, where all beams are the same and so only one counts."""
    # What follows an answer: as in the library, for which a pad token of 0 is none.
    fill = lean.pad_id or lean.end_id
    ids = torch.full((len(mask), num_beams, max_length + 1), fill, device=mask.device)
    ids[:, :, 0] = lean.start_id
    never = torch.full(ids.shape[:2], NEVER, device=mask.device)
    scores = never.clone()
    scores[:, 0] = 0
    return _Beams(ids, scores, ids, never, torch.zeros_like(ids[:, :, 0]), torch.ones_like(mask[:, :1]))


def _next_beams(
    beams: _Beams, scores: Float[Tensor, "rows vocabulary"], step: int, *, max_length: int, end_id: int
) -> tuple[_Beams, Int64[Tensor, "B K"]]:
    """The beams with one token more, and which beams those that go on were."""
    count, num_beams = beams.scores.shape
    totals = scores.view(count, num_beams, -1) + beams.scores[:, :, None]
    # Twice the beams, so that enough go on if all of the best end.
    best, places = totals.flatten(1).topk(2 * num_beams)
    parents, tokens = places // scores.shape[1], places % scores.shape[1]
    candidates = _pick(beams.running, parents)
    candidates[:, :, step + 1] = tokens
    ends = tokens == end_id if step + 1 < max_length else torch.ones_like(tokens, dtype=torch.bool)

    going_scores, going = (best + ends * NEVER).topk(num_beams)
    # Those that end below the beams are no answers.
    ends = ends & (torch.arange(2 * num_beams, device=ends.device) < num_beams)
    end_scores = best / (step + 1) + ~beams.hopeful * NEVER + ~ends * NEVER
    ended_scores, chosen = torch.cat([beams.ended_scores, end_scores], dim=1).topk(num_beams)
    lengths = torch.cat([beams.lengths, ends * (step + 1)], dim=1).gather(1, chosen)
    hopeful = beams.hopeful & (going_scores[:, :1] / (step + 1) > ended_scores[:, -1:])
    ended = _pick(torch.cat([beams.ended, candidates], dim=1), chosen)
    following = _Beams(_pick(candidates, going), going_scores, ended, ended_scores, lengths, hopeful)
    return following, parents.gather(1, going)


def _pick(
    ids: Int64[Tensor, "B candidates longest"], chosen: Int64[Tensor, "B some"]
) -> Int64[Tensor, "B some longest"]:
    return ids.gather(1, chosen[:, :, None].expand(-1, -1, ids.shape[2]))


def _restricted(
    scores: Float[Tensor, "rows vocabulary"], before: Int64[Tensor, "rows prefix"], allowed: Allowed, *, rows: int = 1
) -> Float[Tensor, "rows vocabulary"]:
    """The scores of what may follow, minus infinity of all else; so many rows are one example."""
    following = [allowed(row // rows, ids) for row, ids in enumerate(before.cpu())]
    places = [[row] * len(tokens) for row, tokens in enumerate(following)]
    index = torch.tensor([list(chain(*places)), list(chain(*following))], device=scores.device)
    return torch.full_like(scores, -torch.inf).index_put((index[0], index[1]), scores[index[0], index[1]])


def _cache(lean: LeanT5, cross: Tensor, rows: int, length: int) -> Float[Tensor, "layers 2 rows heads longest key"]:
    """Room for the decoder's own keys and values; places not reached yet are read too, and must be finite."""
    length += -length % lean.alignment
    return cross.new_zeros(*cross.shape[:2], rows, cross.shape[3], length, cross.shape[5])
