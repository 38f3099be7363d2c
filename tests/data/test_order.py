from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from dept_vl.data.order import (
    ORDER,
    TARGETS,
    check_shares,
    epoch_batches,
    evaluation_order,
    random_stream,
    share,
    steps_per_epoch,
    task_turns,
)
from feature_extraction.errors import InputDataError, UsageError

LENGTHS = np.random.default_rng(5).integers(1, 21, size=1000)


def batches(seed: int = 0, epoch: int = 0, batch_size: int = 32, lengths: np.ndarray = LENGTHS) -> list[np.ndarray]:
    return epoch_batches(lengths, seed=seed, epoch=epoch, batch_size=batch_size, bucket_width=8)


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(np.array_equal(left, right) for left, right in zip(one, other, strict=True))


@pytest.mark.parametrize("batch_size", [1, 7, 32, 999, 1000])
@pytest.mark.parametrize("examples", [1, 31, 32, 97, 1000])
def test_an_epoch_has_whole_batches_of_different_examples(examples: int, batch_size: int) -> None:
    found = batches(lengths=LENGTHS[:examples], batch_size=batch_size)
    indices = np.concatenate(found)
    assert len(found) == steps_per_epoch(examples, batch_size)
    assert {len(batch) for batch in found} == {min(batch_size, examples)}
    assert len(set(indices.tolist())) == len(indices)
    assert set(indices.tolist()) <= set(range(examples))
    assert examples - len(indices) < batch_size


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert same(batches(seed=3, epoch=2), batches(seed=3, epoch=2))
    assert not same(batches(seed=3, epoch=2), batches(seed=4, epoch=2))
    assert not same(batches(seed=3, epoch=2), batches(seed=3, epoch=3))
    assert not same(batches(seed=3, epoch=2), batches(seed=2, epoch=3))


def test_the_order_of_this_version_is_kept() -> None:
    found = epoch_batches(np.arange(1, 13), seed=1, epoch=0, batch_size=4, bucket_width=8)
    assert [batch.tolist() for batch in found] == [[9, 11, 8, 10], [1, 0, 3, 5], [6, 2, 4, 7]]


def test_all_batches_but_a_few_hold_texts_of_one_bucket() -> None:
    buckets = [set(np.ceil(LENGTHS[batch] / 8).tolist()) for batch in batches()]
    assert sum(len(found) > 1 for found in buckets) <= 2  # at most the batches joined of the rests of three buckets
    assert set.union(*buckets) == {1, 2, 3}


