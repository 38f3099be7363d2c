"""Accuracy, F1, Matthews and other correlations by scikit-learn and scipy, with the rules of GLUE and SuperGLUE.

All are fractions (-1 or 0 to 1); only ``label_scores`` gives percent. The libraries are imported where they are used,
so that what needs no such score starts without them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from dept_vl.metrics.bootstrap import percent_interval
from dept_vl.types import Example, Prediction, Scores

Metric = Callable[[Sequence[str], Sequence[str]], float]  # of gold labels and answers, at least one of each


def accuracy(gold: Sequence[str], answers: Sequence[str]) -> float:
    """The share of answers that are equal to the gold label."""
    return float(np.mean([one == other for one, other in zip(gold, answers, strict=True)]))


def f1(gold: Sequence[str], answers: Sequence[str], *, labels: Sequence[str]) -> float:
    """The mean of the labels' F1; a label that neither side has counts as 0, as in jiant and T5."""
    from sklearn.metrics import f1_score

    found = f1_score(list(gold), list(answers), labels=list(labels), average="macro", zero_division=0)
    return float(found)


def matthews(gold: Sequence[str], answers: Sequence[str]) -> float:
    """Matthews' correlation; 0 where a side is constant."""
    from sklearn.metrics import matthews_corrcoef

    if len(set(gold)) == 1 or len(set(answers)) == 1:
        return 0.0  # as the library has it, which also warns
    return float(matthews_corrcoef(list(gold), list(answers)))


def pearson(gold: Sequence[float], answers: Sequence[float]) -> float | None:
    """Pearson's correlation; None where a side is constant, or there are fewer than two numbers."""
    from scipy.stats import NearConstantInputWarning, pearsonr

    if not _varies(gold, answers):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NearConstantInputWarning)  # a young model's answers; the number still says it
        return float(pearsonr(gold, answers).statistic)


def spearman(gold: Sequence[float], answers: Sequence[float]) -> float | None:
    """Spearman's correlation of the ranks, equal numbers sharing their mean rank; None as with Pearson's."""
    from scipy.stats import spearmanr

    return float(spearmanr(gold, answers).statistic) if _varies(gold, answers) else None


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
        return {"accuracy": accuracy, "f1_macro": partial(f1, labels=labels)}
    other = {labels[0]: labels[1], labels[1]: labels[0]}

    def valid(gold: Sequence[str], given: Sequence[str]) -> list[str]:
        return [answer if answer in labels else other[label] for label, answer in zip(gold, given, strict=True)]

    return {
        "accuracy": accuracy,
        "f1": lambda gold, given: f1(gold, valid(gold, given), labels=labels[1:]),
        "f1_macro": lambda gold, given: f1(gold, valid(gold, given), labels=labels),
        "matthews": lambda gold, given: matthews(gold, valid(gold, given)),
    }


def _varies(*sides: Sequence[float]) -> bool:
    return all(len(set(side)) > 1 for side in sides)
