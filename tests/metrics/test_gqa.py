"""GQA's figures against a plain computation of what the official script computes, and its surprises one by one."""

from __future__ import annotations

import random
from collections import Counter
from statistics import fmean
from typing import Any

import pytest

from dept_vl.metrics.gqa import Annotation, Choices, gqa_scores, reasoning_steps

WORDS = ("red", "blue", "color", "shape", "cat", "dog", "yes", "no")
CHOICES = Choices(("yes", "no"), ("yes",))
FIGURES = ("accuracy", "binary", "open", "consistency", "validity", "plausibility", "distribution", "ci_low", "ci_high")

Row = dict[str, Any]


def random_questions(seed: int, count: int) -> dict[str, Row]:
    """Questions as in the official files, with choices; some are not balanced, some belong to no group."""
    source = random.Random(seed)
    ids = [f"{number:06d}" for number in range(count)]
    return {
        one: {
            "question": " ".join(source.choices(WORDS, k=source.randint(2, 6))) + "?",
            "answer": source.choice(WORDS),
            "isBalanced": source.random() < 0.7,
            "groups": {"global": source.choice([None, "color", "animal", "shape"])},
            "entailed": source.sample(ids, source.choice([0, 1, 4])) + [one] * source.randint(0, 1),
            "types": {
                "structural": source.choice(["query", "verify", "choose", "compare", "logical"]),
                "semantic": source.choice(["attr", "rel", "obj", "cat", "global"]),
                "detailed": source.choice(["twoCommon", "existRelS", "directOf"]),
            },
            "semantic": [
                {
                    "operation": source.choice(["select", "exist", "query", "choose name", "verify color"]),
                    "argument": source.choice(["name", "cat (12)", "existing", "red|blue"]),
                }
                for _ in range(source.randint(1, 5))
            ],
            "valid": source.sample(WORDS, 4),
            "plausible": source.sample(WORDS, 2),
        }
        for one in ids
    }


def annotation(row: Row) -> Annotation:
    return Annotation(
        answer=row["answer"],
        balanced=row["isBalanced"],
        words=len(row["question"].split()),
        steps=reasoning_steps(f"{step['operation']}: {step['argument']}" for step in row["semantic"]),
        **row["types"],
        group=row["groups"]["global"],
        entailed=row["entailed"],
        choices=Choices(row["valid"], row["plausible"]),
    )


def plain_figures(answers: dict[str, str], rows: dict[str, Row]) -> dict[str, float]:
    """All figures, each from its own definition, question by question."""
    balanced = [one for one, row in rows.items() if row["isBalanced"]]

    def right(one: str) -> bool:
        return bool(answers[one] == rows[one]["answer"])

    def accuracy(ids: list[str]) -> float:
        return 100 * fmean(map(right, ids))

    def steps(row: Row) -> int:
        texts = [step["operation"] + ": " + step["argument"] for step in row["semantic"]]
        return len([t for t in texts if "exist" not in t and "query: name" not in t and "choose name" not in t])

    def allowed(one: str, kind: str) -> bool:
        common = "Common" in rows[one]["types"]["detailed"]
        return answers[one] in (["color", "material", "shape"] if common else rows[one][kind])

    consistencies = []
    for one in balanced:
        others = [other for other in rows[one]["entailed"] if other != one]
        if right(one) and others:
            consistencies.append(fmean(map(right, others)))
    statistics, sizes = [], []
    for group in {rows[one]["groups"]["global"] for one in balanced} - {None}:
        members = [one for one in balanced if rows[one]["groups"]["global"] == group]
        gold, given = Counter(rows[one]["answer"] for one in members), Counter(answers[one] for one in members)
        statistics.append(sum((given[answer] - gold[answer]) ** 2 / gold[answer] for answer in gold))
        sizes.append(len(members))
    figures = {
        "accuracy": accuracy(balanced),
        "binary": accuracy([one for one in balanced if rows[one]["types"]["structural"] != "query"]),
        "open": accuracy([one for one in balanced if rows[one]["types"]["structural"] == "query"]),
        "consistency": 100 * fmean(consistencies),
        "validity": 100 * fmean(allowed(one, "valid") for one in balanced),
        "plausibility": 100 * fmean(allowed(one, "plausible") for one in balanced),
        "distribution": fmean(statistics, weights=sizes) / 100,
    }
    for kind, value in (
        ("per_structural", lambda row: row["types"]["structural"]),
        ("per_semantic", lambda row: row["types"]["semantic"]),
        ("per_words", lambda row: len(row["question"].split())),
        ("per_steps", steps),
    ):
        for name in {value(rows[one]) for one in balanced}:
            figures[f"{kind}/{name}"] = accuracy([one for one in balanced if value(rows[one]) == name])
    return figures