@pytest.mark.parametrize("batch_size", [16, 32])
@pytest.mark.parametrize(("width", "rounding"), [(8, 1.10), (4, 1.04)])
def test_buckets_cost_little_more_than_rounding_each_text_up(batch_size: int, width: int, rounding: float) -> None:
    """Lengths as GLUE's, of 38 tokens in the mean."""
    lengths = np.random.default_rng(0).lognormal(np.log(38) - 0.75**2 / 2, 0.75, 8_000).clip(1, 256).astype(np.int64)
    found = epoch_batches(lengths, seed=0, epoch=0, batch_size=batch_size, bucket_width=width)
    padded = sum(-(-lengths[batch].max() // width) * width * len(batch) for batch in found)
    alone = (-(-lengths // width) * width).sum()
    assert alone / lengths.sum() == pytest.approx(rounding, abs=0.01)
    assert padded / alone < 1.02


def test_batches_of_different_lengths_are_mixed_over_the_epoch() -> None:
    means = np.array([LENGTHS[batch].mean() for batch in batches()])
    first, second = np.array_split(means, 2)
    assert abs(first.mean() - second.mean()) < 4


def test_the_rare_longest_texts_are_not_the_ones_left_out() -> None:
    lengths = np.array([5] * 96 + [20] * 4)  # 4 of 100 do not fill a batch of 32
    seen = [set(np.concatenate(batches(epoch=epoch, lengths=lengths)).tolist()) for epoch in range(20)]
    assert all(len(found) == 96 for found in seen)
    assert sum(index in found for found in seen for index in range(96, 100)) > 60  # of 80; without care it is 0


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_shares_of_all_processes_are_the_batch(world: int) -> None:
    for batch in batches(batch_size=12):
        shares = [share(batch, rank=rank, world=world) for rank in range(world)]
        assert {len(one) for one in shares} == {12 // world}
        assert np.array_equal(np.stack(shares, axis=1).ravel(), batch)


def test_streams_of_different_purpose_differ() -> None:
    order, targets = (random_stream(purpose, seed=1, epoch=1).random(4) for purpose in (ORDER, TARGETS))
    assert not np.isin(order, targets).any()


def test_a_batch_size_that_processes_cannot_share_is_refused() -> None:
    check_shares(100, batch_size=32, world=4)
    with pytest.raises(UsageError) as caught:
        check_shares(100, batch_size=32, world=3)
    assert str(caught.value) == (
        "A batch has 32 examples, over all processes, but there are 3 of them and each takes an equal part. "
        "Set data.batch_size, or the task's own task.batch_size, to 33, or start another number of processes"
    )


@pytest.mark.parametrize("examples", [0, 3])
def test_fewer_examples_than_processes_are_refused(examples: int) -> None:
    with pytest.raises(InputDataError, match=f"{examples} training examples for 4 processes: each needs at least one"):
        check_shares(examples, batch_size=32, world=4)


@pytest.mark.parametrize("batch_size", [1, 7, 32])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("examples", [0, 1, 97, 99, 1000])
def test_evaluation_covers_every_example_once(examples: int, world: int, batch_size: int) -> None:
    found = [
        batch
        for rank in range(world)
        for batch in evaluation_order(LENGTHS[:examples], batch_size=batch_size)[rank::world]
    ]
    assert sorted(index for batch in found for index in batch.tolist()) == list(range(examples))
    assert all(0 < len(batch) <= batch_size for batch in found)


def test_evaluation_starts_with_the_longest_and_keeps_the_order_of_equals() -> None:
    assert [batch.tolist() for batch in evaluation_order(np.array([3, 9, 3, 9, 5]), batch_size=2)] == [
        [1, 3],
        [4, 0],
        [2],
    ]


SIZES = {"vqa": 30, "caption": 6, "nlvr2": 4}  # steps in an epoch


def turns(**changes: Any) -> list[tuple[str, int]]:
    settings = {"epoch_steps": SIZES, "total_steps": 80, "temperature": 1.0, "seed": 3}
    return list(task_turns(**(settings | changes)))


def counts(**changes: Any) -> dict[str, int]:
    return Counter(task for task, _ in turns(**changes))


@pytest.mark.parametrize("epochs", [1, 2, 20])
def test_at_temperature_one_every_task_is_gone_through_equally_often(epochs: int) -> None:
    assert counts(total_steps=40 * epochs) == {name: size * epochs for name, size in SIZES.items()}


@pytest.mark.parametrize("total", [40, 41, 55, 79, 1000])
def test_shares_come_out_to_less_than_a_step(total: int) -> None:
    found = counts(total_steps=total)
    assert sum(found.values()) == total
    assert all(abs(found[name] - size / 40 * total) < 1 for name, size in SIZES.items())


def test_shares_go_with_the_power_of_the_sizes_that_the_temperature_is_the_inverse_of() -> None:
    roots = {name: size**0.5 for name, size in SIZES.items()}
    found = counts(total_steps=1000, temperature=2.0)
    assert all(abs(found[name] - 1000 * root / sum(roots.values())) < 1 for name, root in roots.items())


def test_a_huge_temperature_makes_the_shares_equal_and_a_tiny_one_leaves_each_other_task_one_turn() -> None:
    assert counts(total_steps=90, temperature=1e9) == {"vqa": 30, "caption": 30, "nlvr2": 30}
    large = {name: 10_000 * size for name, size in SIZES.items()}
    assert counts(epoch_steps=large, temperature=0.01) == {"vqa": 78, "caption": 1, "nlvr2": 1}


@pytest.mark.parametrize("total", [3, 4, 5, 10])
def test_every_task_has_at_least_one_turn(total: int) -> None:
    found = counts(epoch_steps={"vqa": 1_000_000, "caption": 1, "nlvr2": 1}, total_steps=total)
    assert found == {"vqa": total - 2, "caption": 1, "nlvr2": 1}


def test_of_fewer_steps_than_tasks_each_is_another_task_s() -> None:
    assert counts(epoch_steps=dict.fromkeys("abcd", 5), total_steps=3).most_common(1)[0][1] == 1
    assert turns(total_steps=0) == []


def test_each_task_s_own_steps_count_up_from_zero() -> None:
    found = turns()
    for name in SIZES:
        own = [step for task, step in found if task == name]
        assert own == list(range(len(own)))


def test_turns_are_a_function_of_the_seed() -> None:
    assert turns() == turns()
    assert turns() != turns(seed=4)
    assert counts() == counts(seed=4)


def test_turns_are_mixed_over_the_whole_run() -> None:
    found = [task for task, _ in turns(total_steps=400)]
    for part in (found[:100], found[100:200], found[200:300], found[300:]):
        assert abs(part.count("vqa") - 75) < 18  # four standard deviations: 4 * sqrt(100 * 0.75 * 0.25)


def test_the_turns_of_this_version_are_kept() -> None:
    assert "".join(task[0] for task, _ in turns(total_steps=20)) == "vvvvnvvvvncvcvcvvvvv"


def test_one_task_alone_has_all_turns() -> None:
    assert turns(epoch_steps={"vqa": 3}, total_steps=5) == [("vqa", step) for step in range(5)]
