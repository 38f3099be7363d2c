from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice

import pytest
import torch

from dept_vl.data import device as module
from dept_vl.data.dataset import ExampleDataset
from dept_vl.data.device import on_device
from dept_vl.data.loader import training_batches
from dept_vl.types import Batch

Make = Callable[..., ExampleDataset]
CPU = torch.device("cpu")


def equal(one: Batch, other: Batch) -> bool:
    pairs = zip(one.tensors().items(), other.tensors().items(), strict=True)
    same = all(name == other_name and torch.equal(a, b.to(a.device)) for (name, a), (other_name, b) in pairs)
    return same and (one.task, one.example_ids) == (other.task, other.example_ids)


def taken(batches: Iterator[Batch], into: list[Batch]) -> None:
    for batch in batches:
        into.append(batch)


class Watched(Iterator[Batch]):
    """Batches that tell how many of them were asked for, and by which thread; the ``broken``-th fails."""

    def __init__(self, batches: list[Batch], broken: int | None = None) -> None:
        self._batches = batches
        self._broken = broken
        self.asked = 0
        self.threads: set[str] = set()

    def __next__(self) -> Batch:
        self.asked += 1
        self.threads.add(threading.current_thread().name)
        if self.asked == self._broken:
            raise ZeroDivisionError(f"batch {self.asked}")
        if self.asked > len(self._batches):
            raise StopIteration
        return self._batches[self.asked - 1]


@pytest.fixture(scope="module")
def batches(make_dataset: Make) -> list[Batch]:
    placed = training_batches(make_dataset(50), batch_size=12, bucket_width=8, seed=3)
    return [one.batch for one in islice(placed, 6)]


def ahead(source: Iterator[Batch]) -> Iterator[Batch]:
    """What a GPU's batches go through, without its copies."""
    return module._read_ahead(source, lambda batch: batch)


def test_on_a_cpu_the_batches_are_those_that_were_read(batches: list[Batch]) -> None:
    source = Watched(batches)
    found = on_device(source, CPU)
    assert source.asked == 0
    for number, batch in enumerate(batches):
        given = next(found)
        assert equal(given, batch)
        assert given.visual_tokens.data_ptr() == batch.visual_tokens.data_ptr()  # not a copy
        assert source.asked == number + 1
    assert list(found) == []


def test_reading_ahead_keeps_the_order(batches: list[Batch]) -> None:
    found = list(ahead(Watched(batches)))
    assert len(found) == 6
    assert all(map(equal, found, batches))
    assert list(ahead(Watched([]))) == []


def test_nothing_is_read_before_it_is_asked_for_and_then_one_ahead_at_most(batches: list[Batch]) -> None:
    source = Watched(batches)
    reading = module._read_ahead(source, lambda batch: batch)
    assert source.asked == 0
    for number in range(4):
        next(reading)
        assert source.asked <= number + 2
    reading.close()  # type: ignore[attr-defined]
    assert source.asked == 5


def test_the_next_batch_is_read_while_this_one_is_used(batches: list[Batch]) -> None:
    source = Watched(batches)
    reached = threading.Event()

    def start(batch: Batch) -> Batch:
        if batch is batches[1]:
            reached.set()
        return batch

    reading = module._read_ahead(source, start)
    next(reading)
    assert reached.wait(timeout=60)  # without asking for it
    assert source.threads == {"batches"}


@pytest.mark.parametrize("broken", [1, 2, 4])
def test_a_failure_arrives_in_the_place_of_its_batch(batches: list[Batch], broken: int) -> None:
    source = Watched(batches, broken)
    found: list[Batch] = []
    reading = ahead(source)
    with pytest.raises(ZeroDivisionError, match=f"^batch {broken}$"):
        taken(reading, found)
    assert len(found) == broken - 1
    assert all(map(equal, found, batches))
    assert source.asked == broken  # nothing behind it
    assert list(reading) == []


def test_whoever_leaves_early_ends_the_thread(batches: list[Batch]) -> None:
    before = threading.active_count()
    reading = ahead(Watched(batches))
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_reading_processes_can_be_read_ahead(make_dataset: Make, batches: list[Batch], workers: int) -> None:
    placed = training_batches(make_dataset(50), batch_size=12, bucket_width=8, seed=3, workers=workers)
    found = list(islice(ahead(one.batch for one in placed), 6))
    assert all(map(equal, found, batches))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_reach_a_gpu_whole_while_earlier_ones_are_used(batches: list[Batch]) -> None:
    gpu = torch.device("cuda", 0)
    source = Watched(batches)
    found, sums = on_device(source, gpu), []
    for number, batch in enumerate(found):
        assert source.asked <= number + 2
        assert {tensor.device for tensor in batch.tensors().values()} == {gpu}
        torch.cuda._sleep(20_000_000)  # a step that is still at work when the next batches are copied
        sums.append((batch.visual_tokens.double().sum(), batch.text_ids.sum()))
        del batch
    for (features, ids), batch in zip(sums, batches, strict=True):
        assert float(features) == float(batch.visual_tokens.double().sum())
        assert int(ids) == int(batch.text_ids.sum())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_failure_arrives_in_its_place_on_a_gpu_too(batches: list[Batch]) -> None:
    found: list[Batch] = []
    with pytest.raises(ZeroDivisionError, match=r"^batch 3$"):
        taken(on_device(Watched(batches, 3), torch.device("cuda")), found)
    assert all(map(equal, found, batches))
    assert len(found) == 2
