"""How sure a mean over seeds is, and whether two methods differ: intervals, paired permutation tests, Holm's rule."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dept_vl.metrics.bootstrap import CONFIDENCE, bootstrap_interval

RESAMPLES = 9_999  # of a permutation test where not all permutations are counted
IN_MEMORY = 1 << 22  # signs drawn at a time
SAME = 0.01  # points by which a rounded metric may differ from the mean over the examples


class Interval(NamedTuple):
    """The 95 % confidence interval of a mean, and what it is over: "seeds", "examples", or "" where there is none."""

    low: float | None
    high: float | None
    over: str


NO_INTERVAL = Interval(None, None, "")


def seed_interval(scores: Sequence[float]) -> Interval:
    """Student's interval of the mean over the seeds: mean ± t(n - 1) · s / √n, two seeds or more."""
    if len(scores) < 2:
        return NO_INTERVAL
    from scipy.stats import t

    mean, spread = statistics.fmean(scores), statistics.stdev(scores) / math.sqrt(len(scores))
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(scores) - 1)) * spread
    return Interval(mean - half, mean + half, "seeds")


def example_interval(score: float, per_example: Mapping[str, float]) -> Interval:
    """The bootstrap interval of one run over its examples, where the score is their mean (times 100)."""
    if not is_mean(score, per_example):
        return NO_INTERVAL
    low, high = bootstrap_interval(list(per_example.values()))
    return Interval(100 * low, 100 * high, "examples")


def is_mean(score: float | None, per_example: Mapping[str, float]) -> bool:
    """Whether a score is the mean of the examples' scores, as accuracy is and CIDEr or F1 over classes are not."""
    if score is None or not per_example:
        return False
    return abs(score - 100 * statistics.fmean(per_example.values())) <= SAME


def permutation_p(differences: Sequence[float]) -> float:
    """The two-sided p-value of paired differences: how often random signs make their mean as far from zero.

    All signs are counted where they are few, so n differences give no less than 2 / 2^n: with three seeds 0.25.
    """
    from scipy.stats import permutation_test

    moved = np.asarray([one for one in differences if one != 0], dtype=np.float64)  # a sign does not change the others
    if len(moved) < 2:  # one sign alone makes the mean as far from zero, whatever it is
        return 1.0
    test = permutation_test(
        (moved,),
        np.sum,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, IN_MEMORY // len(moved)),
        rng=0,
    )
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of the p-values of several comparisons: reject below 0.05, and one error in 20 is kept."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
