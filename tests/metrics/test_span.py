from __future__ import annotations

import random
from collections import Counter

import pytest

from dept_vl.metrics.span import exact_match, normalise, span_scores, token_f1


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The e-mail", "email"),
        ("U.S.", "us"),
        ("1,000", "1000"),
        ("the-cat", "thecat"),  # punctuation goes first: what is left is one word
        ("a\tb \n c", "b c"),
        ("An apple a day, the end", "apple day end"),
        ("“quoted” — dash", "“quoted” — dash"),
        ("Łódź's thé", "łódźs thé"),
        ("the", ""),
        ("...", ""),
        ("_a_", ""),
        ("Android theory", "android theory"),
    ],
)
def test_texts_are_normalised_as_the_official_scripts_do(text: str, normalised: str) -> None:
    assert normalise(text) == normalised


def test_the_best_reference_counts() -> None:
    assert exact_match("Denver Broncos", ["the broncos", "denver broncos!"]) == 1
    assert exact_match("Broncos of Denver", ["the broncos", "denver broncos!"]) == 0
    assert token_f1("Broncos of Denver", ["the broncos", "denver broncos!"]) == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))


def test_repeated_words_count_as_often_as_both_sides_have_them() -> None:
    assert token_f1("new york new york", ["new york"]) == pytest.approx(2 * 0.5 / 1.5)
    assert token_f1("new", ["new new new"]) == pytest.approx(0.5)


def test_no_common_word_scores_nothing() -> None:
    assert token_f1("red", ["blue"]) == 0


def test_where_nothing_is_left_of_both_sides_exact_match_is_1_and_f1_is_0() -> None:
    assert (exact_match("The", ["an ..."]), token_f1("The", ["an ..."])) == (1, 0)
    assert (exact_match("", ["cat"]), token_f1("", ["cat"])) == (0, 0)


def test_scores_are_means_over_the_questions_with_references() -> None:
    answers = {"q1": "the cat", "q2": "black dog", "q3": "x", "q4": "a"}
    scores = span_scores(answers, {"q1": ["Cat"], "q2": ["dog", "a bird"], "q3": [], "q4": ["the"]})
    assert scores.per_example == {"q1": 1.0, "q2": pytest.approx(2 / 3), "q4": 0.0}
    assert scores.metrics["f1"] == pytest.approx(100 * (1 + 2 / 3) / 3)
    assert scores.metrics["exact_match"] == pytest.approx(100 * 2 / 3)
    assert scores.metrics["n"] == 4
    assert scores.metrics["ci_low"] is not None
    assert scores.reasons == {}


def test_withheld_answers_give_no_score_and_say_why() -> None:
    scores = span_scores({"q1": "x"}, {"q1": []})
    assert scores.metrics == {"f1": None, "exact_match": None, "n": 1, "ci_low": None, "ci_high": None}
    assert scores.reasons == dict.fromkeys(("f1", "exact_match"), "the answers are withheld")
    assert scores.per_example == {}


def official_f1(answer: str, reference: str) -> float:
    """Precision and recall apart, as the scripts compute them."""
    answered, wanted = normalise(answer).split(), normalise(reference).split()
    same = sum((Counter(answered) & Counter(wanted)).values())
    if same == 0:
        return 0
    precision, recall = same / len(answered), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    source = random.Random(0)
    words = ("the", "cat", "Cat.", "dog", "a", "-", "1,000", "1000")
    for _ in range(300):
        answer, *references = (" ".join(source.choices(words, k=source.randint(0, 6))) for _ in range(3))
        best = max(official_f1(answer, reference) for reference in references)
        assert token_f1(answer, references) == pytest.approx(best, abs=1e-12)
