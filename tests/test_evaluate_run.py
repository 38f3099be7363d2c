"""Evaluating a finished run, by command line and from Python."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dept_vl import evaluate_run, inference, run_folder
from dept_vl.command_line import run
from dept_vl.evaluate import main
from dept_vl.settings import TaskSettings
from dept_vl.tasks.answers import answer_vocabulary
from dept_vl.tasks.task import Task, load_task
from dept_vl.types import Batch
from feature_extraction.errors import InputDataError, UsageError

SUBMISSION = "v2_OpenEnded_test_dept_results.json"


class Stopped(BaseException):
    """Stands for the end of the process: no handler of errors sees it."""


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


def test_a_run_that_was_trained_freely_can_answer_from_its_training_vocabulary(
    finished_run: Path, toy_vqa: Path, tmp_path: Path
) -> None:
    def answers(*overrides: str) -> set[str]:
        output = tmp_path / "-".join(overrides)
        assert evaluate("--run", finished_run, "--split", "test", "--output", output, *overrides) == 0
        return {row["answer"] for row in json.loads(next(output.glob("v2_*.json")).read_bytes())}

    task = load_task(TaskSettings(splits={"train": "train"}))
    vocabulary = answer_vocabulary(task.read(toy_vqa, "train"), None)
    assert answers("task.constrained=true") <= set(vocabulary)
    assert answers("task.constrained=true", "task.answer_count=2") <= set(vocabulary[:2])


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


class Answered:
    """Which batches were answered."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, ...]] = []
        self.stop_before: int | None = None  # the number of batches answered before


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_at(patch: pytest.MonkeyPatch, wanted: int) -> None:
    """Stop at the ``wanted``-th call that puts something on disk."""
    calls = 0

    def watch(name: str) -> None:
        original: Callable[..., Any] = getattr(os, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == wanted:
                raise Stopped
            return original(*arguments, **options)

        patch.setattr(os, name, counted)

    for name in ("write", "replace"):
        watch(name)


class TestGoingOn:
    """An evaluation that was stopped goes on at the same call, and its files do not tell."""

    BATCHES = 4  # of seven questions, two at a time

    @pytest.fixture
    def whole(self, finished_run: Path, tmp_path: Path) -> dict[str, bytes]:
        """The files of an evaluation that nothing stopped."""
        evaluate_run(finished_run, "test", tmp_path / "whole", ["data.evaluation_batch_size=2"])
        return files(tmp_path / "whole")

    @pytest.fixture
    def answered(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answered]:
        """The example ids of each batch that is answered; fails before a given one."""
        watched = Answered()
        original = inference.answer_batch

        def answer(model: Any, batch: Batch, *rest: Any) -> list[str]:
            if len(watched.batches) == watched.stop_before:
                raise Stopped
            watched.batches.append(batch.example_ids)
            return original(model, batch, *rest)

        monkeypatch.setattr(inference, "answer_batch", answer)
        return watched

    def again(self, run_path: Path, output: Path, *overrides: str, **options: Any) -> dict[str, bytes]:
        evaluate_run(run_path, "test", output, ["data.evaluation_batch_size=2", *overrides], **options)
        return files(output)

    @pytest.mark.parametrize("stop", range(BATCHES))
    def test_after_a_stop_what_is_answered_is_not_answered_again_and_the_files_are_the_same(
        self,
        finished_run: Path,
        tmp_path: Path,
        whole: dict[str, bytes],
        answered: Answered,
        capsys: pytest.CaptureFixture[str],
        stop: int,
    ) -> None:
        answered.stop_before = stop
        with pytest.raises(Stopped):
            self.again(finished_run, tmp_path / "out")
        assert names(tmp_path / "out") == ["answers.partial"]
        answered.stop_before = None
        capsys.readouterr()
        assert self.again(finished_run, tmp_path / "out") == whole
        assert len(answered.batches) == self.BATCHES  # in both evaluations together
        assert sorted(one for batch in answered.batches for one in batch) == [str(3000 + number) for number in range(7)]
        told = f"Going on: {2 * stop} of 7 examples are answered already\n"
        assert (told in capsys.readouterr().err) is (stop > 0)

    def test_stops_after_each_batch_end_in_the_same_files(
        self, finished_run: Path, tmp_path: Path, whole: dict[str, bytes], answered: Answered
    ) -> None:
        for stop in range(1, self.BATCHES):
            answered.stop_before = stop
            with pytest.raises(Stopped):
                self.again(finished_run, tmp_path / "out")
        answered.stop_before = None
        assert self.again(finished_run, tmp_path / "out") == whole
        assert len(answered.batches) == self.BATCHES

    def test_a_stop_at_every_write_ends_in_the_same_files(
        self, finished_run: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        stops = 0
        while True:
            with pytest.MonkeyPatch.context() as patch:
                fail_at(patch, stops + 1)
                try:
                    self.again(finished_run, tmp_path / "out" / str(stops))
                except Stopped:
                    stops += 1
                else:
                    break
            assert self.again(finished_run, tmp_path / "out" / str(stops - 1)) == whole, f"stop {stops}"
        # Collected answers, four batches, three files; a write and a replacement each, but for what is appended.
        assert stops == 2 + self.BATCHES + 3 * 2

    def test_a_stop_before_the_files_are_written_costs_no_answer(
        self, finished_run: Path, tmp_path: Path, whole: dict[str, bytes], answered: Answered
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:

            def stop(*arguments: Any, **options: Any) -> None:
                raise Stopped

            patch.setattr(inference, "write_evaluation", stop)
            with pytest.raises(Stopped):
                self.again(finished_run, tmp_path / "out")
        assert self.again(finished_run, tmp_path / "out") == whole
        assert len(answered.batches) == self.BATCHES

    def test_a_torn_last_line_is_answered_again(
        self, finished_run: Path, tmp_path: Path, whole: dict[str, bytes], answered: Answered
    ) -> None:
        answered.stop_before = 2
        with pytest.raises(Stopped):
            self.again(finished_run, tmp_path / "out")
        log = tmp_path / "out" / "answers.partial" / "process-0.jsonl"
        log.write_bytes(log.read_bytes()[:-3])
        answered.stop_before = None
        assert self.again(finished_run, tmp_path / "out") == whole
        assert answered.batches[2] == answered.batches[1]  # the whole batch, as before
        assert len(answered.batches) == self.BATCHES + 1

    def test_a_finished_evaluation_is_answered_anew(
        self, finished_run: Path, tmp_path: Path, whole: dict[str, bytes], answered: Answered
    ) -> None:
        for count in (1, 2):
            assert self.again(finished_run, tmp_path / "out") == whole
            assert len(answered.batches) == count * self.BATCHES

    @pytest.mark.parametrize("change", ["task.num_beams=3", "task.prefix=vqa : ", "data.evaluation_batch_size=3"])
    def test_answers_of_other_settings_are_not_taken_over(
        self, finished_run: Path, tmp_path: Path, answered: Answered, change: str
    ) -> None:
        fresh = self.again(finished_run, tmp_path / "fresh", change)
        batches = len(answered.batches)
        answered.stop_before = batches + 2
        with pytest.raises(Stopped):
            self.again(finished_run, tmp_path / "out")
        answered.stop_before = None
        assert self.again(finished_run, tmp_path / "out", change) == fresh
        assert len(answered.batches) == 2 * batches + 2

    def test_answers_to_other_questions_are_not_taken_over(
        self, finished_run: Path, toy_vqa: Path, tmp_path: Path, answered: Answered
    ) -> None:
        data = Path(shutil.copytree(toy_vqa, tmp_path / "data"))
        questions = data / "v2_OpenEnded_toy_test_questions.json"
        questions.write_text(questions.read_text().replace("what is the color ?", "how many dog ?"))
        answered.stop_before = 2
        with pytest.raises(Stopped):
            self.again(finished_run, tmp_path / "out")
        answered.stop_before = None
        self.again(finished_run, tmp_path / "out", data=data)
        assert len(answered.batches) == 2 + self.BATCHES

    def test_answers_of_another_model_are_not_taken_over(
        self, finished_run: Path, finished_pair: Path, tmp_path: Path, whole: dict[str, bytes], answered: Answered
    ) -> None:
        answered.stop_before = 3
        with pytest.raises(Stopped):
            self.again(finished_pair, tmp_path / "out", task="vqa")
        answered.stop_before = None
        assert self.again(finished_run, tmp_path / "out") == whole
        assert len(answered.batches) == 3 + self.BATCHES


class TestSplitsThatTheServerTakesTogether:
    @pytest.fixture
    def packed(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Mapping[str, Path], Path]]:
        """What was packed and where, of a task whose server takes validation and test together."""
        packed: list[tuple[Mapping[str, Path], Path]] = []

        def bundle(parts: Mapping[str, Path], path: Path) -> None:
            packed.append((dict(parts), path))
            path.write_bytes(b"".join(part.read_bytes() for part in parts.values()))

        def together(split: str) -> tuple[str, ...]:
            return ("validation", "test") if split in ("validation", "test") else (split,)

        original = run_folder.load_task

        def load_task(*arguments: Any) -> Task:
            return replace(original(*arguments), server_splits=together, bundle=bundle)

        monkeypatch.setattr(run_folder, "load_task", load_task)
        return packed

    def test_both_are_evaluated_and_packed_into_one_file_of_the_one_that_was_asked_for(
        self,
        finished_run: Path,
        tmp_path: Path,
        packed: list[tuple[Mapping[str, Path], Path]],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert evaluate("--run", finished_run, "--split", "test", "--output", tmp_path / "out" / "here") == 0
        out = tmp_path / "out"
        assert names(out) == ["here", "validation"]
        parts = {
            "validation": out / "validation" / SUBMISSION.replace("test", "val"),
            "test": out / "here" / SUBMISSION,
        }
        assert packed == [(parts, out / "here" / "results.zip")]
        captured = capsys.readouterr()
        assert f"Leaderboard file: {out / 'here' / 'results.zip'}\n" in captured.err
        assert [line for line in captured.out.splitlines() if line.startswith("vqa ")] == ["vqa validation", "vqa test"]

    def test_one_is_evaluated_alone_if_asked_for(
        self, finished_run: Path, tmp_path: Path, packed: list[tuple[Mapping[str, Path], Path]]
    ) -> None:
        assert evaluate("--run", finished_run, "--split", "test", "--output", tmp_path / "out", "--single") == 0
        assert set(files(tmp_path / "out")) == {SUBMISSION, "metrics.json", "scores.json"}
        assert packed == []

    def test_a_split_that_goes_alone_is_not_packed(
        self, finished_run: Path, tmp_path: Path, packed: list[tuple[Mapping[str, Path], Path]]
    ) -> None:
        assert [one.split for one in evaluate_run(finished_run, "train", tmp_path / "out")] == ["train"]
        assert packed == []


def test_what_the_server_wants_beyond_the_split_is_in_the_file_and_not_in_the_scores(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = run_folder.load_task
    monkeypatch.setattr(
        run_folder, "load_task", lambda settings: replace(original(settings), blank_ids=lambda *_: ["8000", "8001"])
    )
    ((_, _, scores),) = evaluate_run(finished_run, "test", tmp_path)
    rows = json.loads((tmp_path / SUBMISSION).read_text())
    assert [row["question_id"] for row in rows] == [*range(3000, 3007), 8000, 8001]
    assert [row["answer"] for row in rows[-2:]] == ["", ""]
    assert scores.metrics["n"] == 7
    assert len(scores.per_example) == 7
