"""Exact match and token F1 of answers that are spans of a text, as SQuAD's, MRQA's and ReCoRD's official scripts.

The scripts (SQuAD v1.1 evaluate-v1.1.py, MRQA 2019 mrqa_official_eval.py, ReCoRD's) compare normalised texts alike.
Their surprises are kept: punctuation goes without leaving a space, so "e-mail" is "email" and "1,000" is "1000"; only
ASCII's goes, so curly quotes and long dashes stay; an answer and a reference of which nothing is left match exactly but
have F1 0, so that exact match can exceed F1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from dept_vl.metrics.bootstrap import percent_interval
from dept_vl.types import Scores

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower-case, without ASCII punctuation, without articles, with single spaces; in this order."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def exact_match(answer: str, references: Iterable[str]) -> float:
    """1 if the answer equals one of the references after normalisation, else 0."""
    return float(normalise(answer) in map(normalise, references))


def token_f1(answer: str, references: Iterable[str]) -> float:
    """The best F1, 0 to 1, between the bags of words of the answer and of a reference, both normalised."""
    words = Counter(normalise(answer).split())
    return max(_bag_f1(words, Counter(normalise(reference).split())) for reference in references)


def span_scores(answers: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> Scores:
    """Means of F1 and exact match over the questions that have references, times 100, and F1 for each question.

    ``answers`` has every question; a 95 % confidence interval is given for the mean F1. Without any references both
    are None.
    """
    scored = {one: accepted for one, accepted in references.items() if accepted}
    f1 = {one: token_f1(answers[one], accepted) for one, accepted in scored.items()}
    matches = [exact_match(answers[one], accepted) for one, accepted in scored.items()]
    metrics = {
        "f1": _percentage(list(f1.values())),
        "exact_match": _percentage(matches),
        "n": len(references),
        **percent_interval(list(f1.values())),
    }
    reasons = {} if scored else dict.fromkeys(("f1", "exact_match"), "the answers are withheld")
    return Scores(metrics, f1, reasons)


def _bag_f1(answer: Counter[str], reference: Counter[str]) -> float:
    common = (answer & reference).total()
    return 2 * common / (answer.total() + reference.total()) if common else 0.0


def _percentage(scores: Sequence[float]) -> float | None:
    return 100 * sum(scores) / len(scores) if scores else None
