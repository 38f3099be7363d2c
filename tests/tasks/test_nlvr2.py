from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dept_vl.config import load_settings
from dept_vl.settings import TaskSettings
from dept_vl.tasks.nlvr2 import build
from dept_vl.tasks.task import OfficialFiles, Task, load_task
from dept_vl.types import Example, Prediction, Target
from feature_extraction.errors import InputDataError

TOY_DATA = Path(__file__).parents[1] / "toy_data" / "nlvr2"
SPLITS = {"train": "train", "validation": "dev", "test": "test1", "test-u": "test2", "all": "train+dev"}
DEV = ("dev-0-0-0", "dev-0-1-0", "dev-0-0-1", "dev-1-0-0", "dev-1-2-0", "dev-1-3-0")
RIGHT = dict(zip(DEV, ("true", "false", "true", "false", "true", "true"), strict=True))


@pytest.fixture
def task() -> Task:
    return build(TaskSettings(name="nlvr2", splits=SPLITS))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(TOY_DATA, tmp_path / "nlvr2")


def change(path: Path, edit: Callable[[list[Any]], None]) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    edit(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_lxmert(path: Path, rows: list[dict[str, Any]]) -> None:
    """The official rows as LXMERT hands them on."""
    path.write_text(
        json.dumps(
            [
                {
                    "identifier": row["identifier"],
                    "img0": f"{row['identifier'].rpartition('-')[0]}-img0",
                    "img1": f"{row['identifier'].rpartition('-')[0]}-img1",
                    "label": int(row["label"] == "True"),
                    "sent": row["sentence"],
                    "uid": f"nlvr2_train_{number}",
                }
                for number, row in enumerate(rows)
            ]
        )
    )


def predictions(answers: dict[str, str]) -> list[Prediction]:
    return [Prediction(example_id, answer) for example_id, answer in answers.items()]


def test_an_example_has_the_sentence_and_the_left_and_right_photo(task: Task) -> None:
    third = task.read(TOY_DATA, "validation")[2]
    assert third == Example(
        example_id="dev-0-0-1",
        text="Each image shows at least two cups, and one cup is empty.",
        image_ids=("dev-0-0-img0", "dev-0-0-img1"),
        references=("true",),
        targets=(Target("true", 1.0),),
        slices={"group": "dev-0-1", "unbalanced": "yes"},
    )


def test_examples_come_in_the_order_of_the_file(task: Task) -> None:
    examples = task.read(TOY_DATA, "validation")
    assert [one.example_id for one in examples] == list(DEV)
    assert {one.example_id: one.references for one in examples} == {key: (label,) for key, label in RIGHT.items()}


def test_the_scenes_of_a_sentence_are_a_group_also_where_another_sentence_has_the_same_photos(task: Task) -> None:
    groups = [one.slices["group"] for one in task.read(TOY_DATA, "validation")]
    assert groups == ["dev-0-0", "dev-0-0", "dev-0-1", "dev-1-0", "dev-1-0", "dev-1-0"]


def test_a_record_may_list_its_images(task: Task, folder: Path) -> None:
    change(folder / "train.json", lambda rows: rows[0].update(images=["box-0", "box-1", "box-2"]))
    first, second, *_ = task.read(folder, "train")
    assert first.image_ids == ("box-0", "box-1", "box-2")
    assert second.image_ids == ("train-0-1-img0", "train-0-1-img1")


def test_a_file_without_labels_has_no_references(task: Task) -> None:
    examples = task.read(TOY_DATA, "test-u")
    assert len(examples) == 3
    assert not any(one.references or one.targets for one in examples)


def test_labels_are_read_whatever_their_capitals(task: Task, folder: Path) -> None:
    expected = task.read(folder, "train")
    path = folder / "train.json"
    path.write_text(path.read_text().replace('"True"', '"true"').replace('"False"', '"FALSE"'))
    assert task.read(folder, "train") == expected


def test_a_split_may_join_files(task: Task) -> None:
    joined = task.read(TOY_DATA, "all")
    assert joined == task.read(TOY_DATA, "train") + task.read(TOY_DATA, "validation")


def test_a_list_of_lxmert_gives_the_same_examples(task: Task, folder: Path) -> None:
    expected = task.read(folder, "validation")
    rows = [json.loads(line) for line in (folder / "dev.json").read_text().splitlines()]
    write_lxmert(folder / "dev.json", rows)
    assert task.read(folder, "validation") == expected
    assert task.read_files(OfficialFiles(folder / "dev.json")) == expected


def test_the_lists_of_the_subsets_lie_beside_the_file_or_in_their_folders(task: Task, folder: Path) -> None:
    expected = task.read(folder, "validation")
    assert [sorted(one.slices.keys() - {"group"}) for one in expected[:3]] == [["balanced"]] * 2 + [["unbalanced"]]
    for name in ("balanced", "unbalanced"):
        (folder / name / f"{name}_dev.json").rename(folder / f"{name}_dev.json")
    assert task.read(folder, "validation") == expected


def test_absent_files_are_named_with_what_is_there(task: Task, folder: Path) -> None:
    for name in ("train", "dev"):
        (folder / f"{name}.json").unlink()
    message = (
        f"{folder} has no train.json and no dev.json. JSON files there: test1.json, test2.json. "
        "Put the official file there, or set task.splits.all to the name of yours"
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read(folder, "all")
    with pytest.raises(InputDataError, match=r"has no train.json. JSON files there: none"):
        task.read(folder / "none", "train")


def test_an_absent_annotations_file_is_refused(task: Task, tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match=r"No file .*none.json. Check the path"):
        task.read_files(OfficialFiles(tmp_path / "none.json"))


def test_an_empty_file_is_refused(task: Task, folder: Path) -> None:
    (folder / "dev.json").write_text("\n")
    with pytest.raises(InputDataError, match=r"dev.json is empty. An official file has one JSON object a line. Downlo"):
        task.read(folder, "validation")


def test_blank_lines_and_other_line_ends_are_no_faults(task: Task, folder: Path) -> None:
    expected = task.read(folder, "validation")
    path = folder / "dev.json"
    path.write_bytes(b"\n" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert task.read(folder, "validation") == expected


def test_all_lines_that_are_no_records_are_named_at_once(task: Task, folder: Path) -> None:
    lines = (folder / "dev.json").read_bytes().splitlines()
    (folder / "dev.json").write_bytes(b"\n".join([lines[0], lines[1][:50], b"7", b"{\xff}", *lines[4:]]))
    message = "dev.json: lines that are no JSON object in UTF-8 (an official file has one record a line): 3 (2, 3, 4)"
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read(folder, "validation")


def test_all_wrong_records_are_named_at_once(task: Task, folder: Path) -> None:
    def edit(rows: list[Any]) -> None:
        del rows[0]["label"]
        rows[1]["label"] = False
        rows[2]["label"] = "yes"
        rows[3]["identifier"] = "dev-1-0"
        rows[4]["identifier"] = "dev-1-2-0.png, "
        rows[5]["images"] = "dev-1-3-img0"

    change(folder / "dev.json", edit)
    message = (
        'dev.json: no "label": 1 (line 1); "label" is a boolean, not text: 1 (line 2); '
        '"label" is neither "True" nor "False": 1 (dev-0-0-1); "identifier" is not split-set-pair-sentence, as in '
        'dev-850-0-0: 2 (dev-1-0, dev-1-2-0.png, ); "images" is not a list of image ids: 1 (dev-1-3-0)'
    )
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read(folder, "validation")


@pytest.mark.parametrize("images", [[], ["a", 1], None])
def test_images_are_a_list_of_texts(task: Task, folder: Path, images: object) -> None:
    change(folder / "dev.json", lambda rows: rows[0].update(images=images))
    with pytest.raises(InputDataError, match=r'"images" is not a list of image ids: 1 \(dev-0-0-0\)'):
        task.read(folder, "validation")


def test_identifiers_of_lxmert_are_checked_too(task: Task, folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "dev.json").read_text().splitlines()]
    rows[0]["identifier"] = "nlvr2_dev_0"
    write_lxmert(folder / "dev.json", rows)
    with pytest.raises(InputDataError, match=r'dev.json: "identifier" is not split-set-pair-.*: 1 \(nlvr2_dev_0\)'):
        task.read(folder, "validation")


def test_a_repeated_identifier_is_refused_in_one_file_and_over_several(task: Task, folder: Path) -> None:
    change(folder / "dev.json", lambda rows: rows.append(rows[0]))
    with pytest.raises(InputDataError, match=r"nlvr2: duplicate identifier: 1 \(dev-0-0-0\)"):
        task.read(folder, "validation")
    with pytest.raises(InputDataError, match=r"dev.json: duplicate identifier: 1 \(dev-0-0-0\)"):
        task.read_files(OfficialFiles(folder / "dev.json"))
    shutil.copy(TOY_DATA / "train.json", folder / "dev.json")
    shutil.rmtree(folder / "balanced")
    shutil.rmtree(folder / "unbalanced")
    with pytest.raises(InputDataError, match=r"nlvr2: duplicate identifier: 8 \(train-0-0-0, .*\.\.\.\)"):
        task.read(folder, "all")


def test_a_subset_is_of_the_same_split(task: Task, folder: Path) -> None:
    def edit(rows: list[Any]) -> None:
        rows[0]["identifier"] = "test1-0-0-0"
        del rows[1]["identifier"]

    change(folder / "balanced" / "balanced_dev.json", edit)
    message = 'balanced_dev.json: no "identifier": 1 (line 2); identifiers that dev.json does not have: 1 (test1-0-0-0)'
    with pytest.raises(InputDataError, match=re.escape(message)):
        task.read(folder, "validation")


@pytest.mark.parametrize(
    ("text", "answer"), [("true", "true"), (" True\n", "true"), ("false", "false"), ("truely", "false"), ("", "false")]
)
def test_whatever_is_not_true_is_false(task: Task, text: str, answer: str) -> None:
    assert task.parse(text) == answer
    assert answer in task.labels


def test_a_group_is_consistent_if_every_member_is_right(task: Task) -> None:
    answers = RIGHT | {"dev-1-3-0": "false"}
    scores = task.score(predictions(answers), task.read(TOY_DATA, "validation"))
    assert scores.per_example == {key: float(key != "dev-1-3-0") for key in DEV}
    assert scores.metrics == {
        "accuracy": 100 * (5 / 6),
        "consistency": 100 * (2 / 3),
        "balanced_accuracy": 100.0,
        "unbalanced_accuracy": 50.0,
        "n": 6,
        "ci_low": 50.0,
        "ci_high": 100.0,
    }
    assert scores.reasons == {}


def test_two_faults_in_a_group_cost_no_more_consistency_than_one(task: Task) -> None:
    one, two = (
        task.score(predictions(RIGHT | dict.fromkeys(wrong, "yes")), task.read(TOY_DATA, "validation")).metrics
        for wrong in (DEV[4:5], DEV[4:6])
    )
    assert one["consistency"] == two["consistency"] == 100 * (2 / 3)
    assert (one["accuracy"], two["accuracy"]) == (100 * (5 / 6), 100 * (4 / 6))


def test_capitals_and_the_order_of_predictions_do_not_count(task: Task) -> None:
    examples = task.read(TOY_DATA, "validation")
    shouted = [Prediction(one.example_id, one.answer.upper()) for one in predictions(RIGHT)][::-1]
    assert task.score(shouted, examples) == task.score(predictions(RIGHT), examples)
    assert task.score(shouted, examples).metrics["accuracy"] == 100


def test_a_space_or_a_number_is_wrong_as_officially(task: Task) -> None:
    answers = RIGHT | {DEV[0]: " true", DEV[2]: "1"}
    assert task.score(predictions(answers), task.read(TOY_DATA, "validation")).metrics["accuracy"] == 100 * (4 / 6)


def test_without_the_subsets_lists_their_accuracy_is_unknown(task: Task) -> None:
    examples = task.read(TOY_DATA, "test")
    scores = task.score([Prediction(one.example_id, "true") for one in examples], examples)
    assert scores.metrics["accuracy"] == 50
    assert scores.metrics["balanced_accuracy"] is scores.metrics["unbalanced_accuracy"] is None
    assert scores.reasons == {
        "balanced_accuracy": "there is no balanced_NAME.json beside the annotations NAME.json",
        "unbalanced_accuracy": "there is no unbalanced_NAME.json beside the annotations NAME.json",
    }


def test_withheld_labels_give_no_score_but_the_count(task: Task) -> None:
    examples = task.read(TOY_DATA, "test-u")
    scores = task.score([Prediction(one.example_id, "true") for one in examples], examples)
    assert scores.per_example == {}
    assert scores.reasons == {}
    assert scores.metrics.pop("n") == 3
    assert set(scores.metrics) == {
        *("accuracy", "consistency", "balanced_accuracy", "unbalanced_accuracy", "ci_low", "ci_high")
    }
    assert set(scores.metrics.values()) == {None}


def test_a_submission_is_the_official_csv_without_a_header(task: Task, tmp_path: Path) -> None:
    task.submit(predictions(RIGHT), tmp_path / "results.csv")
    assert (tmp_path / "results.csv").read_bytes() == (
        b"dev-0-0-0,True\ndev-0-1-0,False\ndev-0-0-1,True\ndev-1-0-0,False\ndev-1-2-0,True\ndev-1-3-0,True\n"
    )
    assert task.check_submission(tmp_path / "results.csv", TOY_DATA / "dev.json") == []
    answers = task.read_submission(tmp_path / "results.csv")
    assert task.score(answers, task.read(TOY_DATA, "validation")).metrics["consistency"] == 100


def test_a_submission_is_checked_by_the_official_records_if_they_are_given(task: Task, tmp_path: Path) -> None:
    task.submit(predictions(RIGHT)[1:], tmp_path / "results.csv")
    assert task.check_submission(tmp_path / "results.csv", None) == []
    (fault,) = task.check_submission(tmp_path / "results.csv", TOY_DATA / "dev.json")
    assert "dev-0-0-0" in fault


def test_submissions_are_named_by_their_split(task: Task) -> None:
    assert task.submission_name("test") == "nlvr2_test1_dept_results.csv"


def test_the_settings_files_are_those_of_the_task() -> None:
    settings = load_settings({"task": "nlvr2"}, []).task
    task = load_task(settings)
    assert task.name == "nlvr2"
    assert task.ignores_unknown
    assert (settings.prefix, settings.head, settings.images_per_example) == ("nlvr: ", "first_step", 2)
    assert {split: len(task.read(TOY_DATA, split)) for split in settings.splits} == {
        "train": 8,
        "validation": 6,
        "test": 4,
        "test-u": 3,
    }


def official(answers: dict[str, str], path: Path) -> tuple[float, float]:
    """Accuracy and consistency by a plain loop over the file, as the official script finds them."""
    right, count = 0.0, 0
    consistent: dict[tuple[str, ...], bool] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        fields = record["identifier"].split("-")
        key = (fields[0], fields[1], fields[3])
        hit = answers[record["identifier"]].lower() == record["label"].lower()
        right += hit
        count += 1
        consistent[key] = consistent.get(key, True) and hit
    return right / count, sum(consistent.values()) / len(consistent)


@pytest.mark.shared
@pytest.mark.parametrize(("split", "rows", "groups"), [("validation", 6982, 2018), ("test", 6967, 1995)])
def test_the_real_records_score_as_by_the_official_script(
    task: Task, shared: Path, tmp_path: Path, split: str, rows: int, groups: int
) -> None:
    folder = shared / "data" / "nlvr2"
    examples = task.read(folder, split)
    assert len(examples) == rows
    assert len({one.slices["group"] for one in examples}) == groups
    generator = random.Random(0)
    for skill in (0.0, 0.5, 0.9, 1.0):
        answers = {
            one.example_id: one.references[0] if generator.random() < skill else generator.choice(("true", "false"))
            for one in examples
        }
        task.submit(predictions(answers), tmp_path / "results.csv")
        metrics = task.score(task.read_submission(tmp_path / "results.csv"), examples).metrics
        accuracy, consistency = official(answers, folder / f"{SPLITS[split]}.json")
        assert (metrics["accuracy"], metrics["consistency"]) == (100 * accuracy, 100 * consistency)
