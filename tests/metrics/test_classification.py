from __future__ import annotations

import random
import subprocess
import sys
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from dept_vl.metrics.classification import accuracy, f1, label_scores, matthews, pearson, spearman
from dept_vl.types import Example, Prediction, Scores

NLI = ("entailment", "neutral", "contradiction")
BINARY = [
    ("0110", "0110"),
    ("0110", "1001"),
    ("0111", "1111"),  # constant predictions
    ("0000", "0000"),  # no positives on either side
    ("0000", "0100"),
    ("1111", "1110"),
    ("1111", "1111"),
    ("1", "0"),
    *(
        ("".join(random.Random(seed).choices("01", k=30)), "".join(random.Random(-seed).choices("01", k=30)))
        for seed in range(1, 6)
    ),
]
NUMBERS = [
    ([1.0, 2, 3, 4], [1.0, 3, 2, 4]),
    ([1.0, 1, 2, 3, 3, 3], [5.0, 4, 4, 1, 1, 2]),  # ties on both sides
    ([0.0, 5], [2.0, 2.000001]),
    ([1e8 + one for one in range(9)], [3.0, 1, 4, 1, 5, 9, 2, 6, 5]),
    (np.random.default_rng(0).normal(size=200).round(1).tolist(), np.random.default_rng(1).normal(size=200).tolist()),
]


def scores(gold: Sequence[str], answers: Sequence[str], labels: Sequence[str], *metrics: str) -> Scores:
    examples = [
        Example(example_id=str(number), text="", image_ids=(), references=(label,) if label else ())
        for number, label in enumerate(gold)
    ]
    predictions = [Prediction(str(number), answer) for number, answer in enumerate(answers)]
    return label_scores(predictions[::-1], examples, labels, metrics or ("accuracy",))


@pytest.mark.parametrize(("gold", "answers"), BINARY)
def test_two_labels_score_as_with_scikit_learn(gold: str, answers: str) -> None:
    assert accuracy(gold, answers) == pytest.approx(metrics.accuracy_score([*gold], [*answers]), abs=1e-12)
    expected = metrics.f1_score([*gold], [*answers], pos_label="1", zero_division=0)
    assert f1(gold, answers, labels="1") == pytest.approx(expected, abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has its say on constant labels
        expected = metrics.matthews_corrcoef([*gold], [*answers])
    assert matthews(gold, answers) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_three_labels_score_as_with_scikit_learn(seed: int) -> None:
    choose = random.Random(seed)
    gold, answers = choose.choices(NLI[: 2 + seed % 2], k=20), choose.choices((*NLI, "nothing"), k=20)
    expected = metrics.f1_score(gold, answers, labels=NLI, average="macro", zero_division=0)
    assert f1(gold, answers, labels=NLI) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("gold", "answers"), NUMBERS)
def test_correlations_are_those_of_scipy(gold: list[float], answers: list[float]) -> None:
    assert pearson(gold, answers) == pytest.approx(stats.pearsonr(gold, answers).statistic, abs=1e-9)
    assert spearman(gold, answers) == pytest.approx(stats.spearmanr(gold, answers).statistic, abs=1e-12)


def test_f1_is_of_one_label_and_zero_where_neither_side_has_it() -> None:
    assert f1("1100", "1010", labels="1") == 0.5
    assert f1("0000", "0000", labels="1") == 0
    assert accuracy("0000", "0000") == 1


def test_macro_f1_counts_an_absent_label_as_zero() -> None:
    assert f1("aabb", "aabb", labels="abc") == pytest.approx(2 / 3)


def test_matthews_is_zero_where_a_side_is_constant() -> None:
    assert matthews("0011", "0011") == 1
    assert matthews("0011", "1100") == -1
    assert matthews("0111", "1111") == matthews("1111", "0111") == matthews("1", "1") == 0
    assert matthews("110000", "100000") == pytest.approx((1 * 4 - 0) / (1 * 2 * 4 * 5) ** 0.5)


def test_a_correlation_with_a_constant_is_unknown() -> None:
    assert pearson([1, 2, 3], [2, 2, 2]) is None
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert pearson([1], [1]) is pearson([], []) is None


def test_a_correlation_with_what_is_all_but_constant_is_a_number_without_a_warning() -> None:
    assert pearson([1, 2, 3], [1, 1, 1 + 1e-15]) == pytest.approx(3**0.5 / 2, abs=0.05)
    assert spearman([1, 2, 3], [1, 1, 1 + 1e-15]) == pytest.approx(3**0.5 / 2)


def test_ties_share_their_mean_rank() -> None:
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert spearman([1, 2, 2, 3], [10, 20, 30, 40]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert spearman([1, 2, 3], [1, 10, 100]) == pytest.approx(1)


def test_scores_are_percentages_in_any_order() -> None:
    found = scores("0110", "0100", "01", "accuracy", "f1", "matthews")
    assert found.metrics == {
        "accuracy": 75,
        "f1": pytest.approx(200 / 3),
        "matthews": pytest.approx(100 * 2 / (2 * 1 * 2 * 3) ** 0.5),
        "invalid": 0,
        "n": 4,
        "ci_low": 25,
        "ci_high": 100,
    }
    assert found.per_example == {"0": 1, "1": 1, "2": 0, "3": 1}


def test_an_answer_that_is_no_label_is_wrong_as_the_other_label() -> None:
    names = ("accuracy", "f1", "matthews", "f1_macro")
    found = scores(["0", "1", "1", "0"], ["maybe", "maybe", "1", "0"], "01", *names)
    replaced = scores("0110", "1010", "01", *names)
    assert found.metrics == replaced.metrics | {"invalid": 50}
    assert found.per_example == replaced.per_example


def test_of_three_labels_an_answer_that_is_none_is_a_false_positive_of_none() -> None:
    found = scores(NLI, ["entailment", "nothing", "contradiction"], NLI, "accuracy", "f1_macro")
    assert found.metrics["accuracy"] == pytest.approx(200 / 3)
    assert found.metrics["f1_macro"] == pytest.approx(200 / 3)


def test_withheld_labels_give_no_score_but_the_count_and_the_invalid_answers() -> None:
    found = scores(["", ""], ["0", "maybe"], "01", "accuracy", "f1")
    assert found.metrics == {
        "accuracy": None,
        "f1": None,
        "invalid": 50,
        "n": 2,
        "ci_low": None,
        "ci_high": None,
    }
    assert found.per_example == {}
    assert scores([], [], "01").metrics["invalid"] is None


def test_accuracy_needs_neither_library() -> None:
    source = (
        "import sys; from dept_vl.metrics.classification import accuracy, label_scores\n"
        "from dept_vl.types import Example, Prediction\n"
        "label_scores([Prediction('0', 'a')], [Example('0', '', (), references=('a',))], ('a', 'b'))\n"
        "sys.exit(bool({'sklearn', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", source]).returncode == 0
