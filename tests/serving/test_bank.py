"""The bank: what lies where, room that grows and is used again, and rows by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dept_vl.serving.bank import AdapterBank
from feature_extraction.errors import UsageError

HIDDEN = 4


def bank(capacity: int = 16, dtype: torch.dtype = torch.float32) -> AdapterBank:
    return AdapterBank(hidden_size=HIDDEN, dtype=dtype, device=torch.device("cpu"), capacity=capacity)


def rows(count: int, value: float) -> Tensor:
    """Rows of value, value + 0.1, ..."""
    return (value + 0.1 * torch.arange(count))[:, None].expand(count, HIDDEN)


def read(bank: AdapterBank, names: list[str], mask: Tensor) -> tuple[Tensor, Tensor]:
    """The first number of every position, of texts of zeros."""
    embedded, real = bank.put_before(names, torch.zeros(*mask.shape, HIDDEN), mask)
    return embedded[..., 0], real


def test_each_row_gets_its_own_prompt_and_the_rows_of_its_own_table() -> None:
    made = bank()
    made.add("a", rows(2, 1), rows(3, 5))
    made.add("b", rows(1, 2), rows(1, 7))
    made.add("c", rows(0, 0), rows(0, 0))
    embedded, real = read(made, ["b", "a", "c", "a"], torch.ones(4, 4, dtype=torch.bool))
    assert real.tolist() == [[True, False, *[True] * 4], [True] * 6, [False, False, *[True] * 4], [True] * 6]
    expected = [[2, 0, 7, 0, 0, 0], [1, 1.1, 5, 5.1, 5.2, 0], [0] * 6, [1, 1.1, 5, 5.1, 5.2, 0]]
    assert torch.allclose(embedded * real, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("left", [False, True])
def test_positions_count_real_tokens_wherever_the_padding_stands(left: bool) -> None:
    made = bank()
    made.add("a", rows(0, 0), rows(3, 5))
    mask = torch.tensor([[True, True, False]])
    embedded, _ = read(made, ["a"], mask.flip(1) if left else mask)
    assert torch.allclose(embedded, torch.tensor([[0, 5, 5.1]]) if left else torch.tensor([[5, 5.1, 0]]))


def test_room_grows_and_everything_stays_what_it_was() -> None:
    made = bank(capacity=4)
    for number in range(10):
        made.add(str(number), rows(1, number), rows(2, number + 100))
    assert made.bytes < 1.25 * 32 * HIDDEN * 4  # 31 rows are in use, the zero row included
    embedded, _ = read(made, [str(number) for number in range(10)], torch.ones(10, 2, dtype=torch.bool))
    assert torch.allclose(embedded, torch.stack([torch.tensor([n, n + 100, n + 100.1]) for n in range(10)]))


def test_room_of_removed_adapters_is_used_again() -> None:
    made = bank(capacity=16)
    for name in "abc":
        made.add(name, rows(1, ord(name)), rows(4, 200 + ord(name)))
    size = made.bytes
    for turn in range(30):
        made.remove("b")
        made.add("b", rows(1 + turn % 2, turn), rows(4 - turn % 2, turn + 50))
    assert (made.bytes, made.names()) == (size, ["a", "c", "b"])
    embedded, real = read(made, ["a", "b", "c"], torch.ones(3, 1, dtype=torch.bool))
    first = [row[mask].tolist() for row, mask in zip(embedded, real, strict=True)]
    assert first == [pytest.approx(row) for row in ([97, 297], [29, 29.1, 79], [99, 299])]


def test_holes_between_adapters_are_joined_when_no_hole_is_large_enough() -> None:
    made = bank(capacity=13)  # full with four adapters of three rows
    for name in "abcd":
        made.add(name, rows(1, ord(name)), rows(2, ord(name)))
    made.remove("a")
    made.remove("c")
    made.add("e", rows(2, 1), rows(4, 2))
    assert made.bytes == 13 * HIDDEN * 4
    embedded, real = read(made, ["b", "d", "e"], torch.ones(3, 1, dtype=torch.bool))
    first = [row[mask].tolist() for row, mask in zip(embedded, real, strict=True)]
    assert first == [pytest.approx(row) for row in ([98, 98], [100, 100], [1, 1.1, 2])]


def test_holes_next_to_each_other_are_one() -> None:
    made = bank(capacity=13)
    for name in "abcd":
        made.add(name, rows(1, 0), rows(2, 0))
    for name in "cab":
        made.remove(name)
    made.add("e", rows(5, 0), rows(4, 0))
    assert (made.bytes, made.bytes_of("e"), len(made), "a" in made) == (13 * HIDDEN * 4, 9 * HIDDEN * 4, 2, False)


def test_numbers_are_added_in_fp32_where_the_bank_s_are_bf16() -> None:
    made = bank(dtype=torch.bfloat16)
    made.add("a", rows(1, 1), rows(1, 1 / 256))
    embedded, _ = made.put_before(["a"], torch.ones(1, 1, HIDDEN, dtype=torch.bfloat16), torch.ones(1, 1).bool())
    assert embedded.dtype == torch.float32
    assert embedded[0, 1, 0].item() == 1 + 1 / 256  # in bf16 it would be 1


def test_names_that_are_not_there_or_there_already_are_refused() -> None:
    made = bank()
    with pytest.raises(UsageError, match=r"No adapter is called 'a'\. There are 0: none"):
        made.remove("a")
    made.add("colors", rows(1, 1), rows(1, 1))
    with pytest.raises(UsageError, match=r"There is an adapter 'colors' already\. Remove it first"):
        made.add("colors", rows(1, 1), rows(1, 1))
    with pytest.raises(UsageError, match=r"No adapter is called 'color'\. Did you mean 'colors'"):
        read(made, ["colors", "color"], torch.ones(2, 1, dtype=torch.bool))
    for number in range(9):
        made.add(str(number), rows(0, 0), rows(0, 0))
    with pytest.raises(UsageError, match=r"There are 10: colors, 0, 1, 2, 3, 4, 5, 6 and 2 more$"):
        made.bytes_of("color")


def test_a_thousand_adapters_take_less_than_a_gigabyte() -> None:
    """Of t5-base with m = 20, r = 60, s = 256 in bf16; by the bytes of ten of them."""
    made = AdapterBank(hidden_size=768, dtype=torch.bfloat16, device=torch.device("cpu"), capacity=2)
    for number in range(10):
        made.add(str(number), torch.zeros(20, 768), torch.zeros(256, 768))
    own = made.bytes_of("0")
    assert own == (20 + 256) * 768 * 2
    assert made.bytes <= 1.25 * (10 * own + 768 * 2)
    # While it grows the tensor is there twice: full, and a quarter larger.
    assert (1 + 1.25) * 1000 * own < 1e9
