from __future__ import annotations

import re

import pytest
import torch

from dept_vl.tasks.splits import PARTS, Source, shuffled, split_source, take
from feature_extraction.errors import UsageError


@pytest.mark.parametrize("count", [0, 1, 2, 3, 56, 277, 408, 1_043, 1_500, 20_000])
def test_the_order_is_that_of_torch(count: int) -> None:
    expected = torch.randperm(count, generator=torch.Generator().manual_seed(42))
    assert shuffled(count).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_the_order_is_that_of_torch_for_other_seeds(seed: int) -> None:
    assert shuffled(99, seed).tolist() == torch.randperm(99, generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize(
    ("count", "first", "second"), [(277, 138, 139), (408, 204, 204), (1_043, 521, 522), (56, 28, 28)]
)
def test_halves_are_those_of_the_published_runs(count: int, first: int, second: int) -> None:
    halves = take(range(count), "first_half"), take(range(count), "second_half")
    assert tuple(map(len, halves)) == (first, second)
    assert sorted(halves[0] + halves[1]) == list(range(count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(42)).tolist()
    assert halves == (sorted(order[:first]), sorted(order[first:]))


def test_a_thousand_are_held_out_of_a_large_set() -> None:
    held_out, rest = take(range(67_349), "held_out"), take(range(67_349), "rest")
    assert (len(held_out), len(rest)) == (1_000, 66_349)
    assert not set(held_out) & set(rest)
    order = torch.randperm(67_349, generator=torch.Generator().manual_seed(42)).tolist()
    assert held_out == sorted(order[:1_000])


def test_of_a_tiny_set_half_is_held_out() -> None:
    assert take("abcdefgh", "held_out") == take("abcdefgh", "first_half")
    assert len(take("abcdefgh", "rest")) == 4


def test_parts_keep_the_order_of_the_file_and_no_part_is_the_whole() -> None:
    items = [f"row {index:03}" for index in range(100)]
    for part in PARTS:
        assert take(items, part) == sorted(take(items, part))
    assert take(items, "") == items


def test_a_source_is_a_file_or_a_part_of_it() -> None:
    assert split_source("dev", "validation") == Source("dev")
    assert split_source("dev/first_half", "validation") == Source("dev", "first_half")
    assert [split_source(text, "test").name for text in ("dev", "dev/second_half")] == ["dev", "dev_second_half"]


@pytest.mark.parametrize("source", ["dev/first_hlaf", "dev/"])
def test_an_unknown_part_is_refused(source: str) -> None:
    part = source.partition("/")[2]
    hint = " Did you mean 'first_half'?" if part else ""
    message = (
        f"task.splits.test is {source!r}, but {part!r} is no part of a file.{hint} "
        "Write FILE, or FILE/ and one of: first_half, second_half, held_out, rest"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        split_source(source, "test")
