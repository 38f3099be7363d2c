from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dept_vl.config import load_settings
from dept_vl.formats.submission import contents
from dept_vl.metrics.caption import FIGURES, caption_scores
from dept_vl.settings import TaskSettings
from dept_vl.tasks.caption import build
from dept_vl.tasks.task import OfficialFiles, Task
from dept_vl.types import Example, Prediction
from feature_extraction.errors import InputDataError

TOY_DATA = Path(__file__).parents[1] / "toy_data" / "caption"
SPLITS = {"train": "karpathy_train", "validation": "karpathy_val", "test": "karpathy_test"}
SERVER = {"val2014": "val2014", "test2014": "test2014"}
OFFICIAL, IMAGES = "captions_val2014.json", "image_info_test2014.json"
ANSWERS = {"73": "a motorcycle", "42": "a dog sleeping on shoes", "74": "a dog", "133": "a bed", "136": "a giraffe"}


def make(**splits: str) -> Task:
    return build(TaskSettings(name="caption", module="caption", splits={**SPLITS, **SERVER, **splits}))


@pytest.fixture
def task() -> Task:
    return make()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(TOY_DATA, tmp_path / "caption")


@pytest.fixture(autouse=True)
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def change(path: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def answers(examples: list[Example]) -> list[Prediction]:
    return [Prediction(one.example_id, ANSWERS.get(one.example_id, "a dog")) for one in reversed(examples)]


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(InputDataError) as raised:
        read()
    return str(raised.value)


# ----------------------------------------------------------------------------------------------------------- reading


def test_an_example_is_an_image_with_its_captions_as_written(task: Task) -> None:
    vase = task.read(TOY_DATA, "train")[1]
    assert (vase.example_id, vase.text, vase.image_ids) == ("30", "", ("COCO_train2014_000000000030",))
    assert vase.references[1] == "White vase with different colored flowers sitting inside of it. "


def test_each_caption_is_a_target_on_one_line(task: Task, folder: Path) -> None:
    def edit(content: Any) -> None:
        content["images"][0]["sentences"] = [{"raw": " a  dog\nruns "}, {"raw": " \n"}]

    change(folder / "dataset_coco.json", edit)
    example = task.read(folder, "train")[0]
    assert example.targets == (("a dog runs", 1.0),)
    assert example.references == (" a  dog\nruns ", " \n")


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("train", ["25", "30", "34", "73"]),
        ("validation", ["42", "74"]),
        ("test", ["133", "136"]),
        ("val2014", ["73", "42", "74", "133", "136"]),
        ("test2014", ["1", "14", "16"]),
    ],
)
def test_splits_are_karpathys_or_official(task: Task, split: str, numbers: list[str]) -> None:
    assert [one.example_id for one in task.read(TOY_DATA, split)] == numbers


def test_both_kinds_of_file_give_the_same_examples(task: Task) -> None:
    official = {one.example_id: one for one in task.read(TOY_DATA, "val2014")}
    for one in task.read(TOY_DATA, "test"):
        twin = official[one.example_id]
        assert (one.image_ids, sorted(one.references)) == (twin.image_ids, sorted(twin.references))


def test_a_test_split_has_images_alone(task: Task) -> None:
    examples = task.read(TOY_DATA, "test2014")
    assert examples[1] == Example("14", "", ("COCO_test2014_000000000014",))


def test_sources_are_joined(folder: Path) -> None:
    task = make(train="karpathy_train+karpathy_val+test2014")
    assert len(task.read(folder, "train")) == 4 + 2 + 3


def test_official_files_may_lie_in_the_folder_of_their_archive(task: Task, folder: Path) -> None:
    (folder / "annotations").mkdir()
    (folder / OFFICIAL).rename(folder / "annotations" / OFFICIAL)
    assert len(task.read(folder, "val2014")) == 5


def test_published_captions_count_where_both_files_are_there(task: Task, folder: Path) -> None:
    shutil.copy(folder / IMAGES, folder / "image_info_val2014.json")
    assert task.read(folder, "val2014")[0].references


def test_other_data_in_karpathys_layout_is_read(task: Task, folder: Path) -> None:
    (folder / "dataset_coco.json").rename(folder / "dataset_flickr8k.json")
    assert len(task.read(folder, "train")) == 4


def test_images_of_several_sources_are_refused(folder: Path) -> None:
    message = refusal(lambda: make(train="karpathy_test+val2014").read(folder, "train"))
    assert message == f"{folder}: images that are in more than one of karpathy_test, val2014: 2 (133, 136)"


