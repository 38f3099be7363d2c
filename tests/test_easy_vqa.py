from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dept_vl.command_line import run
from dept_vl.easy_vqa import SPLITS, convert, main, summary
from dept_vl.tasks.vqa import read
from feature_extraction.errors import InputDataError, UsageError

TRAIN_QUESTIONS = (
    ["is there a circle?", "what color is the circle?", "is there a box?"],
    ["yes", "red", "no"],
    [0, 1, 12],
)
TEST_QUESTIONS = (["is there a circle?", "what shape is present?"], ["yes", "circle"], [0, 1])


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package easy_vqa with three training images and two for the test."""

    def image_paths(part: str, image_ids: list[int]) -> dict[int, str]:
        folder = tmp_path / "package" / part
        folder.mkdir(parents=True)
        for image_id in image_ids:
            (folder / f"{image_id}.png").write_bytes(f"{part} {image_id}".encode())
        return {image_id: str(folder / f"{image_id}.png") for image_id in image_ids}

    train, test = image_paths("train", [0, 1, 12]), image_paths("test", [0, 1])
    module = ModuleType("easy_vqa")
    module.__dict__.update(
        get_train_questions=lambda: TRAIN_QUESTIONS,
        get_test_questions=lambda: TEST_QUESTIONS,
        get_train_image_paths=lambda: train,
        get_test_image_paths=lambda: test,
    )
    monkeypatch.setitem(sys.modules, "easy_vqa", module)


@pytest.mark.usefixtures("package")
def test_questions_and_answers_are_read_back_as_vqa(tmp_path: Path) -> None:
    assert convert(tmp_path / "data")
    examples = [one for split in SPLITS for one in read(tmp_path / "data", split, splits=SPLITS)]
    assert [(one.text, one.references) for one in examples] == [
        ("what color is the circle?", ("red",) * 10),
        ("is there a box?", ("no",) * 10),
        ("is there a circle?", ("yes",) * 10),
        ("is there a circle?", ("yes",) * 10),
        ("what shape is present?", ("circle",) * 10),
    ]
    assert examples[0].slices == {"question_type": "what color", "answer_type": "other"}
    assert examples[1].slices == {"question_type": "is there", "answer_type": "yes/no"}
    assert examples[0].targets == (("red", 1.0),)


@pytest.mark.usefixtures("package")
def test_question_ids_are_unique_over_the_splits(tmp_path: Path) -> None:
    convert(tmp_path / "data")
    ids = {split: [one.example_id for one in read(tmp_path / "data", split, splits=SPLITS)] for split in SPLITS}
    assert ids == {"train": ["2", "3"], "validation": ["1"], "test": ["4", "5"]}


@pytest.mark.usefixtures("package")
def test_each_image_is_copied_under_the_id_of_its_questions(tmp_path: Path) -> None:
    convert(tmp_path / "data")
    copied = {path.name: path.read_text() for path in (tmp_path / "data" / "images").iterdir()}
    assert copied == {
        "easy_vqa_train_000000000001.png": "train 1",
        "easy_vqa_train_000000000012.png": "train 12",
        "easy_vqa_val_000000000000.png": "train 0",
        "easy_vqa_test_000000000000.png": "test 0",
        "easy_vqa_test_000000000001.png": "test 1",
    }
    wanted = {
        f"{image_id}.png"
        for split in SPLITS
        for one in read(tmp_path / "data", split, splits=SPLITS)
        for image_id in one.image_ids
    }
    assert wanted == set(copied)


@pytest.mark.usefixtures("package")
def test_the_files_have_the_official_layout(tmp_path: Path) -> None:
    convert(tmp_path / "data")
    questions = json.loads((tmp_path / "data" / "v2_OpenEnded_easy_vqa_val_questions.json").read_text())
    annotations = json.loads((tmp_path / "data" / "v2_easy_vqa_val_annotations.json").read_text())
    assert questions["task_type"] == "Open-Ended"
    assert questions["data_type"] == annotations["data_type"] == "easy_vqa"
    assert questions["data_subtype"] == annotations["data_subtype"] == "val"
    (annotation,) = annotations["annotations"]
    assert annotation["multiple_choice_answer"] == "yes"
    assert annotation["answers"][9] == {"answer_id": 10, "answer": "yes", "answer_confidence": "yes"}


@pytest.mark.usefixtures("package")
def test_converting_again_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--output", str(tmp_path / "data")]
    assert run(main, arguments) == 0
    assert "Wrote" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert run(main, arguments) == 0
    assert "is there already; nothing to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before


@pytest.mark.usefixtures("package")
def test_what_a_stopped_conversion_left_is_no_part_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "data.partial" / "images").mkdir(parents=True)
    (tmp_path / "data.partial" / "images" / "easy_vqa_train_0.png").write_text("half")
    (tmp_path / "data").mkdir()
    assert convert(tmp_path / "data")
    assert len(list((tmp_path / "data" / "images").iterdir())) == 5
    assert not (tmp_path / "data.partial").exists()


@pytest.mark.usefixtures("package")
def test_the_summary_gives_sizes_and_the_majority_baseline(tmp_path: Path) -> None:
    convert(tmp_path / "data")
    assert list(summary(tmp_path / "data")) == [
        'train           2 questions      2 images  always "no": 50.0 %',
        'validation      1 questions      1 images  always "no": 0.0 %',
        'test            2 questions      2 images  always "no": 0.0 %',
    ]


@pytest.mark.usefixtures("package")
def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("mine")
    with pytest.raises(InputDataError, match=r"data holds something else than this data set. Give a new folder"):
        convert(tmp_path / "data")
    assert (tmp_path / "data" / "thesis.txt").read_text() == "mine"


def test_a_missing_package_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(UsageError, match=r'easy-vqa is not installed. Run: pip install "dept_vl\[demo\]"'):
        convert(tmp_path / "data")


def test_the_whole_data_set_has_its_published_size_and_baseline(tmp_path: Path) -> None:
    pytest.importorskip("easy_vqa")
    convert(tmp_path / "data")
    assert list(summary(tmp_path / "data")) == [
        'train      34,676 questions  3,600 images  always "yes": 36.93 %',
        'validation  3,899 questions    400 images  always "yes": 36.5 %',
        'test        9,673 questions  1,000 images  always "yes": 37.33 %',
    ]
