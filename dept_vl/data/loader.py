"""Batches in their order, read in this process or ahead of time by others."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Collection, Iterable, Iterator
from itertools import count
from typing import Any, NamedTuple, cast

import torch
from torch.utils.data import DataLoader, Dataset

from dept_vl.data.collate import collate
from dept_vl.data.dataset import NO_TARGET, ExampleDataset, draw_targets
from dept_vl.data.order import Indices, check_shares, epoch_batches, evaluation_order, share, steps_per_epoch
from dept_vl.types import Batch
from feature_extraction.errors import IncompatibleError

SECONDS_AFTER_SIGTERM = 10  # that a reading process goes on serving


class TrainingBatch(NamedTuple):
    """A batch and its place; training goes on behind it at (epoch, position + 1)."""

    epoch: int
    position: int  # in the epoch, from 0
    batch: Batch


class _Place(NamedTuple):
    """Which examples and targets make up the batch at one place."""

    epoch: int
    position: int
    examples: Indices
    targets: Indices | None = None


def training_batches(
    dataset: ExampleDataset,
    *,
    batch_size: int,
    bucket_width: int,
    seed: int,
    epoch: int = 0,
    position: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[TrainingBatch]:
    """The batches of process ``rank`` of ``world`` from a place on, epoch after epoch, without end.

    ``batch_size`` is over all processes. ``workers`` processes read ahead; with 0, batches are read in this one when
    they are asked for. Nothing that comes before the place is read. Which examples and targets make up a step depends
    on the seed and the place alone, not on the number of processes that train or read.

    Raises:
        IncompatibleError: an epoch has no such position.
        InputDataError: there are fewer examples than processes.
        UsageError: the batch size is no multiple of ``world``.
    """
    check_shares(len(dataset), batch_size=batch_size, world=world)
    steps = steps_per_epoch(len(dataset), batch_size)
    if not 0 <= position <= steps:
        raise IncompatibleError(
            f"Training cannot go on at batch {position:,} of epoch {epoch}: with {len(dataset):,} examples and "
            f"data.batch_size={batch_size} an epoch has {steps:,}. Give the data and data.batch_size that the run was "
            "started with, or start a new run in another folder"
        )
    lengths = dataset.tokens.texts.lengths()

    def places() -> Iterator[_Place]:
        first = position
        for current in count(epoch):
            targets = draw_targets(dataset.tokens, seed=seed, epoch=current)
            batches = epoch_batches(lengths, seed=seed, epoch=current, batch_size=batch_size, bucket_width=bucket_width)
            for number in range(first, steps):
                examples = share(batches[number], rank=rank, world=world)
                yield _Place(current, number, examples, targets[examples])
            first = 0

    return _read(_PlacedBatches(dataset, bucket_width), places(), workers)


def evaluation_batches(
    dataset: ExampleDataset,
    *,
    batch_size: int,
    bucket_width: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    done: Collection[str] = (),
) -> Iterator[Batch]:
    """The batches that process ``rank`` of ``world`` answers, without targets; together every example exactly once.

    ``batch_size`` is that of one process. Batches whose examples are all ``done`` already are left out; what the others
    consist of does not depend on that.
    """
    order = [
        examples
        for examples in evaluation_order(dataset.tokens.texts.lengths(), batch_size=batch_size)
        if not all(dataset.examples[index].example_id in done for index in examples)
    ][rank::world]
    places = (_Place(0, position, examples) for position, examples in enumerate(order))
    return (placed.batch for placed in _read(_PlacedBatches(dataset, bucket_width), places, workers))


class _PlacedBatches(Dataset[TrainingBatch | Exception]):
    """Batches by their place; it holds no state and no random numbers, so any process may read any of them."""

    def __init__(self, dataset: ExampleDataset, bucket_width: int) -> None:
        self.dataset = dataset
        self.bucket_width = bucket_width

    def read(self, place: _Place) -> TrainingBatch:
        targets = [NO_TARGET] * len(place.examples) if place.targets is None else place.targets.tolist()
        items = [
            self.dataset.item(example, target) for example, target in zip(place.examples.tolist(), targets, strict=True)
        ]
        tokens = self.dataset.tokens
        batch = collate(
            items,
            task=self.dataset.task,
            pad_id=tokens.frame.pad_id,
            bucket_width=self.bucket_width,
            max_text_length=tokens.max_text_length,
            max_target_length=tokens.max_target_length,
        )
        return TrainingBatch(place.epoch, place.position, batch)

    def __getitem__(self, place: _Place) -> TrainingBatch | Exception:
        try:
            return self.read(place)
        except Exception as error:
            # Raised in the main process as it is: torch would lengthen its message by this traceback.
            error.add_note(f"In a reading process:\n{traceback.format_exc()}")
            return error


def _read(batches: _PlacedBatches, places: Iterable[_Place], workers: int) -> Iterator[TrainingBatch]:
    if workers == 0:
        yield from map(batches.read, places)
        return
    loader = DataLoader(
        batches,
        sampler=cast("Iterable[int]", places),
        batch_size=None,  # a place is a whole batch
        collate_fn=_unchanged,
        num_workers=workers,
        worker_init_fn=_outlive_stop_signals,
        generator=torch.Generator(),  # its own, so that the number of workers does not move torch's
    )
    for placed in loader:
        if isinstance(placed, Exception):
            raise placed
        yield placed


def _unchanged(placed: Any) -> Any:  # noqa: ANN401 - whatever the data set gives
    return placed


def _outlive_stop_signals(worker: int) -> None:
    """Serve on while the main process, which a stop signal to the whole group reaches as well, finishes its step.

    It ends its workers when it is done. After SIGTERM they end by themselves in the end: it is also what a process that
    exits sends to workers that it did not end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda number, frame: os._exit(0))
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SECONDS_AFTER_SIGTERM))
