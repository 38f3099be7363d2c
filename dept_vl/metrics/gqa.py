"""GQA's scores, digit for digit as its official script (eval.py 1.1, Hudson and Manning) has them before it prints.

Answers are compared as they stand: case, articles and spaces count. Only questions of the balanced set are scored,
though what these entail may lie outside it. The script's surprises are kept: choose-questions are binary; a question
for what things have in common has three valid answers, whatever its choices say; a reasoning step does not count if
its text has "exist" anywhere, even inside a word; answers that are nowhere gold do not count in the distribution.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dept_vl.metrics.bootstrap import percent_interval
from dept_vl.types import Scores

FIGURES = ("accuracy", "binary", "open", "consistency", "validity", "plausibility", "distribution", "ci_low", "ci_high")
GROUPS = {"per_structural": "structural", "per_semantic": "semantic", "per_steps": "steps", "per_words": "words"}
UNCOUNTED_STEPS = ("exist", "query: name", "choose name")  # anywhere in a step's text
COMMON_CHOICES = frozenset(("color", "material", "shape"))


class Choices(NamedTuple):
    """The answers that fit a question at all, and those of them that the world may hold."""

    valid: Collection[str]
    plausible: Collection[str]


class Annotation(NamedTuple):
    """What the score needs to know of a question: the answer and, of a balanced one, the rest; None is unknown.

    ``group`` is the global one, None also where there is none. ``entailed`` are ids, often with the question's own.
    """

    answer: str
    balanced: bool = True
    words: int | None = None
    steps: int | None = None
    structural: str | None = None
    semantic: str | None = None
    detailed: str | None = None
    group: str | None = None
    entailed: Sequence[str] | None = None
    choices: Choices | None = None


class _Figure(NamedTuple):
    """A number, or the reason why there is none."""

    value: float | None
    reason: str = ""


def reasoning_steps(steps: Iterable[str]) -> int:
    """How many steps count; a step's text is "operation: argument"."""
    return sum(not any(uncounted in step for uncounted in UNCOUNTED_STEPS) for step in steps)


def gqa_scores(answers: Mapping[str, str], questions: Mapping[str, Annotation]) -> Scores:
    """All figures of the script but grounding, unrounded, and a 95 % confidence interval of the accuracy.

    They are times 100, except for ``distribution``: a mean chi-square statistic, over 100 as the script prints it,
    and the lower, the better. ``answers`` has all questions. A figure is None, with the reason, where the script
    would fail, or would print 0 because no question counts; a consistency without any right answer is 0, as there.
    """
    right = {one: 1.0 if answers[one] == question.answer else 0.0 for one, question in questions.items()}
    balanced = {one: question for one, question in questions.items() if question.balanced}
    if not balanced:
        reason = "no question is of the balanced set" if questions else "the answers are withheld"
        return Scores(dict.fromkeys(FIGURES), right, dict.fromkeys(FIGURES, reason))
    overall = [right[one] for one in balanced]
    groups = {kind: _groups(balanced, right, field) for kind, field in GROUPS.items()}
    structural = groups["per_structural"]
    typed = sum(map(len, structural.values()))
    binary = [score for name, scores in structural.items() if name != "query" for score in scores]
    figures = {
        "accuracy": _Figure(_percentage(overall)),
        "binary": _of_type("binary", binary, typed, balanced),
        "open": _of_type("open", structural.get("query", []), typed, balanced),
        "consistency": _consistency(balanced, right),
        "validity": _allowed(balanced, answers, "valid"),
        "plausibility": _allowed(balanced, answers, "plausible"),
        "distribution": _distribution(balanced, answers),
    }
    metrics = {name: figure.value for name, figure in figures.items()}
    for kind, scores in groups.items():
        metrics |= {f"{kind}/{name}": _percentage(scores[name]) for name in sorted(scores)}
    reasons = {name: figure.reason for name, figure in figures.items() if figure.value is None}
    return Scores({**metrics, **percent_interval(overall)}, right, reasons)


def _percentage(scores: Collection[float]) -> float:
    return sum(scores) / len(scores) * 100


def _groups(balanced: Mapping[str, Annotation], right: Mapping[str, float], field: str) -> dict[Any, list[float]]:
    """The scores of the questions by their value of one field, where it is known."""
    place = Annotation._fields.index(field)
    groups: defaultdict[Any, list[float]] = defaultdict(list)
    for one, question in balanced.items():
        if question[place] is not None:
            groups[question[place]].append(right[one])
    return dict(groups)


def _of_type(kind: str, scores: Collection[float], typed: int, balanced: Collection[object]) -> _Figure:
    if typed < len(balanced):
        return _unknown(len(balanced) - typed, balanced, "have no structural type, as official questions files give it")
    return _Figure(_percentage(scores)) if scores else _Figure(None, f"no balanced question is {kind}")


def _consistency(balanced: Mapping[str, Annotation], right: Mapping[str, float]) -> _Figure:
    """Mean, over the questions answered right, of the accuracy on what they entail beside themselves."""
    known = {one: question.entailed for one, question in balanced.items() if question.entailed is not None}
    if len(known) < len(balanced):
        return _unknown(len(balanced) - len(known), balanced, "do not say what they entail, as official files do")
    entailed = {one: others for one, ids in known.items() if (others := [other for other in ids if other != one])}
    if not entailed:
        return _Figure(None, "no balanced question entails another")
    absent = {other for others in entailed.values() for other in others if other not in right}
    if absent:
        return _Figure(
            None,
            f"{len(absent):,} entailed questions are not among the {len(right):,} questions; it takes the file of all "
            "questions, such as val_all_questions.json, and predictions for all of them",
        )
    scores = [sum(map(right.__getitem__, others)) / len(others) for one, others in entailed.items() if right[one]]
    return _Figure(_percentage(scores) if scores else 0.0)


def _allowed(balanced: Mapping[str, Annotation], answers: Mapping[str, str], kind: str) -> _Figure:
    """How often an answer is among the valid or the plausible ones."""
    known = {one: getattr(question.choices, kind) for one, question in balanced.items() if question.choices is not None}
    if len(known) < len(balanced):
        return _unknown(len(balanced) - len(known), balanced, "have no choices, as val_choices.json gives them")
    return _Figure(
        _percentage(
            [
                answers[one] in (COMMON_CHOICES if "Common" in (balanced[one].detailed or "") else allowed)
                for one, allowed in known.items()
            ]
        )
    )


def _distribution(balanced: Mapping[str, Annotation], answers: Mapping[str, str]) -> _Figure:
    """Chi-square sum over a group's gold answers of (predicted - gold)^2 / gold, mean over the grouped questions."""
    gold: defaultdict[str, Counter[str]] = defaultdict(Counter)
    predicted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one, question in balanced.items():
        if question.group is not None:
            gold[question.group][question.answer] += 1
            predicted[question.group][answers[one]] += 1
    if not gold:
        return _Figure(None, "no balanced question belongs to a group")
    total = 0.0
    for group, counts in gold.items():
        statistic = 0.0
        for answer, count in counts.items():
            statistic += (predicted[group][answer] - count) ** 2 / count
        total += statistic * counts.total()
    return _Figure(total / sum(counts.total() for counts in gold.values()) / 100)


def _unknown(count: int, balanced: Collection[object], what: str) -> _Figure:
    return _Figure(None, f"{count:,} of {len(balanced):,} balanced questions {what}")
