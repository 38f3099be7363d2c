from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dept_vl import evaluate_run, report, report_picture
from dept_vl.command_line import run
from dept_vl.config import load_settings, settings_to_yaml
from dept_vl.leaderboard import write_evaluation
from dept_vl.report import report_run, write_report
from dept_vl.report_picture import Answer
from dept_vl.tasks.task import load_task
from dept_vl.types import Example, Prediction
from feature_extraction.errors import InputDataError, UsageError
from feature_extraction.images.decoding import ImageFile

TOY_DATA = Path(__file__).parent / "toy_data" / "vqa"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The log of 400 steps, with a field that this picture does not draw."""
    records: list[dict[str, Any]] = [{"step": step, "loss": 200 / step, "seconds": 1.5} for step in range(10, 401, 10)]
    records.append({"step": 400, "validation": {"accuracy": 62.5, "number": None}})
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def image_files(tmp_path: Path) -> dict[str, ImageFile]:
    files = [ImageFile(f"image{number}", tmp_path / f"{number}.png") for number in range(12)]
    for number, file in enumerate(files):
        Image.new("RGB", (30 + 9 * number, 40), (20 * number, 90, 200)).save(file.path)
    return {file.image_id: file for file in files}


def example(number: int, text: str = "what is it?", *, images: tuple[str, ...] | None = None) -> Example:
    return Example(f"q{number}", text, images if images is not None else (f"image{number % 12}",), ("red",) * 10)


def arguments(log: Path, image_files: dict[str, ImageFile], count: int = 24) -> dict[str, Any]:
    """A third of the answers is wrong."""
    examples = [example(number) for number in range(count)]
    return {
        "log_path": log,
        "examples": examples,
        "predictions": [Prediction(one.example_id, "red") for one in examples],
        "per_example": {one.example_id: float(number % 3 > 0) for number, one in enumerate(examples)},
        "image_files": image_files,
        "title": "vqa test",
    }


def drawn(monkeypatch: pytest.MonkeyPatch, path: Path, **changes: Any) -> dict[str, Any]:
    """What ``write_report`` gives to the drawing."""
    given: dict[str, Any] = {}

    def record(**options: Any) -> bytes:
        given.update(options)
        return b""

    monkeypatch.setattr(report_picture, "draw_report", record)
    write_report(path, **changes)
    return given


class TestChoice:
    def test_half_of_the_answers_are_right_and_half_wrong_all_on_different_images(
        self, log: Path, image_files: dict[str, ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = drawn(monkeypatch, tmp_path / "report.png", **arguments(log, image_files))
        assert [answer.right for answer in given["answers"]] == [True] * 4 + [False] * 4
        assert len({answer.pictures for answer in given["answers"]}) == 8
        assert given["heading"] == "4 of the 16 right answers and 4 of the 8 wrong ones, drawn at random"

    @pytest.mark.parametrize("score", [0.0, 0.3, 0.6, 1.0])
    def test_answers_all_of_one_kind_fill_the_picture(
        self,
        log: Path,
        image_files: dict[str, ImageFile],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        score: float,
    ) -> None:
        given = arguments(log, image_files)
        given["per_example"] = dict.fromkeys(given["per_example"], score)
        answers = drawn(monkeypatch, tmp_path / "report.png", **given)["answers"]
        assert [answer.right for answer in answers] == [score >= 0.5] * 8

    def test_the_order_of_the_examples_does_not_matter(
        self, log: Path, image_files: dict[str, ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = arguments(log, image_files)
        first = drawn(monkeypatch, tmp_path / "report.png", **given)["answers"]
        random.Random(1).shuffle(given["examples"])
        assert drawn(monkeypatch, tmp_path / "report.png", **given)["answers"] == first

    def test_few_examples_are_all_shown_with_their_answers(
        self, log: Path, image_files: dict[str, ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = arguments(log, image_files, count=3)
        given["predictions"] = given["predictions"][:1]
        answers = drawn(monkeypatch, tmp_path / "report.png", **given)["answers"]
        assert sorted(answer.answer for answer in answers) == ["", "", "red"]

    def test_without_scores_answers_are_neither_right_nor_wrong(
        self, log: Path, image_files: dict[str, ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given = drawn(monkeypatch, tmp_path / "report.png", **{**arguments(log, image_files), "per_example": {}})
        assert {answer.right for answer in given["answers"]} == {None}
        assert given["heading"] == "8 of 24 answers, drawn at random"

    def test_examples_whose_images_are_not_there_are_passed_over(
        self, log: Path, image_files: dict[str, ImageFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        some = {"image3": image_files["image3"]}
        answers = drawn(monkeypatch, tmp_path / "report.png", **arguments(log, some))["answers"]
        assert {answer.pictures for answer in answers} == {(image_files["image3"],)}

    def test_none_of_the_images_is_an_error(self, log: Path, tmp_path: Path) -> None:
        with pytest.raises(InputDataError) as caught:
            write_report(tmp_path / "report.png", **arguments(log, {}))
        assert str(caught.value) == (
            "None of the 24 examples has its images among the 0 images given; the first misses 'image0'. "
            "Give those that the features were extracted from: --images DIR"
        )


class TestPicture:
    def test_equal_input_gives_equal_bytes(self, log: Path, image_files: dict[str, ImageFile], tmp_path: Path) -> None:
        for name in ("a.png", "new/b.png"):
            write_report(tmp_path / name, **arguments(log, image_files))
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "new" / "b.png").read_bytes()
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.format == "PNG"
            assert picture.width == 1300
            assert len(set(picture.convert("L").tobytes())) > 50

    def test_right_is_green_and_wrong_is_red(
        self, log: Path, image_files: dict[str, ImageFile], tmp_path: Path
    ) -> None:
        found = {}
        for score in (0.0, 1.0):
            given = arguments(log, image_files, count=1)
            write_report(tmp_path / "report.png", **{**given, "per_example": {"q0": score}})
            with Image.open(tmp_path / "report.png") as picture:
                pixels = np.asarray(picture.convert("RGB"))
            found[score] = [
                bool((pixels == tuple(bytes.fromhex(colour[1:]))).all(axis=2).any())
                for colour in (report_picture.GREEN, report_picture.RED)
            ]
        assert found == {0.0: [False, True], 1.0: [True, False]}

    @pytest.mark.parametrize("text", ["$5 or $6?", "\\frac{1}{", "这是什么 😀", "", "\u202eabc\n\tdef", "w" * 500])
    def test_any_text_can_be_drawn(
        self, log: Path, image_files: dict[str, ImageFile], tmp_path: Path, text: str
    ) -> None:
        given = arguments(log, image_files, count=1)
        given["examples"] = [Example("q0", text, ("image0",), (text,))]
        write_report(tmp_path / "report.png", **{**given, "predictions": [Prediction("q0", text)], "title": text})
        assert (tmp_path / "report.png").stat().st_size > 0

    @pytest.mark.parametrize("text", ["why " * 60, "w" * 300, "a" + "W" * 40 + " b", "one two three"])
    @pytest.mark.parametrize("most", [1, 3])
    def test_lines_are_no_wider_than_their_column_and_lose_no_word_but_at_the_end(self, text: str, most: int) -> None:
        lines = [line.text for line in report_picture._fit(text, 2.85, most, 10)]
        assert len(lines) <= most
        font = report_picture.FontProperties(size=10)
        widths = [
            report_picture.text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] for line in lines
        ]
        assert max(widths) <= 2.85 * 72
        joined = "".join(lines).replace(" ", "").removesuffix("…")
        assert text.replace(" ", "").startswith(joined)
        assert lines[-1].endswith(" …") == (joined != text.replace(" ", ""))

    def test_an_empty_log_an_unreadable_image_and_two_images_are_drawn(
        self, image_files: dict[str, ImageFile], tmp_path: Path
    ) -> None:
        image_files["image0"].path.write_bytes(b"no image")
        given = arguments(tmp_path / "absent.jsonl", image_files, count=1)
        given["examples"] = [example(0, images=("image0", "image1"))]
        write_report(tmp_path / "report.png", **given)
        assert (tmp_path / "report.png").stat().st_size > 0

    def test_texts_alone_take_less_room_than_pictures(
        self, log: Path, image_files: dict[str, ImageFile], tmp_path: Path
    ) -> None:
        given = arguments(log, image_files, count=1)
        heights = []
        for images in (("image0",), ()):
            write_report(tmp_path / "report.png", **{**given, "examples": [example(0, images=images)]})
            with Image.open(tmp_path / "report.png") as picture:
                heights.append(picture.height)
        assert heights[0] - heights[1] == 100 * report_picture.PICTURE_HEIGHT

    def test_references_are_counted_where_they_differ(self) -> None:
        assert report_picture._references(("red",) * 10) == "red"
        assert report_picture._references(("red", "blue", "red")) == "red (2), blue (1)"
        assert report_picture._references(("a red bus", "a bus")) == "a red bus, a bus"
        assert report_picture._references(()) == "none"
        assert report_picture._references(()) == "none"

    def test_long_curves_are_drawn_with_their_running_mean(self) -> None:
        log = [{"step": step, "loss": 1 / step} for step in range(1, 301)]
        picture = report_picture.draw_report(title="", log=log, metric="accuracy", heading="", answers=[])
        assert picture.startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_named_with_its_remedy(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "dept_vl.report_picture")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"The report picture needs matplotlib.*Run: pip install 'dept_vl\[demo\]'"):
        write_report(tmp_path / "report.png", **arguments(log, {}))


class TestCommand:
    @pytest.fixture
    def run_folder(self, log: Path, tmp_path: Path) -> Path:
        """A run that has answered the validation questions, without its model."""
        folder = tmp_path / "run"
        folder.mkdir()
        settings = load_settings({"task": "vqa"}, [])
        (folder / "config.yaml").write_text(settings_to_yaml(settings))
        (folder / "run.json").write_text(json.dumps({"data": {"vqa": str(TOY_DATA)}}))
        shutil.copy(log, folder / "log.jsonl")
        task = load_task(settings.task)
        examples = task.read(TOY_DATA, "validation")
        answers = [Prediction(one.example_id, one.references[0]) for one in examples]
        write_evaluation(folder / "evaluation" / "validation", task, "validation", answers, examples)
        images = tmp_path / "images"
        images.mkdir()
        for image_id in {image_id for one in examples for image_id in one.image_ids}:
            Image.new("RGB", (8, 8)).save(images / f"{image_id}.png")
        return folder

    def test_a_report_lies_beside_the_evaluation_and_is_named(
        self, run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: dict[str, Any] = {}
        draw = report_picture.draw_report
        monkeypatch.setattr(report_picture, "draw_report", lambda **options: given.update(options) or draw(**options))
        images = run_folder.parent / "images"
        assert run(report.main, ["--run", str(run_folder), "--split", "validation", "--images", str(images)]) == 0
        path = run_folder / "evaluation" / "validation" / "report.png"
        assert f"Report picture: {path}" in capsys.readouterr().err
        with Image.open(path) as picture:
            assert picture.format == "PNG"
        metrics = json.loads((path.parent / "metrics.json").read_text())
        assert given["title"] == f"vqa validation, accuracy {metrics['accuracy']:.2f} (dept on t5-mini)"
        assert all(isinstance(answer, Answer) and answer.pictures for answer in given["answers"])

    def test_places_can_be_given(self, run_folder: Path, tmp_path: Path) -> None:
        evaluation = (run_folder / "evaluation" / "validation").rename(tmp_path / "elsewhere")
        options = ["--run", str(run_folder), "--split", "validation", "--images", str(tmp_path / "images")]
        options += ["--evaluation", str(evaluation), "--data", str(TOY_DATA), "--output", str(tmp_path / "picture.png")]
        assert run(report.main, options) == 0
        assert (tmp_path / "picture.png").is_file()

    def test_a_split_that_was_not_evaluated_is_an_error(self, run_folder: Path) -> None:
        evaluation = run_folder / "evaluation" / "test"
        with pytest.raises(InputDataError) as caught:
            report_run(run_folder, "test", path_png=run_folder / "a.png", evaluation=evaluation, images=None, data=None)
        assert str(caught.value).startswith(
            f"No evaluation of split 'test': {evaluation / 'metrics.json'} cannot be read"
        )
        assert str(caught.value).endswith(f"Run: python -m dept_vl.evaluate --run {run_folder} --split test")


class TestSeveralTasks:
    @pytest.fixture
    def pair(self, finished_pair: Path, tmp_path: Path) -> Path:
        """A run of two tasks whose test splits are evaluated, and pictures beside it."""
        folder = Path(shutil.copytree(finished_pair, tmp_path / "pair"))
        evaluate_run(folder, "test")
        (tmp_path / "images").mkdir()
        for number in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"toy_test_{number:012d}.png")
        return folder

    @pytest.mark.parametrize("task", ["vqa", "nlvr2"])
    def test_a_report_is_of_one_task_and_its_validations(
        self, pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
    ) -> None:
        given: dict[str, Any] = {}
        draw = report_picture.draw_report
        monkeypatch.setattr(report_picture, "draw_report", lambda **options: given.update(options) or draw(**options))
        images = ["--images", str(tmp_path / "images")]
        assert run(report.main, ["--run", str(pair), "--split", "test", "--task", task, *images]) == 0
        assert (pair / "evaluation" / task / "test" / "report.png").is_file()
        assert given["title"].startswith(f"{task} test, accuracy ")
        assert {record["task"] for record in given["log"] if "validation" in record} == {task}
        assert sum("loss" in record for record in given["log"]) == 7  # steps are of the whole run
        assert len(given["answers"][0].pictures) == (2 if task == "nlvr2" else 1)

    def test_the_task_must_be_named_and_be_there(self, pair: Path) -> None:
        with pytest.raises(UsageError, match="has several tasks; name one of them, as in --task vqa: vqa, nlvr2"):
            report_run(pair, "test")
        with pytest.raises(UsageError, match="has no task 'gqa'"):
            report_run(pair, "test", task="gqa")
