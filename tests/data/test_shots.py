"""Few-shot choices: exact, even, reproducible, and independent of everything but the examples and the seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from dept_vl.data.shots import choose_shots
from dept_vl.types import Example, Target
from feature_extraction.errors import UsageError


def examples_of(*sizes: int, targets: bool = True) -> list[Example]:
    """So many examples of the labels "0", "1", ..., mixed."""
    labels = [str(label) for label, size in enumerate(sizes) for _ in range(size)]
    order = np.random.default_rng(0).permutation(len(labels))
    return [
        Example(str(number), "text", (), targets=(Target(labels[place], 1.0),) if targets else ())
        for number, place in enumerate(order)
    ]


def names(sizes: Sequence[int]) -> tuple[str, ...]:
    return tuple(map(str, range(len(sizes))))


def counts(chosen: Sequence[Example]) -> Counter[str]:
    return Counter(example.targets[0].text for example in chosen)


def ids(chosen: Sequence[Example]) -> list[str]:
    return [example.example_id for example in chosen]


@pytest.mark.parametrize("count", [1, 2, 4, 16, 31, 32, 33])
@pytest.mark.parametrize("sizes", [(60, 60), (200, 16, 119), (30,) * 26, (40, 40, 40, 40, 40)], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 42])
def test_there_are_exactly_k_for_any_number_of_labels_and_labels_differ_by_at_most_one(
    sizes: tuple[int, ...], count: int, seed: int
) -> None:
    chosen = choose_shots(examples_of(*sizes), count, labels=names(sizes), seed=seed)
    found = [counts(chosen)[name] for name in names(sizes)]
    assert sum(found) == len(set(ids(chosen))) == count
    assert max(found) - min(found) <= 1


def test_thirty_two_of_three_labels_are_thirty_two() -> None:
    # The official code takes 10 of each and stops at 30.
    sizes = (115, 119, 16)
    assert sorted(counts(choose_shots(examples_of(*sizes), 32, labels=names(sizes), seed=0)).values()) == [10, 11, 11]


def test_the_seed_draws_which_labels_get_one_more() -> None:
    examples = examples_of(20, 20, 20)
    extra = {
        name
        for seed in range(20)
        for name, count in counts(choose_shots(examples, 4, labels=names((0, 0, 0)), seed=seed)).items()
        if count == 2
    }
    assert extra == {"0", "1", "2"}


def test_a_label_with_too_few_leaves_its_share_to_the_others_and_this_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = choose_shots(examples_of(30, 2, 30), 16, labels=("0", "1", "2", "3"), seed=0)
    assert counts(chosen) == {"0": 7, "1": 2, "2": 7}
    assert capsys.readouterr().err == (
        "data.shots=16: of these labels the training split has too few examples for an equal share, and the other "
        "labels take it: '1' (2), '3' (0)\n"
    )


def test_nothing_is_said_where_all_labels_have_enough(capsys: pytest.CaptureFixture[str]) -> None:
    choose_shots(examples_of(30, 30, 30), 16, labels=("0", "1", "2"), seed=0)
    choose_shots(examples_of(30, 30, 30), 2, labels=("0", "1", "2"), seed=0)
    choose_shots(examples_of(30, 2), 16, labels=(), seed=0)
    assert capsys.readouterr().err == ""


def test_without_labels_every_example_is_as_likely() -> None:
    examples = examples_of(*[1] * 10)
    drawn = Counter(one for seed in range(500) for one in ids(choose_shots(examples, 4, labels=(), seed=seed)))
    assert len(drawn) == 10
    assert all(150 < count < 250 for count in drawn.values())  # 200 expected, standard deviation 11


def test_the_original_order_is_kept() -> None:
    chosen = choose_shots(examples_of(50, 50), 32, labels=("0", "1"), seed=3)
    assert ids(chosen) == sorted(ids(chosen), key=int)


def test_equal_seeds_choose_equally_and_others_otherwise() -> None:
    examples = examples_of(50, 50)
    first, again, other = (ids(choose_shots(examples, 16, labels=("0", "1"), seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_no_other_random_numbers_have_a_say_and_none_are_used_up() -> None:
    examples = examples_of(50, 50)
    first = ids(choose_shots(examples, 16, labels=("0", "1"), seed=0))
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global generator is what must not matter
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert ids(choose_shots(examples, 16, labels=("0", "1"), seed=0)) == first
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_fewer_shots_are_a_part_of_more() -> None:
    examples = examples_of(60, 9, 60)
    four, sixteen, thirty_two = (
        set(ids(choose_shots(examples, count, labels=("0", "1", "2"), seed=7))) for count in (4, 16, 32)
    )
    assert four < sixteen < thirty_two


def test_all_examples_can_be_chosen() -> None:
    examples = examples_of(5, 3)
    assert choose_shots(examples, 8, labels=("0", "1"), seed=0) == examples


def test_examples_without_an_answer_are_never_chosen() -> None:
    examples = [*examples_of(3, 3), Example("9", "text", ())]
    assert "9" not in ids(choose_shots(examples, 6, labels=("0", "1"), seed=0))


@pytest.mark.parametrize("labels", [(), ("0", "1")])
def test_more_than_there_are_is_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=r"data.shots is 9, but the training split has 8 examples with an answer") as e:
        choose_shots([*examples_of(5, 3), *examples_of(2, targets=False)], 9, labels=labels, seed=0)
    assert str(e.value).endswith("Set data.shots to 8 or less, or data.shots=null for all of them")
