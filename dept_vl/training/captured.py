"""Steps that are recorded once for each shape of batch and then replayed, as CUDA graphs.

A small step consists of some thousand launches of small kernels, which take longer than the kernels. A graph is one
launch. It reads and writes the same memory each time, so batches are copied to where it was recorded with, and whatever
it changes is changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dept_vl.command_line import say
from dept_vl.model.engine.graphs import Recorder, Work, cause_of, graph_recorder
from dept_vl.types import Batch

WARM_UPS = 3  # runs before a recording
MOST_SHAPES = 32  # of batches; each is recorded for itself

Touched = frozenset[int]  # the places of the parameters that have a gradient


class Recording(NamedTuple):
    """The gradients of one shape of batch."""

    inputs: Batch
    replay: Work
    touched: Touched


class Recordings:
    """The two halves of a step, replayed where they are recorded; between them parts and processes are summed up.

    Args:
        gradients: adds the gradients of a batch to what is there, and tells which parameters have one.
        update: changes those parameters, but nothing at all where there is no finite loss.
        closed: a number that is no finite loss while it is NaN.
        kept: what only the gradients of a step itself may change; the runs before a recording do not.
        record: None for steps without recordings.
        talks: whether to say why there are no recordings.
    """

    def __init__(
        self,
        gradients: Callable[[Batch], Touched],
        update: Callable[[Touched], None],
        *,
        closed: Tensor,
        kept: Iterable[Tensor],
        record: Recorder | None,
        talks: bool,
    ) -> None:
        self._gradients, self._update = gradients, update
        self._closed, self._kept = closed, list(kept)
        self._record, self._talks = record, talks
        self._inputs: dict[object, Tensor] = {}  # shared by the shapes: replays come one after the other
        self._by_shape: dict[object, Recording] = {}
        self._updates: dict[Touched, Work] = {}
        self._full = False

    def prepare(self, batches: Sequence[Batch]) -> None:
        """Record what is new in these batches, before anything of their step is computed."""
        for batch in batches:
            shape = _shape(batch)
            if self._record is None or shape in self._by_shape:
                continue
            if len(self._by_shape) >= MOST_SHAPES:
                self._say_that_it_is_full()
                continue
            self._attempt(partial(self._record_gradients, shape, batch))

    def gradients(self, batch: Batch) -> Touched:
        """Add a batch's gradients, by a replay if its shape is recorded."""
        recording = self._by_shape.get(_shape(batch))
        if recording is None:
            return self._gradients(batch)
        _fill(recording.inputs, batch)
        recording.replay()
        return recording.touched

    def update(self, touched: Touched) -> None:
        """Change the parameters, by a replay if there are recordings."""
        if self._record is not None and touched not in self._updates:
            self._attempt(partial(self._record_update, touched))
        replay = self._updates.get(touched)
        if replay is None:
            self._update(touched)
        else:
            replay()

    def _attempt(self, recording: Callable[[Recorder], None]) -> None:
        """Record something, or go on without recordings for good."""
        if self._record is None:
            return
        try:
            recording(self._record)
        except RuntimeError as error:
            # Also without those that were recorded: their random numbers came from a generator that is lost with this.
            self._record = None
            for kept in (self._inputs, self._by_shape, self._updates):
                kept.clear()
            if self._talks:
                reason = cause_of(error)
                say(f"Training goes on without CUDA graphs, in slower steps, as one cannot be recorded: {reason}")

    def _record_gradients(self, shape: object, batch: Batch, record: Recorder) -> None:
        tensors: dict[str, Any] = {
            name: self._inputs.setdefault((name, tensor.shape, tensor.dtype), torch.empty_like(tensor))
            for name, tensor in batch.tensors().items()
        }
        inputs = replace(batch, **tensors)
        _fill(inputs, batch)
        touched: Touched = frozenset()

        def work() -> None:
            nonlocal touched
            touched = self._gradients(inputs)

        kept = [tensor.clone() for tensor in self._kept]
        try:
            replay = record(work)
        finally:
            for tensor, value in zip(self._kept, kept, strict=True):
                tensor.copy_(value)
        self._by_shape[shape] = Recording(inputs, replay, touched)

    def _record_update(self, touched: Touched, record: Recorder) -> None:
        was = self._closed.clone()
        self._closed.fill_(torch.nan)
        try:
            self._updates[touched] = record(lambda: self._update(touched))
        finally:
            self._closed.copy_(was)

    def _say_that_it_is_full(self) -> None:
        if self._talks and not self._full:
            say(
                f"{MOST_SHAPES} shapes of batches are recorded as CUDA graphs; others are trained on without, in "
                "slower steps. A larger data.bucket_width makes fewer shapes"
            )
        self._full = True


def recorder_for(device: torch.device, *, checkpointed: bool) -> Recorder | None:
    """What records graphs on a device; None where there are none.

    Args:
        checkpointed: layers are computed again in the backward pass, which no graph can hold.
    """
    if device.type == "cuda" and checkpointed:
        return _refuse
    return graph_recorder(device, warm_ups=WARM_UPS)


def _refuse(work: Work) -> Work:
    raise RuntimeError("training.checkpoint_activations reads the state of the random generator")


def _shape(batch: Batch) -> object:
    tensors = batch.tensors()
    return batch.task, *((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items())


def _fill(inputs: Batch, batch: Batch) -> None:
    for into, tensor in zip(inputs.tensors().values(), batch.tensors().values(), strict=True):
        into.copy_(tensor)
