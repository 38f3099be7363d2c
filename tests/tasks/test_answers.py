"""The vocabulary of a task: its labels, a file's answers, or the most frequent ones of the training examples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dept_vl.settings import TaskSettings
from dept_vl.tasks.answers import answer_vocabulary, task_answers
from dept_vl.tasks.task import Task, load_task
from dept_vl.types import Example, Target
from feature_extraction.errors import InputDataError

CLASSES = TaskSettings(head="classification")


def example(*targets: tuple[str, float]) -> Example:
    return Example("q", "what ?", (), targets=tuple(Target(text, weight) for text, weight in targets))


def examples(*answers: str) -> list[Example]:
    """One for each answer, which is its only one."""
    return [example((answer, 1.0)) for answer in answers]


@pytest.fixture
def task() -> Task:
    return load_task(TaskSettings())


@pytest.fixture
def labelled(task: Task) -> Task:
    return replace(task, labels=("true", "false"))


def test_the_most_frequent_best_target_comes_first() -> None:
    assert answer_vocabulary(examples("no", "red", "yes", "no", "yes", "no"), None) == ["no", "yes", "red"]


def test_equally_frequent_answers_are_in_alphabetical_order_and_not_in_that_of_the_examples() -> None:
    assert answer_vocabulary(examples("c", "a", "b", "d", "d"), None) == ["d", "a", "b", "c"]


def test_only_the_heaviest_target_of_an_example_counts() -> None:
    found = answer_vocabulary([example(("red", 0.3), ("pink", 0.9), ("rose", 0.6)), example(("red", 1.0))], None)
    assert found == ["pink", "red"]


def test_of_equally_heavy_targets_the_first_counts() -> None:
    assert answer_vocabulary([example(("red", 0.9), ("pink", 0.9))], None) == ["red"]


@pytest.mark.parametrize(
    ("count", "expected"), [(1, ["no"]), (2, ["no", "a"]), (9, ["no", "a", "b"]), (None, ["no", "a", "b"])]
)
def test_so_many_are_taken(count: int | None, expected: list[str]) -> None:
    assert answer_vocabulary(examples("b", "no", "a", "no"), count) == expected


def test_nothing_is_no_answer_and_an_example_without_targets_has_none() -> None:
    assert answer_vocabulary([*examples("", "", "red"), example()], None) == ["red"]


def test_the_order_of_the_examples_does_not_matter() -> None:
    some = examples("b", "a", "c", "c", "b", "e", "d")
    assert answer_vocabulary(some, 4) == answer_vocabulary(some[::-1], 4)


def test_any_text_may_be_an_answer_of_plain_generation(task: Task, labelled: Task, tmp_path: Path) -> None:
    for one in (task, labelled):
        assert task_answers(one, TaskSettings(answer_file="none.json"), examples("red"), tmp_path) is None


@pytest.mark.parametrize(
    "settings", [CLASSES, TaskSettings(head="first_step"), TaskSettings(constrained=True)], ids=lambda one: one.head
)
def test_heads_that_choose_take_the_answers_of_the_training_examples(
    task: Task, tmp_path: Path, settings: TaskSettings
) -> None:
    some = examples("yes", "red", "yes", "blue")
    assert task_answers(task, replace(settings, answer_count=2), some, tmp_path) == ["yes", "blue"]


def test_labels_of_the_task_come_before_all_else(labelled: Task, tmp_path: Path) -> None:
    settings = replace(CLASSES, answer_count=1, answer_file="none.json")
    assert task_answers(labelled, settings, examples("red"), tmp_path) == ["true", "false"]


def test_a_file_in_the_data_folder_has_the_answers_in_its_own_order(task: Task, tmp_path: Path) -> None:
    (tmp_path / "label2ans.json").write_text(json.dumps(["yes", "", "a", "é"]))
    settings = replace(CLASSES, answer_file="label2ans.json", answer_count=2)
    assert task_answers(task, settings, examples("red"), tmp_path) == ["yes", "", "a", "é"]


@pytest.mark.parametrize("content", [[], {}, {"yes": 0}, "yes", ["yes", 1], ["yes", None], [["yes"]], None, 3])
def test_a_file_that_is_no_list_of_texts_is_refused(task: Task, tmp_path: Path, content: Any) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputDataError) as raised:
        task_answers(task, replace(CLASSES, answer_file="answers.json"), examples("red"), tmp_path)
    assert str(raised.value) == (
        f"{path} is no list of texts. task.answer_file names a JSON file such as trainval_label2ans.json: "
        '["yes", "no", ...]'
    )


def test_an_answer_that_stands_twice_in_a_file_is_refused(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(["yes", "no", "red", "no", "red", "red"]))
    with pytest.raises(InputDataError) as raised:
        task_answers(task, replace(CLASSES, answer_file="answers.json"), [], tmp_path)
    assert str(raised.value) == (
        f"{path} has 2 answers more than once, first 'no'. Each stands for one class: remove the copies"
    )


def test_a_missing_file_and_one_that_is_no_json_are_refused(task: Task, tmp_path: Path) -> None:
    settings = replace(CLASSES, answer_file="answers.json")
    with pytest.raises(InputDataError, match=r"^No file .*answers\.json"):
        task_answers(task, settings, examples("red"), tmp_path)
    (tmp_path / "answers.json").write_text("yes\nno\n")
    with pytest.raises(InputDataError, match=r"answers\.json is not one JSON value"):
        task_answers(task, settings, examples("red"), tmp_path)


@pytest.mark.parametrize("some", [[], [example()], examples("", "")], ids=["none", "no_targets", "empty"])
def test_training_examples_without_answers_are_refused(task: Task, tmp_path: Path, some: list[Example]) -> None:
    with pytest.raises(InputDataError) as raised:
        task_answers(task, CLASSES, some, tmp_path)
    assert str(raised.value) == (
        f"None of the {len(some)} training examples in {tmp_path} has an answer, so that there is none to choose from. "
        "Set task.head=generation and task.constrained=false, or give annotated training data"
    )
