from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Collection
from dataclasses import fields
from itertools import islice, zip_longest
from typing import Any

import pytest
import torch
from torch import Tensor

from dept_vl.data.dataset import ExampleDataset
from dept_vl.data.loader import TrainingBatch, evaluation_batches, training_batches
from dept_vl.data.order import steps_per_epoch
from dept_vl.types import Batch, Example
from feature_extraction.errors import IncompatibleError, InputDataError, UsageError

Make = Callable[..., ExampleDataset]
EXAMPLES, BATCH_SIZE = 50, 12
STEPS = steps_per_epoch(EXAMPLES, BATCH_SIZE)  # 4 in an epoch, two examples left out


@pytest.fixture(scope="module")
def dataset(make_dataset: Make) -> ExampleDataset:
    return make_dataset(EXAMPLES)


def read(dataset: ExampleDataset, count: int, **changes: Any) -> list[TrainingBatch]:
    settings = {"batch_size": BATCH_SIZE, "bucket_width": 8, "seed": 3}
    return list(islice(training_batches(dataset, **{**settings, **changes}), count))


def equal(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Batch)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def all_equal(one: list[TrainingBatch], other: list[TrainingBatch]) -> bool:
    return len(one) == len(other) and all(
        left[:2] == right[:2] and equal(left.batch, right.batch) for left, right in zip(one, other, strict=True)
    )


def test_batches_follow_epoch_after_epoch(dataset: ExampleDataset) -> None:
    found = read(dataset, 2 * STEPS + 1)
    assert [placed[:2] for placed in found] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]
    for epoch in (found[:STEPS], found[STEPS : 2 * STEPS]):
        ids = [example_id for placed in epoch for example_id in placed.batch.example_ids]
        assert len(set(ids)) == len(ids) == STEPS * BATCH_SIZE
    assert found[0].batch.example_ids != found[STEPS].batch.example_ids


def test_each_row_of_a_batch_is_its_own_example(dataset: ExampleDataset, tokenizer: Any) -> None:
    by_id = {example.example_id: example for example in dataset.examples}
    for placed in read(dataset, STEPS):
        batch = placed.batch
        for row, example_id in enumerate(batch.example_ids):
            example = by_id[example_id]
            words = tokenizer.decode(batch.text_ids[row][batch.text_mask[row]], skip_special_tokens=True)
            assert words == " ".join(example.text.split()[:19])
            target = tokenizer.decode(batch.target_ids[row][batch.target_mask[row]], skip_special_tokens=True)
            assert {target: pytest.approx(float(batch.target_weights[row]))}.items() <= dict(example.targets).items()
            assert (batch.visual_tokens[row] == int(example.image_ids[0][-2:])).all()


def test_starting_anywhere_gives_the_rest_of_the_uninterrupted_order(dataset: ExampleDataset) -> None:
    whole = read(dataset, 3 * STEPS)
    for start in range(2 * STEPS):
        epoch, position = divmod(start, STEPS)
        assert all_equal(read(dataset, 3 * STEPS - start, epoch=epoch, position=position), whole[start:])


def test_the_place_behind_the_last_batch_is_the_next_epoch(dataset: ExampleDataset) -> None:
    (placed,) = read(dataset, 1, epoch=1, position=STEPS)
    assert placed[:2] == (2, 0)


def test_nothing_before_the_start_is_read(dataset: ExampleDataset) -> None:
    read_ids: list[int] = []

    class Watched(ExampleDataset):
        def item(self, index: int, target: int = -1) -> Any:
            read_ids.append(index)
            return super().item(index, target)

    watched = Watched(dataset.examples, dataset.tokens, dataset._store, task="toy")
    assert len(read(watched, 1, epoch=5, position=3)) == 1
    assert len(read_ids) == BATCH_SIZE


