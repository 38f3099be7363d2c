"""Searches that are recorded once for each shape of batch and then replayed, as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from dept_vl.command_line import say
from dept_vl.model.engine.graphs import Recorder, Work, cause_of
from dept_vl.model.engine.searches import Found

MOST_SHAPES = 32  # that are remembered; the one that was not asked for the longest is forgotten

Search = Callable[..., Found]  # of states, their mask, and whether to leave early


class Recording(NamedTuple):
    """One search on one shape of batch."""

    states: Tensor
    mask: Tensor
    replay: Work
    found: list[Found]  # what the last replay found


class RecordedSearches:
    """Runs searches: the first on a shape as it is, as no other may come; the next one is recorded, and then replayed.

    A recording does all steps. Inputs are copied to where it was recorded with; recordings share that place, and the
    memory that they work in, as they run one after the other.

    Args:
        record: None to run all searches as they are.
    """

    def __init__(self, record: Recorder | None, *, most: int = MOST_SHAPES) -> None:
        self._record, self._most = record, most
        self._by_shape: dict[Hashable, Recording | None] = {}  # the last asked for last; None: seen once
        self._inputs: dict[torch.dtype, Tensor] = {}

    def __call__(self, search: Search, states: Tensor, mask: Tensor, *, kind: Hashable) -> Found:
        """What a search finds; of equal ``kind`` are those that do the same to equal inputs."""
        shape = (kind, states.shape, states.dtype)
        seen, recording = shape in self._by_shape, self._by_shape.pop(shape, None)
        if seen and recording is None:
            recording = self._attempt(search, states, mask)
        if self._record is None:
            return search(states, mask, early=True)
        self._by_shape[shape] = recording
        if len(self._by_shape) > self._most:
            del self._by_shape[next(iter(self._by_shape))]
        if recording is None:
            return search(states, mask, early=True)
        recording.states.copy_(states)
        recording.mask.copy_(mask)
        recording.replay()
        return Found(*(tensor.clone() for tensor in recording.found[0]))

    def _attempt(self, search: Search, states: Tensor, mask: Tensor) -> Recording | None:
        """A recording, or None from now on."""
        if self._record is None:
            return None
        inputs: tuple[Tensor, Tensor] = self._place_for(states), self._place_for(mask)
        found: list[Found] = []

        def work() -> None:
            found[:] = [search(*inputs, early=False)]

        try:
            replay = self._record(work)
        except RuntimeError as error:
            self._record = None
            self._by_shape.clear()
            self._inputs.clear()
            say(f"Answers are found without CUDA graphs, more slowly, as one cannot be recorded: {cause_of(error)}")
            return None
        return Recording(*inputs, replay, found)

    @torch.inference_mode(mode=False)  # in which alone tensors are made that can be written to in and outside of it
    def _place_for(self, tensor: Tensor) -> Tensor:
        flat = self._inputs.get(tensor.dtype)
        if flat is None or flat.numel() < tensor.numel():
            flat = self._inputs[tensor.dtype] = tensor.new_zeros(tensor.numel())
        return flat[: tensor.numel()].view(tensor.shape)
