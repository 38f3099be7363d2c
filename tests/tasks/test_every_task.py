"""Every task of configs/task goes from its true-format toy data all the way to a file that its server takes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from dept_vl.config import layer_names, load_settings
from dept_vl.evaluate import main as evaluate
from dept_vl.extract import main as extract
from dept_vl.leaderboard import write_evaluation
from dept_vl.report import main as report
from dept_vl.report_picture import Answer
from dept_vl.tasks.task import Task, load_task
from dept_vl.train import main as train
from dept_vl.types import Example, Prediction

TASKS = layer_names("task")
TOY_DATA = Path(__file__).parents[1] / "toy_data"
CORRELATIONS = ("pearson", "spearman")
SMALL = (
    *("method.budget_length=10", "method.prompt_length=4", "training.steps=3", "training.epochs=null"),
    *("training.evaluate_every=2", "training.checkpoint_every=2", "data.batch_size=2", "data.evaluation_batch_size=3"),
)


@pytest.fixture(autouse=True, scope="module")
def no_java() -> Iterator[None]:
    """METEOR takes seconds for each score where Java is installed; tests/metrics/test_caption.py has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dept_vl.metrics.caption.shutil.which", lambda name: None)
        yield


class Toy(NamedTuple):
    """A task with its toy data."""

    task: Task
    folder: Path
    splits: dict[str, list[Example]]  # those that the toy data has

    @property
    def answered(self) -> dict[str, list[Example]]:
        """The splits whose references are published."""
        return {split: examples for split, examples in self.splits.items() if examples[0].references}


@pytest.fixture(scope="module", params=TASKS)
def toy(request: pytest.FixtureRequest) -> Toy:
    settings = load_settings({"task": request.param}, []).task
    task, folder = load_task(settings), TOY_DATA / request.param
    return Toy(task, folder, {split: task.read(folder, split) for split in settings.splits if has(folder, split, task)})


def has(folder: Path, split: str, task: Task) -> bool:
    """Whether the toy data has a split; those that every command uses must be there."""
    try:
        task.read(folder, split)
    except ValueError:
        assert split not in ("train", "validation", "test"), f"tests/toy_data has no {split} for {task.name}"
        return False
    return True