def test_a_missing_file_is_named(task: Task, folder: Path) -> None:
    (folder / OFFICIAL).unlink()
    assert refusal(lambda: task.read(folder, "val2014")) == (
        f"{folder} has no captions_val2014.json and no image_info_val2014.json. JSON files there: dataset_coco.json, "
        f"{IMAGES}. Put the official file there, or set task.splits.val2014 to the name in yours"
    )


def test_faults_of_all_sources_are_in_one_message(folder: Path) -> None:
    (folder / OFFICIAL).unlink()
    (folder / IMAGES).write_text("{}")
    message = refusal(lambda: make(train="karpathy_train+val2014+test2014").read(folder, "train"))
    assert "has no captions_val2014.json" in message
    assert f"; {folder / IMAGES} has no list of images" in message


def test_a_missing_split_of_karpathys_is_named(folder: Path) -> None:
    assert refusal(lambda: make(train="karpathy_restval").read(folder, "train")) == (
        f"{folder / 'dataset_coco.json'} has no images of karpathy_restval. It has: karpathy_test, karpathy_train, "
        "karpathy_val. Set task.splits.train to one of them"
    )


def test_images_of_karpathys_without_captions_are_refused_unless_all_are(task: Task, folder: Path) -> None:
    path = folder / "dataset_coco.json"
    change(path, lambda content: content["images"][-1].update(sentences=[]))
    assert refusal(lambda: task.read(folder, "test")) == f"{path}: images without captions: 1 (136)"
    change(path, lambda content: content["images"][-2].update(sentences=[]))
    assert [one.references for one in task.read(folder, "test")] == [(), ()]


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda one: one["images"].append(one["images"][0]), "duplicate image ids: 1 (73)"),
        (
            lambda one: one["images"][1].update(file_name=one["images"][0]["file_name"]),
            "duplicate file names: 1 (COCO_val2014_000000000073.jpg)",
        ),
        (lambda one: one["images"][0].update(id="73"), '"id" is text, not a whole number: 1 (image 0)'),
        (lambda one: one["images"][0].pop("file_name"), 'no "file_name": 1 (image 0)'),
        (lambda one: one["annotations"][0].update(caption=None), '"caption" is null, not text: 1 (annotation 0)'),
        (
            lambda one: one["annotations"][0].update(id=True),
            '"id" is a boolean, not a whole number: 1 (annotation 0)',
        ),
        (lambda one: one["annotations"][1].update(id=671), "duplicate annotation ids: 1 (671)"),
        (
            lambda one: one["annotations"][0].update(image_id=5),
            "captions of images that are not in the file: 1 (671)",
        ),
        (
            lambda one: one.update(annotations=[row for row in one["annotations"] if row["image_id"] != 42]),
            "images without captions: 1 (42)",
        ),
    ],
)
def test_each_fault_of_an_official_file_is_named(
    task: Task, folder: Path, edit: Callable[[Any], None], fault: str
) -> None:
    change(folder / OFFICIAL, edit)
    message = refusal(lambda: task.read(folder, "val2014"))
    assert message.startswith(f"{folder / OFFICIAL}: ")
    assert fault in message


def test_all_faults_are_in_one_message(task: Task, folder: Path) -> None:
    def edit(content: Any) -> None:
        content["annotations"] = content["annotations"][:1]
        content["annotations"].append({"id": 5, "image_id": 6, "caption": "a dog"})
        content["images"].append(content["images"][-1])

    change(folder / OFFICIAL, edit)
    assert refusal(lambda: task.read(folder, "val2014")) == (
        f"{folder / OFFICIAL}: duplicate image ids: 1 (136); duplicate file names: 1 (COCO_val2014_000000000136.jpg); "
        "captions of images that are not in the file: 1 (5); images without captions: 4 (42, 74, 133, 136)"
    )


@pytest.mark.parametrize("content", [[], {"images": []}, {"images": [], "annotations": []}, "text"])
def test_another_kind_of_file_is_refused(task: Task, folder: Path, content: Any) -> None:
    (folder / OFFICIAL).write_text(json.dumps(content))
    assert refusal(lambda: task.read(folder, "val2014")) == (
        f'{folder / OFFICIAL} has no list of images or none of annotations. An official file is {{"images": '
        '[{"id": 42, "file_name": ...}, ...], "annotations": [{"id": 1, "image_id": 42, "caption": ...}, ...], ...}. '
        "Check that it is whole, and one of captions"
    )