@pytest.mark.parametrize("world", [2, 3, 4])
def test_several_processes_share_the_batches_of_one(dataset: ExampleDataset, world: int) -> None:
    whole = read(dataset, STEPS + 2)
    shares = [read(dataset, STEPS + 2, rank=rank, world=world) for rank in range(world)]
    for placed, *parts in zip(whole, *shares, strict=True):
        weights = dict(zip(placed.batch.example_ids, placed.batch.target_weights.tolist(), strict=True))
        together: dict[str, float] = {}
        for rank, part in enumerate(parts):
            assert part[:2] == placed[:2]
            assert part.batch.example_ids == placed.batch.example_ids[rank::world]
            together.update(zip(part.batch.example_ids, part.batch.target_weights.tolist(), strict=True))
        assert together == weights


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_reading_processes_does_not_matter(dataset: ExampleDataset, workers: int) -> None:
    start = {"epoch": 1, "position": 2}
    assert all_equal(read(dataset, STEPS + 3, workers=workers, **start), read(dataset, STEPS + 3, **start))


def test_reading_leaves_the_random_state_alone(dataset: ExampleDataset) -> None:
    before = torch.get_rng_state()
    read(dataset, 2, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_error_in_a_reading_process_arrives_as_it_is(dataset: ExampleDataset) -> None:
    foreign = [Example(example.example_id, "", ("elsewhere",)) for example in dataset.examples]
    broken = ExampleDataset(foreign, dataset.tokens, dataset._store, task="toy")
    messages = []
    for workers in (0, 1):
        with pytest.raises(InputDataError) as caught:
            read(broken, 1, workers=workers)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith("No features for image 'elsewhere'")


def test_a_fault_of_the_program_in_a_reading_process_keeps_its_traceback(dataset: ExampleDataset) -> None:
    class Faulty(ExampleDataset):
        def item(self, index: int, target: int = -1) -> Any:
            raise ZeroDivisionError

    faulty = Faulty(dataset.examples, dataset.tokens, dataset._store, task="toy")
    with pytest.raises(ZeroDivisionError) as caught:
        read(faulty, 1, workers=1)
    (note,) = caught.value.__notes__
    assert note.startswith("In a reading process:\nTraceback")
    assert "raise ZeroDivisionError" in note


def test_reading_processes_outlive_stop_signals_and_end_with_the_iterator(dataset: ExampleDataset) -> None:
    batches = training_batches(dataset, batch_size=BATCH_SIZE, bucket_width=8, seed=3, workers=2)
    found = [next(batches), next(batches)]  # one of each process, so both are ready for signals
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            os.kill(worker.pid or 0, number)
    found += islice(batches, 2 * STEPS)
    assert all_equal(found, read(dataset, 2 * STEPS + 2))
    assert all(worker.is_alive() for worker in workers)
    batches.close()  # type: ignore[attr-defined]
    assert not any(worker.is_alive() for worker in workers)
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_a_dataset_can_be_sent_to_a_process_that_was_not_forked(dataset: ExampleDataset) -> None:
    sent = pickle.loads(pickle.dumps(dataset))
    assert all_equal(read(sent, 2), read(dataset, 2))


def test_a_set_smaller_than_a_batch_is_one_batch(make_dataset: Make) -> None:
    small = make_dataset(5)
    found = read(small, 2)
    assert [placed[:2] for placed in found] == [(0, 0), (1, 0)]
    assert all(sorted(placed.batch.example_ids) == ["q0", "q1", "q2", "q3", "q4"] for placed in found)
    uneven = [read(small, 1, rank=rank, world=4)[0] for rank in range(4)]
    assert sorted(example_id for placed in uneven for example_id in placed.batch.example_ids) == [
        f"q{number}" for number in range(5)
    ]


def test_an_impossible_start_is_refused_at_the_call(dataset: ExampleDataset) -> None:
    with pytest.raises(IncompatibleError) as caught:
        training_batches(dataset, batch_size=BATCH_SIZE, bucket_width=8, seed=0, epoch=2, position=5)
    assert str(caught.value) == (
        "Training cannot go on at batch 5 of epoch 2: with 50 examples and data.batch_size=12 an epoch has 4. Give the "
        "data and data.batch_size that the run was started with, or start a new run in another folder"
    )


def test_batches_that_processes_cannot_share_are_refused_at_the_call(dataset: ExampleDataset) -> None:
    with pytest.raises(UsageError, match="A batch has 12 examples, over all processes, but there are 5 of them"):
        training_batches(dataset, batch_size=12, bucket_width=8, seed=0, world=5)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_gives_every_example_once_and_no_targets(dataset: ExampleDataset, world: int, workers: int) -> None:
    found = [
        batch
        for rank in range(world)
        for batch in evaluation_batches(dataset, batch_size=7, bucket_width=8, rank=rank, world=world, workers=workers)
    ]
    ids = [example_id for batch in found for example_id in batch.example_ids]
    assert sorted(ids) == sorted(example.example_id for example in dataset.examples)
    for batch in found:
        assert batch.target_mask.sum(dim=1).eq(1).all()  # the end token alone
        assert batch.target_ids[batch.target_mask].eq(1).all()
        assert batch.target_weights.eq(0).all()
    assert all(len(batch.example_ids) <= 7 for batch in found)


def answered(dataset: ExampleDataset, *, world: int = 1, done: Collection[str] = (), workers: int = 0) -> list[Batch]:
    """The batches of all processes, in the order of one process."""
    shares = [
        list(
            evaluation_batches(
                dataset, batch_size=7, bucket_width=8, rank=rank, world=world, workers=workers, done=done
            )
        )
        for rank in range(world)
    ]
    return [one for row in zip_longest(*shares) for one in row if one is not None]


@pytest.mark.parametrize("world", [2, 3, 4, 9])
def test_evaluation_batches_are_the_same_on_any_number_of_processes(dataset: ExampleDataset, world: int) -> None:
    alone, shared = answered(dataset), answered(dataset, world=world)
    assert len(alone) == 8
    assert len(shared) == len(alone)
    assert all(map(equal, shared, alone))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_batches_that_are_answered_are_left_out_and_the_others_stay_as_they_were(
    dataset: ExampleDataset, world: int, workers: int
) -> None:
    alone = answered(dataset)
    for places in ((), (0,), (0, 1, 5), (7,), range(8)):
        done = {example_id for place in places for example_id in alone[place].example_ids}
        left = [batch for place, batch in enumerate(alone) if place not in places]
        found = answered(dataset, world=world, done=done, workers=workers)
        assert len(found) == len(left)
        assert all(map(equal, found, left))


def test_a_batch_that_is_answered_in_part_is_answered_whole(dataset: ExampleDataset) -> None:
    """Its answers must not depend on where the evaluation was stopped."""
    alone = answered(dataset)
    found = answered(dataset, done=set(alone[2].example_ids[1:]) | set(alone[3].example_ids))
    assert len(found) == len(alone) - 1
    assert all(map(equal, found, alone[:3] + alone[4:]))


def test_what_is_left_is_shared_equally(dataset: ExampleDataset) -> None:
    done = {example_id for batch in answered(dataset)[::2] for example_id in batch.example_ids}
    shares = [
        list(evaluation_batches(dataset, batch_size=7, bucket_width=8, rank=rank, world=2, done=done))
        for rank in range(2)
    ]
    assert [len(share) for share in shares] == [2, 2]


def test_done_ids_of_other_examples_do_not_matter(dataset: ExampleDataset) -> None:
    assert len(answered(dataset, done={"elsewhere"})) == 8


def test_batches_carry_the_name_of_their_task(dataset: ExampleDataset) -> None:
    assert {batch.task for batch in answered(dataset)} == {"toy"}
    assert read(dataset, 1)[0].batch.task == "toy"


def test_no_examples_give_no_evaluation_batches(make_dataset: Make) -> None:
    assert list(evaluation_batches(make_dataset(0), batch_size=7, bucket_width=8)) == []
