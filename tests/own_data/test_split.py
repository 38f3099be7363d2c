from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest

from dept_vl.own_data.rows import OwnRow
from dept_vl.own_data.split import DEFAULT, parse_fractions, split_as_said, split_by_image
from feature_extraction.errors import InputDataError, UsageError

MakeRow = Callable[..., OwnRow]
FRACTIONS = parse_fractions(DEFAULT)


def places(splits: dict[str, list[OwnRow]]) -> dict[str, set[str]]:
    """For each image the splits that have it."""
    images = {image_id for rows in splits.values() for row in rows for image_id in row.image_ids}
    return {
        image_id: {name for name, rows in splits.items() if any(image_id in row.image_ids for row in rows)}
        for image_id in images
    }


def sizes(splits: dict[str, list[OwnRow]]) -> list[int]:
    return [len(rows) for rows in splits.values()]


@pytest.fixture
def rows(make_row: MakeRow) -> list[OwnRow]:
    """500 questions about 100 images, of 1 to 9 each."""
    counts = [number % 9 + 1 for number in range(100)]
    images = [f"image{image}" for image, count in enumerate(counts) for _ in range(count)]
    return [make_row(number, image) for number, image in enumerate(images, start=1)]


@pytest.fixture
def pairs(make_row: MakeRow) -> list[OwnRow]:
    """300 rows of two images each; 100 chains of four images hang together."""
    images = [(f"{chain}-{link}", f"{chain}-{link + 1}") for link in range(3) for chain in range(100)]
    return [make_row(number, *pair) for number, pair in enumerate(images, start=1)]


def test_no_image_is_in_two_splits(rows: list[OwnRow], pairs: list[OwnRow]) -> None:
    for table in (rows, pairs):
        assert {len(names) for names in places(split_by_image(table, FRACTIONS, 0)).values()} == {1}


def test_rows_that_hang_together_over_other_rows_stay_together(pairs: list[OwnRow]) -> None:
    for members in split_by_image(pairs, FRACTIONS, 0).values():
        chains = [row.image_ids[0].split("-")[0] for row in members]
        assert all(chains.count(chain) == 3 for chain in chains)


@pytest.mark.parametrize("seed", range(5))
def test_sizes_are_the_wanted_ones(rows: list[OwnRow], pairs: list[OwnRow], seed: int) -> None:
    count = len(rows)
    for size, share in zip(sizes(split_by_image(rows, FRACTIONS, seed)), (0.8, 0.1, 0.1), strict=True):
        assert abs(size - share * count) <= 9  # no more than the rows of one image
    assert sizes(split_by_image(pairs, parse_fractions("0.5,0.25,0.25"), seed)) == [150, 75, 75]


def test_every_row_is_in_one_split_in_the_order_of_the_table(rows: list[OwnRow]) -> None:
    splits = split_by_image(rows, FRACTIONS, 0)
    assert list(splits) == ["train", "validation", "test"]
    for members in splits.values():
        assert [row.number for row in members] == sorted(row.number for row in members)
    assert sorted(row.number for members in splits.values() for row in members) == [row.number for row in rows]


def test_the_order_of_the_table_makes_no_difference_to_the_images(rows: list[OwnRow], pairs: list[OwnRow]) -> None:
    for table in (rows, pairs):
        shuffled = random.Random(1).sample(table, len(table))
        assert places(split_by_image(shuffled, FRACTIONS, 3)) == places(split_by_image(table, FRACTIONS, 3))


def test_another_seed_is_another_split_and_the_same_seed_the_same(rows: list[OwnRow]) -> None:
    assert split_by_image(rows, FRACTIONS, 1) == split_by_image(rows, FRACTIONS, 1)
    assert places(split_by_image(rows, FRACTIONS, 1)) != places(split_by_image(rows, FRACTIONS, 2))


def test_images_with_many_rows_are_in_all_splits(rows: list[OwnRow]) -> None:
    for members in split_by_image(rows, FRACTIONS, 0).values():
        images = {row.image_ids[0] for row in members}
        assert 3.5 < len(members) / len(images) < 6.5  # 4.96 in the table


def test_what_fits_only_into_train_goes_there(make_row: MakeRow) -> None:
    large = [make_row(number, "large") for number in range(1, 71)]
    for seed in range(5):
        splits = split_by_image(
            [*large, *(make_row(number, f"{number}") for number in range(71, 101))], FRACTIONS, seed
        )
        assert sizes(splits) == [80, 10, 10]
        assert places(splits)["large"] == {"train"}


def test_a_test_split_may_be_left_out(rows: list[OwnRow]) -> None:
    assert parse_fractions("0.9,0.1,0") == {"train": 0.9, "validation": 0.1}
    assert list(split_by_image(rows, parse_fractions("0.9,0.1,0"), 0)) == ["train", "validation"]


@pytest.mark.parametrize(
    "text",
    ["0.8,0.2", "0.8,0.1,0.2", "0.5,0,0.5", "0,0.5,0.5", "1,0,0", "1.2,-0.1,-0.1", "a,b,c", "80,10,10", "nan,1,0"],
)
def test_shares_that_make_no_split_are_refused(text: str) -> None:
    message = f"--split is '{text}'. It is three shares, of train, validation and test, that add up to 1, as in 0.8,0.1"
    with pytest.raises(UsageError, match=message):
        parse_fractions(text)


def test_too_few_images_are_refused(make_row: MakeRow) -> None:
    message = (
        "^20 rows are too few to split: of the shares 0.8 for train, 0.1 for validation, 0.1 for test, nothing is left "
        "for validation and test. Rows that share an image stay together, which leaves 1 groups to divide. Add rows "
        "with other images, change --split, or say the split of each row in a column of that name$"
    )
    with pytest.raises(InputDataError, match=message):
        split_by_image([make_row(number, "a") for number in range(1, 21)], FRACTIONS, 0)


def test_ten_images_are_enough(make_row: MakeRow) -> None:
    assert sizes(split_by_image([make_row(number, f"{number}") for number in range(1, 11)], FRACTIONS, 0)) == [8, 1, 1]


def said(make_row: MakeRow, names: Iterable[str]) -> list[OwnRow]:
    return [make_row(number, "a", split=name) for number, name in enumerate(names, start=1)]


def test_the_table_may_say_the_splits(make_row: MakeRow) -> None:
    splits = split_as_said(said(make_row, ["test", "train", "validation", "train"]))
    assert {name: [row.number for row in rows] for name, rows in splits.items()} == {
        "train": [2, 4],
        "validation": [3],
        "test": [1],
    }
    assert list(split_as_said(said(make_row, ["validation", "train"]))) == ["train", "validation"]


def test_a_table_without_train_or_validation_is_refused(make_row: MakeRow) -> None:
    with pytest.raises(InputDataError, match=r"^No row has the split validation. Training needs train, and validation"):
        split_as_said(said(make_row, ["train", "test"]))
    with pytest.raises(InputDataError, match=r"^No row has the split train or validation. .* or leave out the column"):
        split_as_said(said(make_row, ["test"]))
