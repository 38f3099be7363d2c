from __future__ import annotations

import itertools

import pytest

from dept_vl.metrics.vqa_accuracy import CONTRACTIONS, normalise, percentage, sum_in_order, vqa_accuracy

MARKS = ';/\\[]{}()"=+_-><@`,?!'


@pytest.mark.parametrize(("equal", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)])
def test_each_annotator_in_turn_is_left_out(equal: int, expected: float) -> None:
    assert vqa_accuracy("red", ["red"] * equal + ["blue"] * (10 - equal)) == pytest.approx(expected)


def test_the_last_bit_is_that_of_the_official_order_of_summation() -> None:
    assert vqa_accuracy("red", ["red"] * 3 + ["blue"] * 7) == 0.9
    assert vqa_accuracy("red", ["red"] + ["blue"] * 9) == (1 / 3 + 1 / 3 + 1 / 3 + sum_in_order([1 / 3] * 6)) / 10


def test_a_single_annotator_cannot_be_matched() -> None:
    assert vqa_accuracy("red", ["red"]) == 0


def test_three_annotators_leave_two_to_match() -> None:
    assert vqa_accuracy("red", ["red"] * 3) == pytest.approx(2 / 3)


def test_unanimous_answers_are_compared_with_capitals_and_marks() -> None:
    assert vqa_accuracy("yes", ["Yes"] * 10) == 0
    assert vqa_accuracy("Yes", ["Yes"] * 10) == 1
    assert vqa_accuracy("two", ["2"] * 10) == 0
    assert vqa_accuracy("dog", ["a dog"] * 10) == 0
    assert vqa_accuracy("red.", ["red"] * 10) == 0


def test_unanimous_answers_are_still_stripped_and_lose_line_breaks_and_tabs() -> None:
    assert vqa_accuracy(" a\tdog\n", ["a dog", "a\ndog "] * 5) == 1


def test_one_other_answer_makes_all_be_normalised() -> None:
    assert vqa_accuracy("yes", ["Yes"] * 9 + ["no"]) == 1
    assert vqa_accuracy("Two!", ["2"] * 9 + ["3"]) == 1
    assert vqa_accuracy("yes", ["Yes"] * 9 + ["yes"]) == 1


def test_an_answer_of_articles_matches_other_empty_ones() -> None:
    assert normalise("The a AN") == ""
    assert vqa_accuracy("", ["the"] * 4 + ["dog"] * 6) == 1


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_between_letters_becomes_a_space(mark: str) -> None:
    assert normalise(f"x{mark}y") == "x y"


@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_beside_a_space_anywhere_is_deleted_everywhere(mark: str) -> None:
    assert normalise(f"x{mark}y z{mark} w") == "xy z w"
    assert normalise(f"x{mark}y z {mark}w") == "xy z w"


def test_another_mark_beside_a_space_changes_nothing_for_this_one() -> None:
    assert normalise("x/y z, w") == "x y z w"


def test_a_comma_between_digits_deletes_all_marks() -> None:
    assert normalise("1,000") == "1000"
    assert normalise("x-b 1,000") == "xb 1000"


def test_marks_are_judged_by_the_text_as_it_came() -> None:
    assert normalise("x;-y") == "x y"  # the space that replaces the semicolon does not delete the hyphen
    assert normalise("1;,2") == "1 2"  # nor does deleting it make a comma between digits


def test_twenty_one_marks_are_treated_and_no_others() -> None:
    assert len(set(MARKS)) == 21
    kept = "x'y:z$w%v&u#t*s^r~q|p\u2019o\u2013n"  # the last two: a curly apostrophe and a dash
    assert normalise(kept) == kept


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.", "1"), (".5", ".5"), ("0.5", "0.5"), ("x.1", "x.1"), ("u.s.", "us"), ("st. john", "st john"), ("5.m", "5m")],
)
def test_a_period_stays_before_a_digit_only(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_only_the_first_32_periods_are_removed() -> None:
    assert normalise("x" + "." * 40) == "x" + "." * 8


def test_number_words_up_to_ten_become_digits() -> None:
    words = "none zero one two three four five six seven eight nine ten eleven"
    assert normalise(words) == "0 0 1 2 3 4 5 6 7 8 9 10 eleven"
    assert normalise("Ten.") == "10"


def test_articles_are_dropped_as_whole_words() -> None:
    assert normalise("the man, an ape and a theme") == "man ape and theme"


def test_contractions_are_repaired() -> None:
    assert normalise("dont isnt 5 oclock whats") == "don't isn't 5 o'clock what's"


def test_the_table_of_contractions_is_the_official_one() -> None:
    assert len(CONTRACTIONS) == 120
    assert all(key.replace("'", "") == value.replace("'", "") for key, value in CONTRACTIONS.items())
    assert [key for key, value in CONTRACTIONS.items() if "'" not in value] == ["somebody'd"]
    assert [key for key, value in CONTRACTIONS.items() if key == value] == ["let's", "she's"]
    assert CONTRACTIONS["ow's'at"] == "'ow's'at"
    assert not {"shes", "its", "lets", "were", "well", "hell", "shell", "id", "ill"} & CONTRACTIONS.keys()


def test_contractions_with_capitals_are_never_repaired() -> None:
    assert normalise("Im Ive Id've I'dve") == "im ive id've i'dve"


def test_contractions_are_repaired_after_articles_and_marks() -> None:
    assert normalise("A dont-dont") == "don't don't"


def test_the_order_of_annotators_is_irrelevant_beyond_rounding() -> None:
    orders = set(itertools.permutations(["red", "red", "Red.", "blue", "2"]))
    assert {round(vqa_accuracy("RED", order), 12) for order in orders} == {0.8}


def test_percentages_have_two_decimals_and_need_a_score() -> None:
    assert percentage([1.0, 0.3, 0.0]) == 43.33
    assert percentage([]) is None


def test_sums_are_rounded_at_each_step_in_every_python() -> None:
    assert sum_in_order([0.1] * 10) == 0.9999999999999999