def test_an_image_list_without_images_is_refused(task: Task, folder: Path) -> None:
    (folder / IMAGES).write_text("{}")
    assert refusal(lambda: task.read(folder, "test2014")) == (
        f'{folder / IMAGES} has no list of images. An official file is {{"images": [{{"id": 42, "file_name": ...}}, '
        "...], ...}. Check that it is whole, and one of captions"
    )


def test_official_files_are_read_for_existing_predictions(task: Task) -> None:
    assert task.read_files(OfficialFiles(TOY_DATA / OFFICIAL)) == task.read(TOY_DATA, "val2014")
    message = refusal(lambda: task.read_files(OfficialFiles(TOY_DATA / IMAGES)))
    assert "has no list of images or none of annotations" in message


# ------------------------------------------------------------------------------------------------------------ scoring


def test_a_generated_text_is_put_on_one_line(task: Task) -> None:
    assert task.parse("  a dog \n runs\u2028fast ") == "a dog runs fast"


def test_scores_are_those_of_the_metric(task: Task) -> None:
    examples = task.read(TOY_DATA, "val2014")
    scores = task.score(answers(examples), examples)
    metric = caption_scores(ANSWERS, {one.example_id: one.references for one in examples}, java=False)
    assert scores.metrics == {**metric.metrics, "n": 5}
    assert scores.per_example["42"] > 0
    assert scores.per_example == {number: cider / 10 for number, cider in metric.cider.items()}


def test_an_images_own_score_is_within_0_and_1(task: Task) -> None:
    examples = [
        Example("1", "", ("1",), ("a brown dog runs fast",)),
        Example("2", "", ("2",), ("two men ride white horses",)),
    ]
    perfect = [Prediction(one.example_id, one.references[0]) for one in examples]
    assert task.score(perfect, examples).per_example == pytest.approx({"1": 1.0, "2": 1.0})
    assert all(value <= 1 for value in task.score(perfect, examples).per_example.values())


def test_without_published_captions_there_are_no_figures(task: Task) -> None:
    examples = task.read(TOY_DATA, "test2014")
    scores = task.score(answers(examples), examples)
    assert scores.metrics == {**dict.fromkeys(FIGURES), "n": 3}
    assert (scores.per_example, dict(scores.reasons)) == ({}, {})


def test_missing_java_is_a_reason_and_not_asked_for_during_training(task: Task) -> None:
    examples = task.read(TOY_DATA, "validation")
    final = task.score(answers(examples), examples)
    assert set(final.reasons.values()) == {"it needs Java, and no program java is on the PATH"}
    assert task.score_validation is not None
    during = task.score_validation(answers(examples), examples)
    assert set(during.reasons.values()) == {"it needs Java, and is not asked for here"}
    assert during.metrics == final.metrics


# ------------------------------------------------------------------------------------------------- leaderboard files


def test_a_results_file_is_as_the_server_takes_it(task: Task, tmp_path: Path) -> None:
    path = tmp_path / task.submission_name("val2014")
    predictions = [Prediction("42", "a dog"), Prediction("73", "a café")]
    task.submit(predictions, path)
    assert path.name == "captions_val2014_dept_results.json"
    assert path.read_bytes() == (
        b'[{"image_id": 42, "caption": "a dog"},\n {"image_id": 73, "caption": "a caf\\u00e9"}]\n'
    )
    assert task.read_submission(path) == predictions


