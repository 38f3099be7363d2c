"""Intervals and tests, against scipy and values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dept_vl.sweeping.statistics import (
    NO_INTERVAL,
    example_interval,
    holm,
    is_mean,
    permutation_p,
    seed_interval,
)


def test_the_interval_over_seeds_is_student_s() -> None:
    scores = [70.0, 72.0, 77.0]
    low, high, over = seed_interval(scores)
    expected = stats.t.interval(0.95, 2, loc=np.mean(scores), scale=stats.sem(scores))
    assert (low, high, over) == (pytest.approx(expected[0]), pytest.approx(expected[1]), "seeds")
    assert high - 73 == pytest.approx(4.3027 * 13**0.5 / 3**0.5, rel=1e-4)  # t(2) = 4.3027, s = sqrt(13)


def test_one_seed_alone_has_no_such_interval() -> None:
    assert seed_interval([70.0]) == NO_INTERVAL


def test_one_seed_has_an_interval_over_its_examples() -> None:
    per_example = {str(number): float(number % 2) for number in range(400)}
    low, high, over = example_interval(50.0, per_example)
    assert over == "examples"
    assert (low, high) == (pytest.approx(45.1, abs=0.5), pytest.approx(54.9, abs=0.5))  # 50 ± 1.96 * 50 / sqrt(400)


def test_a_score_that_is_no_mean_over_examples_has_none() -> None:
    assert example_interval(61.0, {"a": 1.0, "b": 0.0}) == NO_INTERVAL
    assert is_mean(33.33, dict.fromkeys("ab", 0.0) | {"c": 1.0})
    assert not is_mean(None, {"a": 1.0})
    assert not is_mean(0.0, {})


def test_three_seeds_give_a_quarter_at_best() -> None:
    assert permutation_p([1.0, 2.0, 3.0]) == 0.25
    assert permutation_p([-1.0, -2.0, -3.0]) == 0.25


def test_a_permutation_test_by_hand() -> None:
    # Of the 16 sums of ±1 ±1 ±1 ±2, those as far from zero as 3: ±5 (1 each) and ±3 (3 each).
    assert permutation_p([1.0, 1.0, -1.0, 2.0]) == 8 / 16


def test_equal_runs_do_not_differ() -> None:
    assert permutation_p([0.0] * 9) == 1.0
    assert permutation_p([]) == 1.0
    assert permutation_p([0.0, 1.0]) == 1.0


def test_many_examples_come_near_to_the_normal_test_and_are_equal_each_time() -> None:
    differences = np.random.default_rng(0).normal(0.08, 1.0, size=500)
    p = permutation_p(list(differences))
    assert p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)
    assert p == permutation_p(list(differences))


def test_examples_on_which_both_are_equal_change_nothing() -> None:
    assert permutation_p([1.0, 0.0, 1.0, 0.0, 1.0]) == permutation_p([1.0, 1.0, 1.0])


def test_holm_corrects_as_in_his_paper() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
