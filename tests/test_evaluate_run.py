"""Evaluating a finished run, by command line and from Python."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dept_vl import evaluate_run
from dept_vl.command_line import run
from dept_vl.evaluate import main
from feature_extraction.errors import InputDataError, UsageError

SUBMISSION = "v2_OpenEnded_test_dept_results.json"


def evaluate(*arguments: object) -> int:
    return run(main, [str(argument) for argument in arguments])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_question_is_answered_once_and_the_scores_are_printed(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--run", finished_run, "--split", "test", "--output", tmp_path) == 0
    answers = json.loads((tmp_path / SUBMISSION).read_text())
    assert [row["question_id"] for row in answers] == list(range(3000, 3007))
    assert all(isinstance(row["answer"], str) for row in answers)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["n"] == 7
    assert 0 <= metrics["ci_low"] <= metrics["accuracy"] <= metrics["ci_high"] <= 100
    assert set(json.loads((tmp_path / "scores.json").read_text())) == {str(number) for number in range(3000, 3007)}
    captured = capsys.readouterr()
    printed = dict(line.rsplit(maxsplit=1) for line in captured.out.splitlines())
    assert printed == {name: "null" if value is None else str(value) for name, value in metrics.items()}
    assert captured.err.splitlines()[-3:] == [
        "trainable parameters: 160 of dept itself + 320 of the visual embedding = 480 (4.20 % of 11,440)",
        f"Leaderboard file: {tmp_path / SUBMISSION}",
        "number is null: no example has an answer_type of this kind",
    ]


def test_the_leaderboard_file_is_scored_alike_without_the_model(
    finished_run: Path, toy_vqa: Path, tmp_path: Path
) -> None:
    assert evaluate("--run", finished_run, "--split", "test", "--output", tmp_path) == 0
    again = tmp_path / "again.json"
    assert (
        evaluate(
            *("--task", "vqa", "--predictions", tmp_path / SUBMISSION, "--output", again),
            *("--annotations", toy_vqa / "v2_toy_test_annotations.json"),
            *("--questions", toy_vqa / "v2_OpenEnded_toy_test_questions.json"),
        )
        == 0
    )
    assert json.loads(again.read_text()) == json.loads((tmp_path / "metrics.json").read_text())


def test_files_are_the_same_for_any_batch_size(finished_run: Path, tmp_path: Path) -> None:
    for size in (1, 3, 256):
        arguments = ("--run", finished_run, "--split", "test", "--output", tmp_path / str(size))
        assert evaluate(*arguments, f"data.evaluation_batch_size={size}") == 0
    assert files(tmp_path / "1") == files(tmp_path / "3") == files(tmp_path / "256")


def test_by_default_the_files_lie_in_the_run(finished_run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    ((task, split, scores),) = evaluate_run(folder, "validation")
    assert (task, split) == ("vqa", "validation")
    assert scores.metrics == json.loads((folder / "evaluation" / "validation" / "metrics.json").read_text())
    assert scores.metrics["n"] == 6


def test_a_run_of_moved_data_and_features(finished_run: Path, toy_vqa: Path, toy_store: Path, tmp_path: Path) -> None:
    data, store = (Path(shutil.copytree(path, tmp_path / path.name)) for path in (toy_vqa, toy_store))
    evaluate_run(finished_run, "test", tmp_path / "here")
    moved = ("--data", data, "--features", store, "--output", tmp_path / "there")
    assert evaluate("--run", finished_run, "--split", "test", *moved) == 0
    assert files(tmp_path / "here") == files(tmp_path / "there")


def test_test_splits_without_answers_get_a_leaderboard_file_and_no_scores(
    finished_run: Path, toy_vqa: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(toy_vqa, tmp_path / "data"))
    (data / "v2_toy_test_annotations.json").unlink()
    ((_, _, scores),) = evaluate_run(finished_run, "test", tmp_path / "out", data=data)
    metrics = scores.metrics
    assert (metrics["accuracy"], metrics["n"]) == (None, 7)
    assert len(json.loads((tmp_path / "out" / SUBMISSION).read_text())) == 7


def test_an_unknown_split_is_refused(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^No split is called 'tets'\. Did you mean 'test'\?"):
        evaluate_run(finished_run, "tets", tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--run", tmp_path, "--split", "test") == 3
    assert f"error: {tmp_path} is not the folder of a run" in capsys.readouterr().err


def test_missing_features_are_refused_before_the_work(finished_run: Path, toy_vqa: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(toy_vqa, tmp_path / "data"))
    for name in ("v2_OpenEnded_toy_test_questions.json", "v2_toy_test_annotations.json"):
        path = data / name
        path.write_text(
            path.read_text().replace('"image_id": 3,', '"image_id": 9,').replace('"image_id": 3}', '"image_id": 9}')
        )
    with pytest.raises(InputDataError) as raised:
        evaluate_run(finished_run, "test", tmp_path / "out", data=data)
    message = str(raised.value)
    assert message.startswith(f"Split 'test' of {data}: 1 of 7 examples refer to 1 images without features in ")
    assert "'toy_test_000000000009'" in message
    assert not (tmp_path / "out").exists()


def test_settings_that_the_run_was_not_trained_with_are_refused(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--run", finished_run, "--split", "test", "--output", tmp_path / "out")
    assert evaluate(*arguments, "visual.position_rule=vl_t5") == 4
    assert "visual.position_rule  joint     vl_t5" in capsys.readouterr().err
    assert evaluate(*arguments, "task.num_beam=2") == 2
    assert "In the command line: unknown key 'task.num_beam'. Did you mean 'task.num_beams'?" in capsys.readouterr().err