@pytest.mark.parametrize("seed", range(5))
def test_all_figures_are_those_of_a_plain_computation(seed: int) -> None:
    rows = random_questions(seed, 400)
    source = random.Random(seed)
    answers = {one: row["answer"] if source.random() < 0.4 else source.choice(WORDS) for one, row in rows.items()}
    scores = gqa_scores(answers, {one: annotation(row) for one, row in rows.items()})
    low, high = scores.metrics.pop("ci_low"), scores.metrics.pop("ci_high")
    assert scores.metrics == pytest.approx(plain_figures(answers, rows), rel=1e-12)
    assert scores.reasons == {}
    assert scores.per_example == {one: float(answers[one] == row["answer"]) for one, row in rows.items()}
    accuracy = scores.metrics["accuracy"]
    assert accuracy is not None
    assert low is not None
    assert high is not None
    assert low < accuracy < high


def one_question(answer: str, **fields: Any) -> dict[str, float | None]:
    """The figures of one question that is right if the answer is yes."""
    return gqa_scores({"1": answer}, {"1": Annotation("yes", **fields)}).metrics


@pytest.mark.parametrize("answer", ["Yes", " yes", "yes ", "yes.", "a yes", ""])
def test_answers_are_compared_as_they_stand(answer: str) -> None:
    assert one_question(answer)["accuracy"] == 0


def test_figures_are_not_rounded() -> None:
    questions = {str(number): Annotation("yes") for number in range(3)}
    metrics = gqa_scores({"0": "yes", "1": "no", "2": "no"}, questions).metrics
    assert metrics["accuracy"] == 1 / 3 * 100
    assert (metrics["ci_low"], metrics["ci_high"]) == (0, 100)


def test_questions_outside_the_balanced_set_count_for_no_accuracy_but_have_a_score_of_their_own() -> None:
    questions = {"1": Annotation("yes"), "2": Annotation("no", balanced=False)}
    scores = gqa_scores({"1": "yes", "2": "yes"}, questions)
    assert scores.metrics["accuracy"] == 100
    assert scores.per_example == {"1": 1, "2": 0}


@pytest.mark.parametrize("structural", ["verify", "choose", "logical", "compare"])
def test_all_questions_but_queries_are_binary(structural: str) -> None:
    metrics = one_question("yes", structural=structural)
    assert metrics["binary"] == metrics[f"per_structural/{structural}"] == 100
    assert metrics["open"] is None


def test_queries_are_open() -> None:
    metrics = one_question("yes", structural="query")
    assert metrics["open"] == metrics["per_structural/query"] == 100
    assert metrics["binary"] is None


def test_groups_come_in_the_order_of_their_names_and_numbers() -> None:
    questions = {str(words): Annotation("yes", words=words, steps=2, semantic="attr") for words in (10, 9, 11)}
    metrics = gqa_scores(dict.fromkeys(questions, "yes"), questions).metrics
    found = [name for name in metrics if "/" in name]
    assert found == ["per_semantic/attr", "per_steps/2", "per_words/9", "per_words/10", "per_words/11"]


def test_a_step_does_not_count_if_its_text_has_exist_or_asks_for_a_name() -> None:
    assert reasoning_steps(["select: tray (12)", "relate: cup,near,s (9)", "query: color"]) == 3
    assert reasoning_steps(["exist: ?", "query: name", "choose name: cat|dog", "select: existing sign (3)"]) == 0
    assert reasoning_steps(["query: names", "Exist: ?", "query name: x", "choose  name: x"]) == 3


def consistency(answers: str, **entailed: tuple[str, ...]) -> float | None:
    """Of questions a, b, c, ..., all answered yes or no (y, n) where yes is right; d and later are not balanced."""
    ids = "abcdef"[: len(answers)]
    questions = {one: Annotation("y", balanced=one < "d", entailed=entailed.get(one, ())) for one in ids}
    return gqa_scores(dict(zip(ids, answers, strict=True)), questions).metrics["consistency"]


def test_consistency_is_the_mean_over_right_questions_of_the_accuracy_on_what_they_entail() -> None:
    assert consistency("yyyynn", a=("b", "d", "e", "f"), b=("d",)) == (2 / 4 + 1) / 2 * 100
    assert consistency("ynnn", a=("d",), b=("a",)) == 0  # b is wrong


def test_consistency_leaves_out_the_question_itself_but_counts_repeated_ids() -> None:
    assert consistency("yn", a=("a", "b")) == 0
    assert consistency("yyn", a=("b", "b", "c")) == 2 / 3 * 100
    assert consistency("yy", a=("a",), b=("a",)) == 100


def test_consistency_is_asked_of_balanced_questions_only() -> None:
    assert consistency("yyyyn", a=("d",), d=("e",)) == 100


def test_consistency_is_zero_as_officially_if_no_question_that_entails_another_is_right() -> None:
    assert consistency("ny", a=("b",)) == 0


def test_consistency_is_null_without_any_entailed_question() -> None:
    scores = gqa_scores({"1": "yes"}, {"1": Annotation("yes", entailed=("1",))})
    assert scores.metrics["consistency"] is None
    assert scores.reasons["consistency"] == "no balanced question entails another"