def test_what_is_no_results_file_is_not_read(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("{}")
    assert refusal(lambda: task.read_submission(path)) == (
        f"{path} holds an object, not a list. A results file is "
        '[{"image_id": 42, "caption": "a red bus on a street"}, ...]'
    )


def submitted(task: Task, folder: Path, split: str, data: Path = TOY_DATA) -> Path:
    path = folder / task.submission_name(split)
    examples = task.read(data, split)
    by_id = dict(answers(examples))
    task.submit([Prediction(one.example_id, by_id[one.example_id]) for one in examples], path)
    return path


@pytest.mark.parametrize("split", [*SPLITS, *SERVER])
def test_our_files_pass_the_check(task: Task, tmp_path: Path, split: str) -> None:
    path = submitted(task, tmp_path, split)
    karpathy = split in SPLITS
    official = TOY_DATA / ("dataset_coco.json" if karpathy else IMAGES if split == "test2014" else OFFICIAL)
    for questions in (None, TOY_DATA, official):
        assert task.check_submission(path, questions) == []


def test_images_of_another_split_are_named(task: Task, tmp_path: Path) -> None:
    path = submitted(task, tmp_path, "val2014")
    (fault,) = task.check_submission(path, TOY_DATA / IMAGES)
    assert fault.startswith("wrong split or phase: none of its ids is among those of the questions, 5 (73, 42, ")
    assert fault.endswith("The server wants one caption of every image of the split")
    task.submit([Prediction("42", "a dog")], path)
    (fault,) = task.check_submission(path, TOY_DATA)
    assert fault.startswith("missing ids: 4 (73, 74, 133, 136)")


def test_a_name_that_tells_no_split_is_a_fault(task: Task, tmp_path: Path) -> None:
    path = submitted(task, tmp_path, "val2014").rename(tmp_path / "results.json")
    names = ("val2014", "test2014", "karpathy_train", "karpathy_val", "karpathy_test")
    expected = " or ".join(f"captions_{name}_<alg>_results.json" for name in names)
    named = f"its name is results.json, not {expected}, <alg> being the name of your method"
    for questions in (None, TOY_DATA, TOY_DATA / OFFICIAL):
        assert task.check_submission(path, questions) == [named]


def test_the_server_takes_two_splits_together(task: Task) -> None:
    assert task.server_splits("val2014") == task.server_splits("test2014") == ("val2014", "test2014")
    assert task.server_splits("test") == ("test",)
    assert make(dev="val2014").server_splits("dev") == ("dev", "test2014")
    alone = build(TaskSettings(name="caption", module="caption", splits={"val2014": "val2014"}))
    assert alone.server_splits("val2014") == ("val2014",)


def bundled(task: Task, folder: Path) -> Path:
    assert task.bundle is not None
    path = folder / "results.zip"
    task.bundle({split: submitted(task, folder, split) for split in SERVER}, path)
    return path


def test_the_archive_holds_both_files_at_its_top(task: Task, tmp_path: Path) -> None:
    path = bundled(task, tmp_path)
    with zipfile.ZipFile(path) as archive:
        names = ["captions_test2014_dept_results.json", "captions_val2014_dept_results.json"]
        assert archive.namelist() == names
        assert [archive.read(name) for name in names] == [(tmp_path / name).read_bytes() for name in names]
    assert contents(path) == f"{names[0]} with 3 rows and {names[1]} with 5 rows"
    assert task.check_submission(path, None) == task.check_submission(path, TOY_DATA) == []


def test_the_archive_has_the_same_bytes_at_any_time(task: Task, tmp_path: Path) -> None:
    digest = hashlib.sha256(bundled(task, tmp_path).read_bytes()).hexdigest()
    assert digest == "f8944453d60c29cafb705c7ca8f4bbeb23266c454220103765b70bb7f598c4a7"


def test_faults_of_a_file_in_the_archive_are_named(task: Task, tmp_path: Path) -> None:
    task.submit([Prediction("1", "a dog")], tmp_path / task.submission_name("test2014"))
    assert task.bundle is not None
    files = {
        "test2014": tmp_path / task.submission_name("test2014"),
        "val2014": submitted(task, tmp_path, "val2014"),
    }
    task.bundle(files, tmp_path / "results.zip")
    (fault,) = task.check_submission(tmp_path / "results.zip", TOY_DATA)
    assert fault.startswith("captions_test2014_dept_results.json: missing ids: 2 (14, 16)")


def test_an_archive_is_not_checked_against_the_images_of_one_split(task: Task, tmp_path: Path) -> None:
    path = bundled(task, tmp_path)
    assert refusal(lambda: task.check_submission(path, TOY_DATA / OFFICIAL)) == (
        f"{TOY_DATA / OFFICIAL} is one file, but results.zip holds the captions of val2014 and test2014. "
        "Give the folder with captions_val2014.json and image_info_test2014.json"
    )


# ----------------------------------------------------------------------------------------------------------- settings


def test_the_settings_are_those_of_vl_t5() -> None:
    settings = load_settings({"task": "caption"}, []).task
    assert (settings.prefix, settings.vl_adapter_prefix) == ("caption:", "caption: ")
    assert (settings.max_target_length, settings.num_beams, settings.loss) == (20, 5, "token")
    assert (settings.selection_metric, settings.images_per_example) == ("cider", 1)
    assert settings.splits == {**SPLITS, **SERVER}