@pytest.fixture(scope="module")
def run(toy: Toy, tiny_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, on features that were extracted from pictures where the task has any."""
    folder = tmp_path_factory.mktemp(toy.task.name)
    features = ["--features", str(store(toy, folder))] if any(one.image_ids for one in toy.splits["train"]) else []
    paths = ["--data", str(toy.folder), *features, "--output", str(folder / "run")]
    train(["--task", toy.task.name, "--backbone", str(tiny_t5), *paths, *SMALL])
    return folder / "run"


def store(toy: Toy, folder: Path) -> Path:
    """Features of random pictures with the names of the toy data's."""
    (folder / "images").mkdir()
    source = np.random.default_rng(0)
    image_ids = {one for examples in toy.splits.values() for example in examples for one in example.image_ids}
    for image_id in sorted(image_ids):
        pixels = source.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{image_id}.png")
    torch.manual_seed(0)
    weights = folder / "tiny.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), weights)
    tower = ["--features", "timm/test_efficientnet", f"features.weights={weights}", "features.image_size=32"]
    paths = ["--images", str(folder / "images"), "--output", str(folder / "store")]
    extract([*paths, *tower, "features.layer=2", "features.grid=2", "features.pooling=avg"])
    return folder / "store"


def best_answers(examples: list[Example]) -> list[Prediction]:
    """A reference of each example, in any order: the last, which is one of the most frequent in the toy data."""
    predictions = [
        Prediction(one.example_id, max(one.references, key=one.references.count, default="")) for one in examples
    ]
    random.Random(0).shuffle(predictions)
    return predictions


def test_examples_have_ids_of_their_own_and_as_many_images_as_the_settings_say(toy: Toy) -> None:
    images = load_settings({"task": toy.task.name}, []).task.images_per_example
    for examples in toy.splits.values():
        assert len({example.example_id for example in examples}) == len(examples) > 0
        assert all(len(example.image_ids) == images for example in examples)


def test_training_examples_have_targets_and_validation_examples_references(toy: Toy) -> None:
    assert all(target.weight > 0 for example in toy.splits["train"] for target in example.targets)
    assert any(example.targets for example in toy.splits["train"])
    assert all(example.references for example in toy.splits["validation"])


def test_every_split_goes_from_pictures_to_a_file_that_its_server_takes(toy: Toy, run: Path) -> None:
    for split, examples in toy.splits.items():
        evaluate(["--run", str(run), "--split", split, "--single"])
        folder = run / "evaluation" / split
        file = folder / toy.task.submission_name(split)
        assert {path.name for path in folder.iterdir()} == {file.name, "metrics.json", "scores.json"}
        assert toy.task.check_submission(file, None) == []
        wanted = [example.example_id for example in examples] + toy.task.blank_ids(toy.folder, split)
        assert [one.example_id for one in toy.task.read_submission(file)] == wanted
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["n"] == len(examples)
        metric = load_settings({"task": toy.task.name}, []).task.selection_metric
        # A correlation is none where all answers are the same, as an untrained model's are.
        known = metrics[metric] is not None or metric in CORRELATIONS
        assert known == (split in toy.answered or metric in CORRELATIONS)


def test_splits_that_the_server_takes_together_come_in_one_file(toy: Toy, run: Path) -> None:
    together = [split for split in toy.splits if len(toy.task.server_splits(split)) > 1]
    assert (toy.task.bundle is not None) == bool(together)
    for split in together[-1:]:
        evaluate(["--run", str(run), "--split", split])
        assert toy.task.check_submission(run / "evaluation" / split / "results.zip", toy.folder) == []


def test_the_report_marks_answers_as_right_or_wrong_unless_they_are_graded(
    toy: Toy, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Answer] = []
    monkeypatch.setattr(
        "dept_vl.report_picture.draw_report", lambda **given: shown.extend(given["answers"]) or b"a picture"
    )
    evaluate(["--run", str(run), "--split", "validation", "--single"])
    images = run.parent / "images"
    report(["--run", str(run), "--split", "validation", *(["--images", str(images)] if images.is_dir() else [])])
    assert (run / "evaluation" / "validation" / "report.png").read_bytes() == b"a picture"
    (run / "evaluation" / "validation" / "report.png").unlink()
    assert len(shown) == min(len(toy.splits["validation"]), 8)
    assert {answer.right is None for answer in shown} == {toy.task.graded}


def test_a_second_evaluation_gives_the_same_bytes(toy: Toy, run: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        evaluate(["--run", str(run), "--split", "validation", "--output", str(tmp_path / name), "--single"])
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second")
    )
    assert first == second


def test_the_order_of_predictions_changes_no_byte(toy: Toy, tmp_path: Path) -> None:
    for split, examples in toy.answered.items():
        written = []
        for name, predictions in (("a", best_answers(examples)), ("b", sorted(best_answers(examples)))):
            write_evaluation(tmp_path / split / name, toy.task, split, predictions, examples)
            written.append({path.name: path.read_bytes() for path in (tmp_path / split / name).iterdir()})
        assert written[0] == written[1]


def test_references_score_better_than_another_answer(toy: Toy) -> None:
    metric = load_settings({"task": toy.task.name}, []).task.selection_metric
    for examples in toy.answered.values():
        best = toy.task.score(best_answers(examples), examples).metrics[metric]
        worst = toy.task.score([Prediction(one.example_id, "zyx") for one in examples], examples).metrics[metric]
        assert best is not None
        assert best > (worst if worst is not None or metric not in CORRELATIONS else 0)


def test_every_task_of_the_folder_is_here() -> None:
    assert {path.name for path in TOY_DATA.iterdir()} == set(TASKS)
