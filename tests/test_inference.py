"""Predictions: each example once, in the data set's order, and the same for any batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from dept_vl.answer_log import AnswerLog
from dept_vl.inference import answer_batch, make_dataset, predict
from dept_vl.model.backbone import Backbone
from dept_vl.model.build import build_model
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.settings import DataSettings, MethodSettings, Settings, TaskSettings, TrainingSettings
from dept_vl.tasks.task import Task, load_task
from dept_vl.types import Batch, Example, Prediction
from feature_extraction import FeatureStore

QUESTIONS = (
    "what is the color ?",
    "is there any red shape ?",
    "how many ?",
    "what shape is this dog ?",
    "cat",
    "any blue ?",
    "are there two dog ?",
)


def make_settings(*, batch_size: int = 256, num_beams: int = 1, precision: str = "fp32") -> Settings:
    return Settings(
        method=MethodSettings(budget_length=10, prompt_length=4),
        tasks={"vqa": TaskSettings(max_text_length=8, max_target_length=6, num_beams=num_beams)},
        data=DataSettings(evaluation_batch_size=batch_size),
        training=TrainingSettings(steps=1, precision=precision),
    )


@pytest.fixture
def store(toy_store: Path) -> FeatureStore:
    return FeatureStore.open(toy_store)


def make_model(backbone: Backbone, settings: Settings) -> PromptedModel:
    return build_model(settings, backbone, visual_tokens=4, feature_width=6, seed=0).model


@pytest.fixture
def examples(store: FeatureStore) -> list[Example]:
    return [
        Example(example_id=f"q{number}", text=text, image_ids=(store.ids[number % 4],))
        for number, text in enumerate(QUESTIONS * 3)
    ]


Answer = Callable[..., list[Prediction]]


@pytest.fixture
def answer(backbone: Backbone, store: FeatureStore, examples: list[Example]) -> Answer:
    """Predictions for the examples with settings of ``make_settings``."""

    def make(
        *,
        task: Task | None = None,
        model: PromptedModel | None = None,
        some: slice = slice(None),
        log: AnswerLog | None = None,
        **changes: object,
    ) -> list[Prediction]:
        settings = make_settings(**changes)  # type: ignore[arg-type]
        return predict(
            model or make_model(backbone, settings),
            make_dataset(examples[some], store, backbone, settings, cache=None),
            task=task or load_task(settings.task),
            settings=settings,
            accelerator=Accelerator(cpu=True),
            log=log,
        )

    return make


def test_every_example_is_answered_once_in_the_order_of_the_data_set(answer: Answer, examples: list[Example]) -> None:
    assert [prediction.example_id for prediction in answer(batch_size=4)] == [one.example_id for one in examples]


@pytest.mark.parametrize("count", [1, 2, 20, 21])
@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_any_number_of_examples_and_any_batch_size_cover_each_example(
    answer: Answer, count: int, batch_size: int
) -> None:
    predictions = answer(some=slice(count), batch_size=batch_size)
    assert [prediction.example_id for prediction in predictions] == [f"q{number}" for number in range(count)]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_answers_do_not_depend_on_the_batch_size(answer: Answer, num_beams: int) -> None:
    alone, few, together = (answer(batch_size=size, num_beams=num_beams) for size in (1, 4, 32))
    assert alone == few == together
    assert len({prediction.answer for prediction in alone}) > 2  # so that they could differ


def test_beams_are_those_of_the_settings(answer: Answer) -> None:
    assert answer(num_beams=1) != answer(num_beams=4)


def test_answers_in_the_log_are_taken_as_they_stand_and_the_others_are_added_to_it(
    answer: Answer, examples: list[Example], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = answer(batch_size=4)

    def log() -> AnswerLog:
        return AnswerLog(tmp_path / "answers", identity={}, rank=0)

    assert answer(batch_size=4, log=log()) == plain
    assert capsys.readouterr().err == ""
    log().collect()
    assert log().read() == dict(plain)
    log().delete()
    longest_first = sorted(examples, key=lambda one: -len(one.text.split()))
    log().collect()
    log().append({one.example_id: "from the log" for one in longest_first[:4]})  # a batch
    found = answer(batch_size=4, log=log())
    assert [one.example_id for one in found] == [one.example_id for one in examples]
    assert {one.example_id for one in found if one.answer == "from the log"} == {
        one.example_id for one in longest_first[:4]
    }
    assert sum(one in plain for one in found) == len(plain) - 4
    assert capsys.readouterr().err == f"Going on: 4 of {len(examples)} examples are answered already\n"


def test_answers_are_parsed_by_the_task(answer: Answer) -> None:
    task = replace(load_task(TaskSettings()), parse=lambda text: f"<{text}>")
    raw = answer(task=replace(task, parse=lambda text: text))
    assert [prediction.answer for prediction in answer(task=task)] == [f"<{one.answer}>" for one in raw]


def test_predicting_turns_dropout_off(answer: Answer, backbone: Backbone) -> None:
    model = make_model(backbone, make_settings()).train()
    assert answer(model=model) == answer(model=model)
    assert not model.training


def test_a_batch_is_answered_in_the_precision_of_the_settings(
    backbone: Backbone, make_batch: Callable[..., Batch]
) -> None:
    seen: list[torch.dtype] = []
    model = make_model(backbone, make_settings())
    model.encoder.visual_embedding.feature_projection.register_forward_hook(  # type: ignore[union-attr]
        lambda module, inputs, output: seen.append(output.dtype)
    )
    for precision in ("fp32", "bf16"):
        settings = make_settings(precision=precision)
        answers = answer_batch(model.eval(), make_batch((5, 3)), load_task(settings.task), settings)
        assert len(answers) == 2
    assert seen == [torch.float32, torch.bfloat16]


def test_a_data_set_has_the_token_ids_of_the_settings(
    backbone: Backbone, store: FeatureStore, examples: list[Example], tmp_path: Path
) -> None:
    settings = replace(make_settings(), tasks={"vqa": TaskSettings(max_text_length=6, prefix="vqa : ")})
    dataset = make_dataset(examples, store, backbone, settings, cache=tmp_path)
    ids = dataset.item(0).text_ids.tolist()
    assert backbone.tokenizer.convert_ids_to_tokens(ids) == ["vqa", ":", "what", "is", "the", "</s>"]
    assert len(list(tmp_path.iterdir())) == 1
    assert len(dataset) == len(examples)
