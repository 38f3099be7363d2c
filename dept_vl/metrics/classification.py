"""Accuracy, F1, Matthews and other correlations, as scikit-learn and scipy compute them for GLUE and SuperGLUE.

All are fractions (-1 or 0 to 1); only ``label_scores`` gives percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dept_vl.metrics.bootstrap import percent_interval
from dept_vl.types import Example, Prediction, Scores

Metric = Callable[[Sequence[str], Sequence[str]], float]  # of gold labels and answers, at least one of each


def accuracy(gold: Sequence[str], answers: Sequence[str]) -> float:
    """The share of answers that are equal to the gold label."""
    return float(np.mean([one == other for one, other in zip(gold, answers, strict=True)]))


def f1(gold: Sequence[str], answers: Sequence[str], *, positive: str) -> float:
    """2 TP / (2 TP + FP + FN) of one label; 0 where neither side has it."""
    both = sum(one == other == positive for one, other in zip(gold, answers, strict=True))
    either = sum(one == positive for one in gold) + sum(one == positive for one in answers)
    return 2 * both / either if either else 0.0


def f1_macro(gold: Sequence[str], answers: Sequence[str], *, labels: Sequence[str]) -> float:
    """The mean of all labels' F1; a label that neither side has counts as 0 (jiant, T5)."""
    return sum(f1(gold, answers, positive=label) for label in labels) / len(labels)


def matthews(gold: Sequence[str], answers: Sequence[str], *, positive: str) -> float:
    """Matthews' correlation of two labels; 0 where a side is constant."""
    pairs = list(zip([one == positive for one in gold], [one == positive for one in answers], strict=True))
    tp, tn = pairs.count((True, True)), pairs.count((False, False))
    fp, fn = pairs.count((False, True)), pairs.count((True, False))
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0


def pearson(gold: Sequence[float], answers: Sequence[float]) -> float | None:
    """Pearson's correlation; None where a side is constant, or there are fewer than two numbers."""
    x, y = np.asarray(gold, dtype=np.float64), np.asarray(answers, dtype=np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))


def spearman(gold: Sequence[float], answers: Sequence[float]) -> float | None:
    """Pearson's correlation of the ranks, equal numbers sharing their mean rank; None as there."""
    return pearson(_ranks(gold), _ranks(answers))


def label_scores(
    predictions: Sequence[Prediction],
    examples: Sequence[Example],
    labels: Sequence[str],
    metrics: Sequence[str] = ("accuracy",),
) -> Scores:
    """Scores of answers that should be one of the labels, in percent.

    Args:
        labels: as references and right answers name them. F1 and Matthews are of the second (class 1).
        metrics: some of accuracy, f1, f1_macro, matthews.

    An answer that is no label is wrong: for F1 and Matthews it counts as the other label (T5's rule for F1). Which
    share of the answers these are is "invalid". Withheld labels leave None. A 95 % confidence interval is given for the
    accuracy, which is also each example's own score.
    """
    answers = dict(predictions)
    labelled = [example for example in examples if example.references]
    gold = [example.references[0] for example in labelled]
    given = [answers[example.example_id] for example in labelled]
    wanted = _metrics(labels)
    invalid = [one.answer not in labels for one in predictions]
    right = [float(one == other) for one, other in zip(gold, given, strict=True)]
    return Scores(
        metrics={
            **{name: 100 * wanted[name](gold, given) if gold else None for name in metrics},
            "invalid": 100 * sum(invalid) / len(invalid) if invalid else None,
            "n": len(examples),
            **percent_interval(right),
        },
        per_example={example.example_id: one for example, one in zip(labelled, right, strict=True)},
    )


def _metrics(labels: Sequence[str]) -> Mapping[str, Metric]:
    if len(labels) != 2:
        return {"accuracy": accuracy, "f1_macro": lambda gold, given: f1_macro(gold, given, labels=labels)}
    other = {labels[0]: labels[1], labels[1]: labels[0]}

    def valid(gold: Sequence[str], given: Sequence[str]) -> list[str]:
        return [answer if answer in labels else other[label] for label, answer in zip(gold, given, strict=True)]

    return {
        "accuracy": accuracy,
        "f1": lambda gold, given: f1(gold, valid(gold, given), positive=labels[1]),
        "f1_macro": lambda gold, given: f1_macro(gold, valid(gold, given), labels=labels),
        "matthews": lambda gold, given: matthews(gold, valid(gold, given), positive=labels[1]),
    }


def _ranks(numbers: Sequence[float]) -> list[float]:
    """From 1; equal numbers share the mean of their places."""
    _, place, counts = np.unique(np.asarray(numbers, dtype=np.float64), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: list[float] = (ends - (counts - 1) / 2)[place].tolist()
    return ranks
