from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from dept_vl.config import load_settings
from dept_vl.settings import TaskSettings
from dept_vl.tasks.task import OfficialFiles, Task
from dept_vl.tasks.vqa import build, majority_answer
from dept_vl.types import Example, Prediction
from feature_extraction.errors import InputDataError, UsageError

TOY_DATA = Path(__file__).parents[1] / "toy_data" / "vqa"
SPLITS = load_settings({"task": "vqa"}, []).task.splits
QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
TEST_QUESTIONS = "v2_OpenEnded_mscoco_test2015_questions.json"
TEST_DEV_QUESTIONS = "v2_OpenEnded_mscoco_test-dev2015_questions.json"
BEST = {"42000": "Yes", "42001": "yes", "42002": "black white", "73000": "two", "73001": "honda", "74000": "5 oclock"}


@pytest.fixture
def task() -> Task:
    return build(TaskSettings(name="vqa", splits=SPLITS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(TOY_DATA, tmp_path / "vqa")


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


def test_examples_come_in_the_order_of_the_file(task: Task) -> None:
    assert [one.example_id for one in task.read(TOY_DATA, "validation")] == list(BEST)


@pytest.mark.parametrize(("split", "count"), [("test", 4), ("test-dev", 2)])
def test_a_test_split_has_no_references_and_images_of_test2015(task: Task, split: str, count: int) -> None:
    examples = task.read(TOY_DATA, split)
    assert len(examples) == count
    assert not any(one.references or one.targets or one.slices for one in examples)
    assert examples[-1].image_ids == ("COCO_test2015_000000000016",)


@pytest.mark.parametrize(("split", "count"), [("karpathy-train", 11), ("karpathy-validation", 2), ("karpathy-test", 1)])
def test_karpathy_s_splits_have_names_of_their_own(task: Task, split: str, count: int) -> None:
    assert len(task.read(TOY_DATA, split)) == count


def test_a_split_may_join_sources() -> None:
    task = build(TaskSettings(splits={"train": "karpathy_train+vg"}))
    assert [len(one.references) for one in task.read(TOY_DATA, "train")] == [10] * 11 + [0] * 3


def test_files_are_read_as_a_folder_is(task: Task) -> None:
    files = OfficialFiles(TOY_DATA / ANNOTATIONS, TOY_DATA / QUESTIONS)
    assert task.read_files(files) == task.read(TOY_DATA, "validation")
    assert task.file_options == ("questions",)


def test_visual_genome_is_for_training_only() -> None:
    task = build(TaskSettings(splits={"test": "karpathy_test+vg"}))
    message = (
        "task.splits.test is 'karpathy_test+vg', but Visual Genome's questions are only for training: they have no "
        "human answers to score by, and no server takes theirs. Leave out vg, or give the split a name with train in it"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        task.read(TOY_DATA, "test")


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


def test_all_that_is_none_has_a_reason(task: Task) -> None:
    examples = task.read(TOY_DATA, "test")
    reasons = task.score([Prediction(one.example_id, "yes") for one in examples], examples).reasons
    assert set(reasons) == {"accuracy", "yes_no", "number", "other"}
    assert set(reasons.values()) == {
        "no human answers: they are withheld, or a list of LXMERT has none and no official annotations beside it"
    }


def test_examples_without_types_are_scored_as_a_whole(task: Task) -> None:
    scores = task.score([Prediction("1", "red")], [Example("1", "", (), references=("red",) * 10)])
    assert (scores.metrics["accuracy"], scores.metrics["other"], scores.metrics["n"]) == (100, None, 1)
    assert set(scores.metrics) == {"accuracy", "yes_no", "number", "other", "n", "ci_low", "ci_high"}
    assert scores.reasons["other"] == "no example has an answer_type of this kind"


def test_only_examples_with_human_answers_count() -> None:
    task = build(TaskSettings(splits={"train": "train2014+vg"}))
    examples = task.read(TOY_DATA, "train")
    scores = task.score([Prediction(one.example_id, "no") for one in examples], examples)
    assert len(scores.per_example) == 8
    assert scores.metrics["n"] == 11


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


def test_answers_to_visual_genome_are_in_no_submission(task: Task, tmp_path: Path) -> None:
    message = (
        "results.json would hold answers to questions that are not VQA's: 1 (vg7). A results file is for a split "
        "without Visual Genome"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.submit([Prediction("1", "yes"), Prediction("vg7", "red")], tmp_path / "results.json")
    assert not list(tmp_path.iterdir())


def test_the_server_wants_all_test_questions_for_test_dev(task: Task, folder: Path) -> None:
    assert task.blank_ids(folder, "test-dev") == ["1000", "14000"]
    (folder / TEST_QUESTIONS).unlink()
    with pytest.raises(InputDataError, match=r"For a complete file of test-dev2015, .* needs exactly one file"):
        task.blank_ids(folder, "test-dev")


@pytest.mark.parametrize("split", ["test", "validation", "karpathy-test"])
def test_other_splits_want_no_further_ids(task: Task, split: str) -> None:
    assert task.blank_ids(TOY_DATA, split) == []


def test_a_complete_submission_has_no_fault(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    task.submit([Prediction(one.example_id, "yes") for one in task.read(TOY_DATA, "validation")], path)
    assert task.check_submission(path, TOY_DATA / QUESTIONS) == []
    assert task.check_submission(path, None) == []


def test_a_submission_is_checked_by_the_questions_ids(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    task.submit([Prediction("42000", "yes"), Prediction("5", "no")], path)
    faults = task.check_submission(path, TOY_DATA / QUESTIONS)
    assert [fault.partition(":")[0] for fault in faults] == ["missing ids", "ids that the questions do not have"]
    assert task.check_submission(path, None) == []


def test_a_submission_for_test_dev_is_complete_for_the_whole_test_set(task: Task, folder: Path) -> None:
    path = folder / "results.json"
    asked = [Prediction(one.example_id, "yes") for one in task.read(folder, "test-dev")]
    task.submit(asked, path)
    (fault,) = task.check_submission(path, folder / TEST_DEV_QUESTIONS)
    assert fault.startswith("missing ids: 2 (1000, 14000)")
    assert 'The server wants each question of test2015, for the phase test-dev too; what it does not ask is ""' in fault
    task.submit([*asked, *(Prediction(one, "") for one in task.blank_ids(folder, "test-dev"))], path)
    assert task.check_submission(path, folder / TEST_DEV_QUESTIONS) == []
    assert task.check_submission(path, folder / TEST_QUESTIONS) == []
    (folder / TEST_QUESTIONS).unlink()
    with pytest.raises(InputDataError, match=r"For a complete file of test-dev2015, .* needs exactly one file"):
        task.check_submission(path, folder / TEST_DEV_QUESTIONS)


def test_submissions_have_their_official_names(task: Task) -> None:
    assert task.submission_name("test") == "v2_OpenEnded_mscoco_test2015_dept_results.json"
    assert task.submission_name("test-dev") == "v2_OpenEnded_mscoco_test-dev2015_dept_results.json"
    easy = build(TaskSettings(splits={"test": "test"}))
    assert easy.submission_name("test") == "v2_OpenEnded_test_dept_results.json"


def test_the_majority_answer_is_the_most_frequent_and_then_the_first(task: Task) -> None:
    assert majority_answer(task.read(TOY_DATA, "train")) == "no"
    assert majority_answer([Example("1", "", (), references=("b", "a"))]) == "a"
