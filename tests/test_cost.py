"""What a run costs, measured by a short one."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dept_vl import cost as cost_module
from dept_vl.config import load_settings
from dept_vl.cost import Cost, measure, measure_apart
from dept_vl.costs import short_run
from dept_vl.costs.synthetic import SyntheticImages, images_of, synthetic_tasks
from dept_vl.model.backbone import load_backbone
from dept_vl.model.build import build_model
from dept_vl.settings import Settings
from dept_vl.training.run import make_set, prepare
from dept_vl.types import Batch
from feature_extraction import FeatureStore
from feature_extraction.errors import InputDataError

Place = dict[str, Path]
SIZES = (
    *("task.splits={train: train, validation: val, test: test}", "task.max_text_length=12", "task.max_target_length=4"),
    *("method.budget_length=10", "method.prompt_length=4", "data.batch_size=4", "data.evaluation_batch_size=4"),
    *("training.steps=7", "training.epochs=null", "training.evaluate_every=3", "training.checkpoint_every=2"),
)
CLASSES = ("task.head=classification",)


@pytest.fixture(scope="module")
def toy(tiny_t5: Path, toy_vqa: Path, toy_store: Path) -> tuple[Callable[..., Settings], Place, Place]:
    """Settings of the toy task, its data and its features."""

    def make(*more: str, method: str = "dept", task: str = "vqa") -> Settings:
        return load_settings({"task": task, "method": method, "backbone": str(tiny_t5)}, [*SIZES, *more])

    return make, {"vqa": toy_vqa}, {"vqa": toy_store}


Toy = tuple[Callable[..., Settings], Place, Place]


class TestMeasure:
    @pytest.mark.parametrize(
        ("method", "more", "sizes"),
        [
            ("dept", (), (4, 64, 3)),
            ("adept", ("method.rank=1",), (4, 64, 1)),
            ("prompt", (), (10, 160, None)),
            ("visual_only", CLASSES, (None, 0, None)),
        ],
    )
    def test_the_parameters_are_those_of_the_model(
        self, toy: Toy, method: str, more: tuple[str, ...], sizes: tuple[int | None, int, int | None]
    ) -> None:
        make, data, features = toy
        settings = make(*more, method=method)
        found = measure(settings, data, features, steps=1, warmup=0)
        store = FeatureStore.open(features["vqa"])
        answers = (
            {"vqa": ["yes", "no", "red", "blue", "green", "two", "three"]} if "classification" in str(more) else {}
        )
        built = build_model(
            settings,
            load_backbone(settings.backbone),
            visual_tokens=store.visual_tokens,
            feature_width=store.feature_width,
            seed=0,
            answers=answers,
        )
        assert (found.own, found.visual, found.heads, found.total) == tuple(built.trainable)
        assert (found.prompt_length, found.prompt_parameters, found.rank) == sizes
        assert (found.device, found.synthetic) == ("cpu", False)

    def test_the_whole_training_is_steps_validations_and_checkpoints(
        self, toy: Toy, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make, data, features = toy
        found = measure(make(), data, features, steps=9, warmup=1)  # more than the run itself has
        assert found.total_steps == 7
        assert 0 < found.step_seconds_low <= found.step_seconds <= found.step_seconds_high
        assert min(found.latency_seconds, found.examples_per_second, found.peak_memory_bytes) > 0
        parts = found.startup_seconds + 7 * found.step_seconds
        parts += math.ceil(7 / 3) * found.validation_seconds + math.ceil(7 / 2) * found.checkpoint_seconds
        assert found.training_seconds == pytest.approx(parts)
        assert found.validation_seconds == pytest.approx(6 / found.examples_per_second)
        assert capsys.readouterr() == ("", "")

    def test_the_largest_batch_comes_first_and_the_rest_in_the_order_of_the_run(
        self, toy: Toy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make, data, features = toy
        seen: list[Batch] = []
        original = short_run.train

        def train(*, batches_from: Callable[[int], Any], **more: Any) -> Any:
            def recorded(step: int) -> Any:
                for batch in batches_from(step):
                    seen.append(batch)
                    yield batch

            return original(batches_from=recorded, **more)

        monkeypatch.setattr(short_run, "train", train)
        measure(make("data.bucket_width=1"), data, features, steps=4, warmup=1)
        tokens = [int(batch.text_mask.sum(dim=1).max() + batch.target_mask.sum(dim=1).max()) for batch in seen]
        assert len(seen) == 1 + 1 + 4 + 1
        assert tokens[0] == max(tokens)
        assert [batch.example_ids for batch in seen[1:4]] != [seen[0].example_ids] * 3
        assert len({example for batch in seen[1:4] for example in batch.example_ids}) == 12  # an epoch, none twice

    def test_several_tasks_are_measured_together(self, toy: Toy, toy_nlvr2: Path) -> None:
        make, data, features = toy
        splits = [f"tasks.{name}.splits={{train: train, validation: val, test: test}}" for name in ("vqa", "nlvr2")]
        settings = make(*splits, "method.rank=null", task="vqa,nlvr2")
        found = measure(
            settings, {**data, "nlvr2": toy_nlvr2}, {**features, "nlvr2": features["vqa"]}, steps=3, warmup=0
        )
        assert found.validation_seconds > 0
        assert found.total_steps == 7

    @pytest.mark.parametrize("error", [torch.OutOfMemoryError("no\nroom"), RuntimeError("x: can't allocate memory")])
    def test_out_of_memory_is_one_kind_of_error(
        self, toy: Toy, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
    ) -> None:
        make, data, features = toy
        monkeypatch.setattr(cost_module, "assemble", lambda *arguments: (_ for _ in ()).throw(error))
        with pytest.raises(MemoryError, match=str(error).partition("\n")[0]):
            measure(make(), data, features, steps=1, warmup=0)

    def test_other_errors_are_those_of_training(self, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
        make, data, features = toy
        with pytest.raises(InputDataError, match=r"manifest\.json"):
            measure(make(), data, {"vqa": data["vqa"]}, steps=1, warmup=0)
        error = RuntimeError("another")
        monkeypatch.setattr(cost_module, "assemble", lambda *arguments: (_ for _ in ()).throw(error))
        with pytest.raises(RuntimeError, match="another"):
            measure(make(), data, features, steps=1, warmup=0)

    def test_nothing_is_left_on_the_disk(self, toy: Toy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        make, data, features = toy
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        measure(make(), data, features, steps=1, warmup=0)
        assert list(tmp_path.iterdir()) == []


class TestMadeUpData:
    def test_texts_and_targets_have_their_full_lengths(self, toy: Toy) -> None:
        make, _, _ = toy
        settings, images = make("data.bucket_width=5"), SyntheticImages(3, 5)
        tasks = synthetic_tasks(settings, images)
        dataset = make_set(tasks["vqa"], tasks["vqa"].training, prepare(settings, tasks, images).backbone)
        assert set(dataset.tokens.texts.lengths()) == {12}
        assert set(dataset.tokens.targets.lengths()) == {4}
        assert dataset.item(0).visual_tokens.shape == (1, 3, 5)

    @pytest.mark.parametrize(
        ("more", "steps"),
        [((), 7), (("training.steps=null", "training.epochs=2"), None), (CLASSES, 7)],
    )
    def test_they_are_measured_in_the_shape_of_the_store(
        self, toy: Toy, more: tuple[str, ...], steps: int | None
    ) -> None:
        make, data, features = toy
        found = measure(make(*more), None, features, steps=1, warmup=0)
        assert found.synthetic
        assert found.total_steps == steps
        assert (found.training_seconds is None) == (steps is None)
        assert found.visual == measure(make(*more), data, features, steps=1, warmup=0).visual
        assert (found.heads > 0) == (more == CLASSES)

    def test_labels_are_the_classes_of_a_task_that_has_them(self, toy: Toy) -> None:
        make, _, _ = toy
        settings = make("task.head=classification", "task.splits={train: train}", task="rte")
        (task,) = synthetic_tasks(settings, None).values()
        assert task.answers == list(task.task.labels)
        assert task.training[0].targets[0].text == task.answers[0]

    def test_the_number_of_classes_is_that_of_the_settings(self, toy: Toy) -> None:
        make, _, _ = toy
        (task,) = synthetic_tasks(make("task.head=classification", "task.answer_count=5"), None).values()
        assert task.answers == [f"answer {number}" for number in range(5)]

    def test_without_a_store_the_image_backbone_tells_the_shape(
        self, toy: Toy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make, _, _ = toy
        shape = SimpleNamespace(visual_tokens=2, feature_width=7)
        monkeypatch.setattr("feature_extraction.backbones.build_backbone", lambda settings, device: shape)
        found = images_of(make().features)
        assert (found.visual_tokens, found.feature_width) == (2, 7)
        assert found.read("any").features.shape == (2, 7)
        assert measure(make(), None, {}, steps=1, warmup=0).visual > 0

    def test_a_task_without_images_needs_none(self, toy: Toy) -> None:
        make, _, _ = toy
        found = measure(make("task.max_target_length=6", task="sst2"), None, {}, steps=1, warmup=0)
        assert (found.visual, found.synthetic) == (0, True)


def test_a_process_of_its_own_measures_the_same_settings(toy: Toy) -> None:
    make, data, features = toy
    found = measure_apart(make(), data, features, steps=1, warmup=0)
    here = measure(make(), data, features, steps=1, warmup=0)
    assert isinstance(found, Cost)
    assert (found.own, found.total, found.total_steps) == (here.own, here.total, 7)
    assert found.startup_seconds > here.startup_seconds  # torch was loaded too
    assert found.peak_memory_bytes > 2**27
