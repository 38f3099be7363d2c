from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dept_vl.formats.files import Faults
from dept_vl.formats.superglue_rows import as_it_is, example_id, passage_answers, passage_queries, target_spans

Row = dict[str, Any]
Flatten = Callable[[Row, int, Faults], Iterator[Row]]


def flat(flatten: Flatten, row: Row) -> tuple[list[Row], dict[str, list[object]]]:
    """The rows, and what is wrong."""
    faults: Faults = defaultdict(list)
    return list(flatten(row, 3, faults)), dict(faults)


@pytest.mark.parametrize("flatten", [as_it_is, target_spans, passage_answers, passage_queries])
def test_a_row_in_the_hub_s_form_stays_as_it_is(flatten: Flatten) -> None:
    row = {"passage": "text", "query": "q", "idx": 0}
    assert flat(flatten, row) == ([row], {})


def test_the_spans_of_wsc_come_beside_the_text() -> None:
    row = {"text": "a b", "target": {"span1_text": "a", "span1_index": 0}, "idx": 1}
    assert flat(target_spans, row) == ([{**row, "span1_text": "a", "span1_index": 0}], {})


def test_a_line_of_multirc_has_a_row_for_each_answer() -> None:
    questions = [
        {"question": "q", "idx": 5, "answers": [{"text": "x", "idx": 7, "label": 1}, {"text": "y", "idx": 8}]},
        {"question": "r", "idx": 9, "answers": []},
    ]
    found, faults = flat(passage_answers, {"idx": 2, "passage": {"text": "p", "questions": questions}})
    ids = {"paragraph": 2, "question": 5}
    assert found == [
        {"paragraph": "p", "question": "q", "answer": "x", "idx": {**ids, "answer": 7}, "label": 1},
        {"paragraph": "p", "question": "q", "answer": "y", "idx": {**ids, "answer": 8}, "label": None},
    ]
    assert faults == {}


@pytest.mark.parametrize(
    ("passage", "fault"),
    [
        ({}, {'no "questions"': ["line 3, passage"]}),
        ({"questions": [7]}, {"a whole number instead of an object with answers": ["line 3, question"]}),
        ({"questions": [{"answers": "x"}]}, {'"answers" is text, not a list': ["line 3, question"]}),
        ({"questions": [{"answers": [{}]}]}, {'no "idx"': ["line 3, answer"]}),
    ],
)
def test_what_a_line_of_multirc_lacks_is_named(passage: object, fault: dict[str, list[object]]) -> None:
    assert flat(passage_answers, {"passage": passage}) == ([], fault)


def test_a_line_of_record_has_a_row_for_each_query_with_entities_and_answers() -> None:
    entities = [{"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 0, "end": 2}]
    queries = [
        {"query": "@placeholder", "answers": [{"start": 0, "end": 2, "text": "Ann"}], "idx": 4},
        {"query": "a @placeholder", "idx": 5},
    ]
    found, faults = flat(
        passage_queries, {"passage": {"text": "Ann saw Lee", "entities": entities}, "qas": queries, "idx": 0}
    )
    shared = {"passage": "Ann saw Lee", "entities": ["Ann", "Lee"]}
    assert found == [
        {**shared, "query": "@placeholder", "answers": ["Ann"], "idx": {"query": 4}},
        {**shared, "query": "a @placeholder", "answers": [], "idx": {"query": 5}},
    ]
    assert faults == {}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"qas": {}}, {'"qas" is an object, not a list': ["line 3"]}),
        ({"passage": {"text": "x"}}, {'no "entities"': ["line 3, passage"]}),
        ({"passage": None}, {"null instead of an object with text, entities": ["line 3, passage"]}),
        ({"qas": [{}]}, {'no "query"': ["line 3, query"]}),
    ],
)
def test_what_a_line_of_record_lacks_is_named(changes: Row, fault: dict[str, list[object]]) -> None:
    row = {"passage": {"text": "x", "entities": []}, "qas": [], **changes}
    assert flat(passage_queries, row) == ([], fault)


def test_wrong_answers_and_entities_of_record_are_named() -> None:
    row = {"passage": {"text": "x", "entities": [{"start": "0"}]}, "qas": [{"query": "q", "answers": [1, {}]}]}
    _, faults = flat(passage_queries, row)
    assert faults == {
        '"start" is text, not a whole number': ["line 3, entity"],
        'no "end"': ["line 3, entity"],
        "a whole number instead of an object with text": ["line 3, answer"],
        'no "text"': ["line 3, answer"],
    }


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (7, "7"),
        ("7", "7"),
        ("0-1-2", "0-1-2"),
        ({"paragraph": 0, "question": 1, "answer": 2}, "0-1-2"),
        ({"passage": 3, "query": 9}, "9"),
    ],
)
def test_ids_are_indices(index: object, text: str) -> None:
    faults: Faults = defaultdict(list)
    assert example_id({"idx": index}, 1, faults) == text
    assert not faults


@pytest.mark.parametrize("index", [None, True, 1.5, "a", "", {}, {"paragraph": 0, "question": "1", "answer": 2}])
def test_anything_else_is_no_index(index: object) -> None:
    faults: Faults = defaultdict(list)
    assert example_id({"idx": index}, 4, faults) == ""
    assert faults == {'"idx" is no whole number, nor are all of its parts': ["line 4"]}