def test_consistency_is_null_if_entailed_questions_are_absent_whatever_the_answers_are() -> None:
    questions = {"1": Annotation("yes", entailed=("2", "3")), "2": Annotation("no", entailed=("3", "4"))}
    for answer in ("yes", "no"):
        scores = gqa_scores({"1": answer, "2": answer}, questions)
        assert scores.metrics["consistency"] is None
        assert scores.reasons["consistency"] == (
            "2 entailed questions are not among the 2 questions; it takes the file of all questions, such as "
            "val_all_questions.json, and predictions for all of them"
        )


def test_validity_and_plausibility_ask_whether_an_answer_is_among_the_choices() -> None:
    assert one_question("no", choices=CHOICES)["validity"] == 100
    assert one_question("no", choices=CHOICES)["plausibility"] == 0
    assert one_question("yes ", choices=CHOICES)["validity"] == 0


@pytest.mark.parametrize(("answer", "expected"), [("color", 100), ("material", 100), ("shape", 100), ("yes", 0)])
def test_what_things_have_in_common_is_one_of_three_whatever_the_choices_are(answer: str, expected: float) -> None:
    metrics = one_question(answer, choices=CHOICES, detailed="twoCommon")
    assert metrics["validity"] == metrics["plausibility"] == expected
    assert one_question("yes", choices=CHOICES, detailed="uncommon")["validity"] == 100


def test_distribution_is_chi_square_over_gold_answers_weighted_by_the_groups_sizes() -> None:
    def asked(group: str | None, answers: str) -> list[Annotation]:
        return [Annotation(answer, group=group) for answer in answers]

    questions = dict(enumerate([*asked("g", "aaab"), *asked("h", "c"), *asked(None, "d")]))
    given = dict(zip(map(str, questions), "abbz" + "c" + "x", strict=True))
    scores = gqa_scores(given, {str(one): question for one, question in questions.items()})
    statistic = (1 - 3) ** 2 / 3 + (2 - 1) ** 2 / 1  # z is nowhere gold, and does not count
    assert scores.metrics["distribution"] == pytest.approx((4 * statistic + 1 * 0) / 5 / 100, rel=1e-15)


def test_right_answers_have_the_distribution_zero() -> None:
    assert one_question("yes", group="g")["distribution"] == 0


def test_figures_that_the_questions_do_not_allow_are_null_with_the_reason() -> None:
    scores = gqa_scores({"1": "yes", "2": "yes"}, {"1": Annotation("yes", words=3), "2": Annotation("no", words=3)})
    assert scores.metrics == {
        **dict.fromkeys(FIGURES),
        "accuracy": 50,
        "per_words/3": 50,
        "ci_low": 0,
        "ci_high": 100,
    }
    of_all = "2 of 2 balanced questions"
    assert scores.reasons == {
        **dict.fromkeys(("binary", "open"), f"{of_all} have no structural type, as official questions files give it"),
        "consistency": f"{of_all} do not say what they entail, as official files do",
        **dict.fromkeys(("validity", "plausibility"), f"{of_all} have no choices, as val_choices.json gives them"),
        "distribution": "no balanced question belongs to a group",
    }


def test_a_figure_is_null_if_a_part_of_the_questions_does_not_allow_it() -> None:
    known = Annotation("yes", structural="verify", entailed=(), choices=CHOICES)
    scores = gqa_scores({"1": "yes", "2": "yes"}, {"1": known, "2": Annotation("yes")})
    for name in ("binary", "open", "consistency", "validity", "plausibility"):
        assert scores.metrics[name] is None
        assert scores.reasons[name].startswith("1 of 2 balanced questions ")


@pytest.mark.parametrize(("structural", "absent"), [("query", "binary"), ("verify", "open")])
def test_a_type_without_a_question_has_no_accuracy(structural: str, absent: str) -> None:
    scores = gqa_scores({"1": "yes"}, {"1": Annotation("yes", structural=structural)})
    assert scores.metrics[absent] is None
    assert scores.reasons[absent] == f"no balanced question is {absent}"


def test_without_a_balanced_question_everything_is_null() -> None:
    scores = gqa_scores({"1": "yes"}, {"1": Annotation("yes", balanced=False)})
    assert scores == (
        dict.fromkeys(FIGURES),
        {"1": 1},
        dict.fromkeys(FIGURES, "no question is of the balanced set"),
    )


def test_without_any_answer_everything_is_null() -> None:
    assert gqa_scores({}, {}) == (dict.fromkeys(FIGURES), {}, dict.fromkeys(FIGURES, "the answers are withheld"))


def test_answers_to_unknown_questions_do_not_count() -> None:
    scores = gqa_scores({"1": "yes", "9": "yes"}, {"1": Annotation("yes", entailed=("1",))})
    assert scores.metrics["accuracy"] == 100
    assert list(scores.per_example) == ["1"]
