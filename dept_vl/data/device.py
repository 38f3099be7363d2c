"""Batches on the device that trains or answers, each copied there while the one before it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

import torch
from torch import Tensor

from dept_vl.data.resident import ResidentFeatures
from dept_vl.types import Batch

T = TypeVar("T")


def on_device(
    batches: Iterator[Batch], device: torch.device, resident: ResidentFeatures | None = None
) -> Iterator[Batch]:
    """The same batches on a device, in their order, with the features of their images where these are resident.

    Nothing is read before the first batch is asked for. For a GPU a thread then reads one batch ahead, never more, and
    copies it to the device, while the one before it is used; a failure arrives in the place of its batch. Who captures
    a CUDA graph meanwhile does so with ``capture_error_mode="thread_local"``, as the thread makes calls of its own.
    """
    there = _copied_ahead(batches, device) if device.type == "cuda" else (batch.to(device) for batch in batches)
    for batch in there:
        yield batch if resident is None else resident.fill(batch)


def _copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a GPU, copied from pinned memory and on a stream of their own, beside the steps."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        # A thread starts on the first GPU, where pinning would take memory.
        with torch.cuda.device(stream.device), torch.cuda.stream(stream):
            there = batch.map(Tensor.pin_memory).to(stream.device)
            return there, stream.record_event()

    for batch, copied in _read_ahead(batches, copy):
        using = torch.cuda.current_stream(stream.device)
        using.wait_event(copied)
        for tensor in batch.tensors().values():
            tensor.record_stream(using)  # its memory is not given to a later copy while a step still reads it
        yield batch


def _read_ahead(batches: Iterator[Batch], start: Callable[[Batch], T]) -> Iterator[T]:
    """What ``start`` makes of each batch, made in a thread while the one before it is used."""
    wanted: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def read() -> None:
        while wanted.get():
            try:
                batch = next(batches, None)
                made.put((None if batch is None else start(batch), None))
            except BaseException as error:
                made.put((None, error))

    # No executor: a reading process that is forked in one of its threads would join that thread, itself, at its end.
    thread = Thread(target=read, name="batches", daemon=True)
    thread.start()
    wanted.put(True)
    try:
        while True:
            batch, error = made.get()
            if error is not None:
                raise error
            if batch is None:
                return
            wanted.put(True)
            yield batch
    finally:
        wanted.put(False)
        thread.join()
