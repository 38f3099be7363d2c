from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from dept_vl.leaderboard import check_complete, score_files, write_evaluation, write_numbers
from dept_vl.settings import TaskSettings
from dept_vl.tasks.task import OfficialFiles, Task, load_task
from dept_vl.types import Example, Prediction
from feature_extraction.errors import InputDataError

TOY_DATA = Path(__file__).parent / "toy_data" / "vqa"
SUBMISSION = "v2_OpenEnded_mscoco_val2014_dept_results.json"


@pytest.fixture
def task() -> Task:
    return load_task(TaskSettings(splits={"validation": "val2014", "test": "test2015"}))


@pytest.fixture
def examples(task: Task) -> list[Example]:
    return task.read(TOY_DATA, "validation")


@pytest.fixture
def predictions(examples: list[Example]) -> list[Prediction]:
    return [Prediction(example.example_id, example.references[0]) for example in examples]


def test_an_evaluation_is_a_submission_metrics_and_scores(
    task: Task, examples: list[Example], predictions: list[Prediction], tmp_path: Path
) -> None:
    scores = write_evaluation(tmp_path / "run" / "validation", task, "validation", predictions, examples)
    folder = tmp_path / "run" / "validation"
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "scores.json", SUBMISSION]
    assert task.read_submission(folder / SUBMISSION) == predictions
    assert json.loads((folder / "metrics.json").read_text()) == scores.metrics
    assert json.loads((folder / "scores.json").read_text()) == scores.per_example
    assert all(isinstance(value, int | float) for value in scores.metrics.values())


def test_the_order_of_predictions_changes_no_byte(
    task: Task, examples: list[Example], predictions: list[Prediction], tmp_path: Path
) -> None:
    for name, order in (("a", predictions), ("b", predictions[::-1])):
        write_evaluation(tmp_path / name, task, "validation", order, examples)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_written_submission_scores_as_it_did_in_memory(
    task: Task, examples: list[Example], predictions: list[Prediction], tmp_path: Path
) -> None:
    scores = write_evaluation(tmp_path, task, "validation", predictions, examples)
    annotations = TOY_DATA / "v2_mscoco_val2014_annotations.json"
    assert score_files(task, tmp_path / SUBMISSION, OfficialFiles(annotations)) == scores


def test_withheld_answers_still_give_a_complete_submission(task: Task, tmp_path: Path) -> None:
    examples = task.read(TOY_DATA, "test")
    predictions = [Prediction(example.example_id, "yes") for example in examples]
    metrics = write_evaluation(tmp_path, task, "test", predictions, examples).metrics
    assert metrics["accuracy"] is None
    assert metrics["n"] == 4
    assert json.loads((tmp_path / "metrics.json").read_text())["accuracy"] is None
    assert len(task.read_submission(tmp_path / task.submission_name("test"))) == 4


def test_blank_ids_are_answered_with_nothing_behind_the_others_and_count_for_no_score(
    task: Task, examples: list[Example], predictions: list[Prediction], tmp_path: Path
) -> None:
    plain = write_evaluation(tmp_path / "plain", task, "validation", predictions, examples)
    scores = write_evaluation(tmp_path / "more", task, "validation", predictions, examples, blank_ids=["9", "8"])
    assert scores == plain
    found = task.read_submission(tmp_path / "more" / SUBMISSION)
    assert found == [*predictions, Prediction("9", ""), Prediction("8", "")]
    for name in ("metrics.json", "scores.json"):
        assert (tmp_path / "more" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_answers_to_further_questions_are_refused_unless_the_official_script_ignores_them(
    task: Task, examples: list[Example], predictions: list[Prediction], tmp_path: Path
) -> None:
    scores = write_evaluation(tmp_path, task, "validation", predictions, examples, blank_ids=["9"])
    files = OfficialFiles(TOY_DATA / "v2_mscoco_val2014_annotations.json")
    with pytest.raises(InputDataError, match=r"ids that the split does not have: 1 \(9\)"):
        score_files(task, tmp_path / SUBMISSION, files)
    assert score_files(replace(task, ignores_unknown=True), tmp_path / SUBMISSION, files) == scores


def test_missing_answers_are_refused_all_the_same(task: Task, predictions: list[Prediction], tmp_path: Path) -> None:
    task.submit(predictions[1:], tmp_path / SUBMISSION)
    files = OfficialFiles(TOY_DATA / "v2_mscoco_val2014_annotations.json")
    with pytest.raises(InputDataError, match=r"missing ids: 1 \(42000\)"):
        score_files(replace(task, ignores_unknown=True), tmp_path / SUBMISSION, files)


def test_missing_unknown_and_repeated_ids_are_all_named(
    task: Task, examples: list[Example], predictions: list[Prediction], tmp_path: Path
) -> None:
    wrong = [*predictions[2:], predictions[2], Prediction("7", "yes"), Prediction("7", "no")]
    message = (
        "missing ids: 2 (42000, 42001); ids that the split does not have: 1 (7); "
        "ids with more than one prediction: 2 (42002, 7)"
    )
    with pytest.raises(InputDataError, match=re.escape(f"These predictions: {message}")):
        write_evaluation(tmp_path / "none", task, "validation", wrong, examples)
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputDataError, match=re.escape(f"my.json: {message}")):
        check_complete(wrong, examples, source=Path("my.json"))


def test_one_prediction_for_each_example_is_complete_in_any_order(
    examples: list[Example], predictions: list[Prediction]
) -> None:
    check_complete(predictions[::-1], examples)


def test_numbers_are_written_with_null_into_a_new_folder(tmp_path: Path) -> None:
    write_numbers(tmp_path / "new" / "metrics.json", {"accuracy": None, "n": 3, "ci_low": 0.1})
    assert (tmp_path / "new" / "metrics.json").read_text() == '{\n "accuracy": null,\n "n": 3,\n "ci_low": 0.1\n}\n'


def test_numbers_are_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        write_numbers(tmp_path / "metrics.json", {"accuracy": float("nan")})
