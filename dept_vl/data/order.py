"""Which example is trained on or answered when: a pure function of seed, epoch and position.

Nothing here is kept between calls, so a run that goes on at some position, or on another number of processes,
meets the same examples in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from feature_extraction.errors import InputDataError, UsageError

Indices = Int64[np.ndarray, " _"]  # of examples, any number

# What a random stream is for; beside seed and epoch in the generator's seed, so that no two streams are the same.
ORDER, TARGETS, TASKS = 1, 2, 3


def random_stream(purpose: int, *, seed: int, epoch: int) -> np.random.Generator:
    """The random numbers of one purpose in one epoch, the same wherever they are drawn."""
    return np.random.Generator(np.random.PCG64([purpose, seed, epoch]))


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Batches in an epoch: whole ones only, and at least one."""
    return max(examples // batch_size, 1)


def epoch_batches(
    lengths: Int64[np.ndarray, " examples"], *, seed: int, epoch: int, batch_size: int, bucket_width: int
) -> list[Indices]:
    """The example indices of each batch of an epoch, over all processes.

    The examples are shuffled, as many are left out as would not fill a batch, and the rest is gathered in buckets of
    similar length, ceil(length / bucket_width). A bucket gives whole batches; what remains of all buckets is joined,
    shorter first, to further ones. The batches are shuffled in turn. A set smaller than one batch is one batch.

    ``lengths`` counts the tokens of each example's text.
    """
    generator = random_stream(ORDER, seed=seed, epoch=epoch)
    shuffled = generator.permutation(len(lengths))
    # Left out before there are buckets: dropping the last batch would mostly miss the longest texts, in every epoch.
    whole = min(steps_per_epoch(len(lengths), batch_size) * batch_size, len(lengths))
    shuffled = shuffled[:whole]
    buckets = -(-lengths[shuffled] // bucket_width)
    batches, rests = [], []
    for bucket in np.unique(buckets):
        members = shuffled[buckets == bucket]
        full = len(members) // batch_size * batch_size
        batches += np.split(members[:full], full // batch_size) if full else []
        rests.append(members[full:])
    rest = np.concatenate(rests)
    batches += [rest[start : start + batch_size] for start in range(0, len(rest), batch_size)]
    return [batches[index] for index in generator.permutation(len(batches))]


def share(batch: Indices, *, rank: int, world: int) -> Indices:
    """The part of a batch that process ``rank`` of ``world`` takes."""
    return batch[rank::world]


def check_shares(examples: int, *, batch_size: int, world: int) -> None:
    """Refuse batches that the processes could not share equally.

    Raises:
        UsageError: the batch size is no multiple of the number of processes.
        InputDataError: there are fewer examples than processes.
    """
    if batch_size % world:
        nearest = max(round(batch_size / world), 1) * world
        raise UsageError(
            f"A batch has {batch_size} examples, over all processes, but there are {world} of them and each takes an "
            f"equal part. Set data.batch_size, or the task's own task.batch_size, to {nearest}, or start another "
            "number of processes"
        )
    if examples < world:
        raise InputDataError(
            f"{examples} training examples for {world} processes: each needs at least one at every step. "
            "Give more examples or start fewer processes"
        )


def evaluation_order(lengths: Int64[np.ndarray, " examples"], *, batch_size: int) -> list[Indices]:
    """The batches to answer: every example exactly once.

    The longest texts come first: if memory does not suffice, that shows at once.
    """
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


class Turn(NamedTuple):
    """Which task a step trains, and how many of its steps came before."""

    task: str
    step: int


def task_turns(epoch_steps: Mapping[str, int], *, total_steps: int, temperature: float, seed: int) -> Sequence[Turn]:
    """The task of every step of a run.

    Tasks take turns at random, each in the share size^(1/temperature), where a task's size is its steps in an epoch:
    with temperature 1 and as many steps as all epochs have, each is gone through equally often, as in the multi-task
    training of VL-T5 and VL-Adapter; the larger the temperature, the more equal the shares. Each task has at least one
    turn where there are as many steps as tasks.
    """
    names = list(epoch_steps)
    sizes = np.array([epoch_steps[name] for name in names], dtype=np.float64)
    weights = (sizes / sizes.max()) ** (1 / temperature)  # relative ones, as no power makes them infinite
    # Largest remainders: the shares come out to a step, not only on average.
    exact = weights / weights.sum() * total_steps
    counts = np.floor(exact).astype(np.int64)
    if total_steps >= len(names):
        counts = np.maximum(counts, 1)
    for index in np.argsort(-(exact - counts), kind="stable")[: max(total_steps - int(counts.sum()), 0)]:
        counts[index] += 1
    while counts.sum() > total_steps:
        counts[counts.argmax()] -= 1
    order = random_stream(TASKS, seed=seed, epoch=0).permutation(np.repeat(np.arange(len(names)), counts))
    before = [0] * len(names)
    turns = []
    for index in order.tolist():
        turns.append(Turn(names[index], before[index]))
        before[index] += 1
    return turns
