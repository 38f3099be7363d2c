from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dept_vl.config import TaskSettings
from dept_vl.tasks.task import Task
from dept_vl.tasks.vqa import build, majority_answer
from dept_vl.types import Example, Prediction
from feature_extraction.errors import InputDataError

TOY_DATA = Path(__file__).parents[1] / "toy_data" / "vqa"
SPLITS = {"train": "train2014", "validation": "val2014", "test": "test2015", "test-dev": "test-dev2015"}
QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
BEST = {"42000": "Yes", "42001": "yes", "42002": "black white", "73000": "two", "73001": "honda", "74000": "5 oclock"}


@pytest.fixture
def task() -> Task:
    return build(TaskSettings(name="vqa", splits=SPLITS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(TOY_DATA, tmp_path / "vqa")


def change(path: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def example(examples: list[Example], example_id: str) -> Example:
    return next(one for one in examples if one.example_id == example_id)


def test_an_example_has_the_question_as_it_stands_and_its_image(task: Task) -> None:
    clock = example(task.read(TOY_DATA, "validation"), "74000")
    assert clock.text == "What time is it?"
    assert clock.image_ids == ("COCO_val2014_000000000074",)
    assert clock.slices == {"question_type": "what time", "answer_type": "other"}


def test_references_are_the_ten_answers_as_given(task: Task) -> None:
    vase = example(task.read(TOY_DATA, "train"), "30000")
    assert sorted(vase.references) == ["Vase."] + ["a vase"] * 4 + ["flowers"] * 2 + ["vase"] * 3


def test_targets_are_soft_scores_of_normalised_answers(task: Task) -> None:
    train = task.read(TOY_DATA, "train")
    assert dict(example(train, "30000").targets) == {"vase": 1.0, "flowers": 0.6}
    assert dict(example(train, "25000").targets) == {"2": 1.0}
    assert dict(example(train, "25001").targets) == {"blue": 1.0, "gray": 0.9}
    assert dict(example(train, "34000").targets) == {"zebra": 1.0, "horse": 0.3}


def test_targets_of_a_unanimous_question_are_what_scores(task: Task) -> None:
    assert example(task.read(TOY_DATA, "validation"), "42000").targets == (("Yes", 1.0),)


def test_examples_come_in_the_order_of_the_file(task: Task) -> None:
    assert [one.example_id for one in task.read(TOY_DATA, "validation")] == list(BEST)


@pytest.mark.parametrize(("split", "count"), [("test", 4), ("test-dev", 2)])
def test_a_test_split_has_no_references_and_images_of_test2015(task: Task, split: str, count: int) -> None:
    examples = task.read(TOY_DATA, split)
    assert len(examples) == count
    assert all(one.references == one.targets == () and one.slices == {} for one in examples)
    assert examples[-1].image_ids == ("COCO_test2015_000000000016",)


def test_images_of_other_data_are_named_by_its_type_and_split(task: Task, folder: Path) -> None:
    for name in (QUESTIONS, ANNOTATIONS):
        change(folder / name, lambda content: content.update(data_type="easy_vqa", data_subtype="val"))
    assert task.read(folder, "validation")[0].image_ids == ("easy_vqa_val_000000000042",)


def test_annotations_alone_can_be_scored(task: Task) -> None:
    alone = task.read_files(TOY_DATA / ANNOTATIONS, None)
    both = task.read_files(TOY_DATA / ANNOTATIONS, TOY_DATA / QUESTIONS)
    assert both == task.read(TOY_DATA, "validation")
    assert [one.references for one in alone] == [one.references for one in both]
    assert alone[0].text == ""
    assert alone[0].image_ids == ()


def test_an_absent_file_is_named_with_what_is_there(task: Task, folder: Path) -> None:
    (folder / QUESTIONS).rename(folder / "questions.json")
    message = r"has 0 files \*OpenEnded_\*_val2014_questions.json, but exactly one is needed. .*questions.json.*"
    with pytest.raises(InputDataError, match=message + "Put the official file there, or set task.splits"):
        task.read(folder, "validation")


def test_annotations_may_lack_for_test_splits_only(task: Task, folder: Path) -> None:
    (folder / ANNOTATIONS).unlink()
    with pytest.raises(InputDataError, match=r"has 0 files \*_val2014_annotations.json"):
        task.read(folder, "validation")


def test_two_files_for_one_split_are_refused(task: Task, folder: Path) -> None:
    shutil.copy(folder / QUESTIONS, folder / "OpenEnded_mscoco_val2014_questions.json")
    with pytest.raises(InputDataError, match=r"has 2 files .* JSON files there: OpenEnded_mscoco_val2014_questions"):
        task.read(folder, "validation")


def test_an_empty_folder_and_a_missing_one_are_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="JSON files there: none"):
        task.read(tmp_path, "train")
    with pytest.raises(InputDataError, match=r"No folder .*none. Give the folder with the official question and anno"):
        task.read(tmp_path / "none", "train")


def test_exchanged_files_are_refused(task: Task) -> None:
    message = 'questions.json has no list of annotations. An official file is .*"annotations": .* not exchanged'
    with pytest.raises(InputDataError, match=message):
        task.read_files(TOY_DATA / QUESTIONS, TOY_DATA / ANNOTATIONS)


def test_everything_that_does_not_fit_is_named_at_once(task: Task, folder: Path) -> None:
    def edit(content: Any) -> None:
        content["questions"][0]["question_id"] = 1
        content["questions"][1]["image_id"] = 43

    change(folder / QUESTIONS, edit)
    message = (
        "questions without an annotation: 1 (1); annotations without a question: 1 (42000); "
        "questions whose image_id is not their annotation's: 1 (42001)"
    )
    with pytest.raises(InputDataError, match=re.escape(message)) as caught:
        task.read(folder, "validation")
    assert QUESTIONS in str(caught.value)
    assert ANNOTATIONS in str(caught.value)


def test_all_wrong_questions_are_named_at_once(task: Task, folder: Path) -> None:
    def edit(content: Any) -> None:
        del content["data_type"]
        content["questions"][0]["question_id"] = "42000"
        content["questions"][1] = None
        content["questions"][3] = content["questions"][2]

    change(folder / QUESTIONS, edit)
    message = (
        'no "data_type": 1 (the file); "question_id" is text, not a whole number: 1 (row 0); '
        "null instead of an object with question_id, image_id, question: 1 (row 1); duplicate question_id: 1 (42002)"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read(folder, "validation")


def test_all_wrong_annotations_are_named_at_once(task: Task, folder: Path) -> None:
    def edit(content: Any) -> None:
        first, second, third, fourth, *_ = content["annotations"]
        first["answers"] = []
        second["answers"][0] = {"answer": 2}
        third["answers"][0] = third["answers"][1]
        fourth["answer_type"] = "counting"

    change(folder / ANNOTATIONS, edit)
    message = (
        '"answers" is not a list of {"answer": text, ...}: 2 (42000, 42001); two answers are equal in every field '
        '(each has its own answer_id officially): 1 (42002); "answer_type" is none of yes/no, number, other: 1 (73000)'
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read(folder, "validation")


def test_answers_without_answer_ids_are_told_apart_by_their_place(task: Task, folder: Path) -> None:
    def edit(content: Any) -> None:
        for annotation in content["annotations"]:
            annotation["answers"] = [{"answer": one["answer"]} for one in annotation["answers"]]

    expected = task.read(folder, "validation")
    change(folder / ANNOTATIONS, edit)
    assert task.read(folder, "validation") == expected


def test_parse_strips_and_keeps_the_rest(task: Task) -> None:
    assert task.parse(" Black Cat.\n") == "Black Cat."


def test_scores_are_the_official_ones(task: Task) -> None:
    predictions = [Prediction(example_id, answer) for example_id, answer in BEST.items()]
    scores = task.score(predictions, task.read(TOY_DATA, "validation"))
    assert scores.per_example == pytest.approx(
        {"42000": 1, "42001": 1, "42002": 1, "73000": 1, "73001": 0.9, "74000": 1}
    )
    interval = scores.metrics.pop("ci_low"), scores.metrics.pop("ci_high")
    assert scores.metrics == {
        "accuracy": 98.33,
        "yes_no": 100.0,
        "number": 100.0,
        "other": 96.67,
        "per_type/how many": 100.0,
        "per_type/is the": 100.0,
        "per_type/is this a": 100.0,
        "per_type/what": 100.0,
        "per_type/what is the": 90.0,
        "per_type/what time": 100.0,
        "n": 6,
    }
    assert interval == (95.0, 100.0)


def test_each_quirk_counts(task: Task) -> None:
    answers = {
        "42000": "yes",
        "42001": "no",
        "42002": "black, white",
        "73000": "2.0",
        "73001": "Can't tell",
        "74000": "",
    }
    scores = task.score(list(map(Prediction._make, answers.items())), task.read(TOY_DATA, "validation"))
    assert scores.per_example == pytest.approx(
        {"42000": 0, "42001": 0.6, "42002": 1, "73000": 0, "73001": 1, "74000": 0}
    )


def test_the_order_of_predictions_is_irrelevant(task: Task) -> None:
    examples = task.read(TOY_DATA, "validation")
    predictions = [Prediction(example_id, answer) for example_id, answer in BEST.items()]
    assert task.score(predictions[::-1], examples) == task.score(predictions, examples)


def test_a_group_without_examples_has_no_score(task: Task) -> None:
    yes_no = [one for one in task.read(TOY_DATA, "validation") if one.slices["answer_type"] == "yes/no"]
    metrics = task.score([Prediction("42000", "Yes"), Prediction("42001", "yes")], yes_no).metrics
    assert metrics["yes_no"] == 100
    assert metrics["number"] is None
    assert metrics["other"] is None


def test_withheld_answers_give_no_score_but_the_count(task: Task) -> None:
    examples = task.read(TOY_DATA, "test")
    scores = task.score([Prediction(one.example_id, "yes") for one in examples], examples)
    assert scores.per_example == {}
    assert scores.metrics.pop("n") == 4
    assert set(scores.metrics) == {"accuracy", "yes_no", "number", "other", "ci_low", "ci_high"}
    assert set(scores.metrics.values()) == {None}


def test_a_submission_is_the_official_list_of_whole_number_ids(task: Task, tmp_path: Path) -> None:
    predictions = [Prediction("262148000", "yes"), Prediction("1", 'caf\u00e9 "x"\n')]
    task.submit(predictions, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_bytes()) == [
        {"question_id": 262148000, "answer": "yes"},
        {"question_id": 1, "answer": 'café "x"\n'},
    ]
    assert task.read_submission(tmp_path / "results.json") == predictions
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_submission_of_another_tool_may_have_further_keys_and_empty_answers(task: Task, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('[{"question_id": 1, "answer": "", "score": 0.5}]')
    assert task.read_submission(tmp_path / "results.json") == [Prediction("1", "")]


def test_all_wrong_rows_of_a_submission_are_named_at_once(task: Task, tmp_path: Path) -> None:
    rows = [{"question_id": "1", "answer": 2}, {"question_id": 2}, 3]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    message = (
        'results.json: "question_id" is text, not a whole number: 1 (row 0); "answer" is a whole number, not text: '
        '1 (row 0); no "answer": 1 (row 1); a whole number instead of an object with question_id, answer: 1 (row 2)'
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read_submission(tmp_path / "results.json")


def test_a_submission_that_is_no_list_is_refused(task: Task, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"1": "yes"}')
    with pytest.raises(InputDataError, match=r"holds an object, not a list. A results file is .*question_id"):
        task.read_submission(tmp_path / "results.json")


def test_submissions_have_their_official_names(task: Task) -> None:
    assert task.submission_name("test") == "v2_OpenEnded_mscoco_test2015_dept_results.json"
    assert task.submission_name("test-dev") == "v2_OpenEnded_mscoco_test-dev2015_dept_results.json"
    easy = build(TaskSettings(splits={"test": "test"}))
    assert easy.submission_name("test") == "v2_OpenEnded_test_dept_results.json"


def test_the_majority_answer_is_the_most_frequent_and_then_the_first(task: Task) -> None:
    assert majority_answer(task.read(TOY_DATA, "train")) == "no"
    assert majority_answer([Example("1", "", (), references=("b", "a"))]) == "a"
