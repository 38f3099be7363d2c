from __future__ import annotations

import random

import pytest

from dept_vl.metrics import bootstrap
from dept_vl.metrics.bootstrap import bootstrap_interval, percent_interval


def test_it_is_the_normal_interval_for_many_examples() -> None:
    low, high = bootstrap_interval([0.0, 1.0] * 50_000, resamples=20_000)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.5 / 100_000**0.5, 0.5 + 1.96 * 0.5 / 100_000**0.5), abs=1e-4)


def test_equal_scores_leave_no_doubt() -> None:
    assert bootstrap_interval([0.3] * 7) == pytest.approx((0.3, 0.3))


def test_it_lies_around_the_mean_within_the_scores() -> None:
    scores = [0.0, 0.3, 0.6, 0.9, 1.0, 1.0, 1.0]
    low, high = bootstrap_interval(scores)
    assert 0 <= low < sum(scores) / len(scores) < high <= 1


def test_the_seed_decides_and_the_order_does_not() -> None:
    generator = random.Random(1)
    scores = [generator.random() for _ in range(200)]
    shuffled = generator.sample(scores, len(scores))
    assert bootstrap_interval(scores, seed=3) == bootstrap_interval(shuffled, seed=3)
    assert bootstrap_interval(scores, seed=3) != bootstrap_interval(scores, seed=4)


def test_drawing_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [0.1 * value for value in range(10)]
    at_once = bootstrap_interval(scores)
    monkeypatch.setattr(bootstrap, "DRAWN_AT_ONCE", 64)
    assert bootstrap_interval(scores) == at_once


def test_no_scores_have_no_interval() -> None:
    with pytest.raises(ValueError, match=r"No scores to resample. A confidence interval needs at least one example"):
        bootstrap_interval([])


def test_in_percent_it_is_rounded_to_two_decimals_and_null_without_scores() -> None:
    low, high = bootstrap_interval([0.0, 1.0, 1.0])
    assert percent_interval([0.0, 1.0, 1.0]) == {"ci_low": round(100 * low, 2), "ci_high": round(100 * high, 2)}
    assert percent_interval([]) == {"ci_low": None, "ci_high": None}
