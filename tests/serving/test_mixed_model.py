"""Mixed batches: every row is answered as its adapter alone answers it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dept_vl.model.backbone import Backbone
from dept_vl.serving.mixed_model import MixedModel
from dept_vl.settings import BackboneSettings, Settings, TrainingSettings
from feature_extraction import FeatureStore
from feature_extraction.errors import UsageError

Asked = list[tuple[Any, str, tuple[str, ...]]]  # an adapter, a text, image ids
CPU = torch.device("cpu")
LIBRARY, LEAN = (Settings(backbone=BackboneSettings(engine=engine)) for engine in ("library", "lean"))


def mixed_model(
    backbone: Backbone, adapters: list[Any], store: FeatureStore, settings: Settings = LIBRARY, *, few: bool = False
) -> MixedModel:
    model = MixedModel(backbone, device=CPU, settings=settings, features=store.identity, few_shapes=few)
    for one in adapters:
        model.add(one.name, one.folder)
    return model


def answers(model: MixedModel, asked: Asked, store: FeatureStore) -> list[str]:
    questions = [
        model.question(one.name, text, [store.read(image_id) for image_id in images]) for one, text, images in asked
    ]
    return model.answer(model.batch(questions), [question.adapter for question in questions])


@pytest.mark.parametrize("few", [False, True])
def test_answers_of_a_mixed_batch_are_those_of_each_adapter_alone(
    backbone: Backbone, many: list[Any], asked: Asked, store: FeatureStore, few: bool
) -> None:
    expected = [one.answer(text, images, store) for one, text, images in asked]
    assert len(set(expected)) > 5
    assert answers(mixed_model(backbone, many, store, few=few), asked, store) == expected


@pytest.mark.parametrize("few", [False, True])
def test_encoder_states_of_a_mixed_batch_are_those_of_each_adapter_alone(
    backbone: Backbone, many: list[Any], asked: Asked, store: FeatureStore, few: bool
) -> None:
    model = mixed_model(backbone, many, store, few=few)
    questions = [model.question(one.name, text, [*map(store.read, images)]) for one, text, images in asked]
    seen = []
    for part in model.encode(model.batch(questions), [one.name for one, _, _ in asked]):
        if few:
            assert part.mask.shape[1] % 32 == 0
            assert len(part.mask) in (1, 2, 4, 8, 16, 32)
        for row, states, mask in zip(part.rows, part.states, part.mask, strict=False):
            one, text, images = asked[row]
            with torch.no_grad():
                alone, real = one.model.encoder(one.batch(text, images, store))
            torch.testing.assert_close(states[mask], alone[real], atol=1e-5, rtol=1e-5)
            seen.append(row)
    assert sorted(seen) == list(range(len(asked)))


def test_sixty_four_different_adapters_answer_in_one_batch_as_in_64(
    backbone: Backbone, make_adapter: Callable[..., Any], store: FeatureStore
) -> None:
    adapters = [
        make_adapter(str(number), f"method.prompt_length={number % 7}", seed=number, trained=number % 12)
        for number in range(64)
    ]
    asked: Asked = [(one, " ".join(["is there any cat ?"] * (1 + place % 3)), ()) for place, one in enumerate(adapters)]
    expected = [one.answer(text) for one, text, _ in asked]
    assert len(set(expected)) > 20
    assert answers(mixed_model(backbone, adapters, store), asked, store) == expected


@pytest.mark.parametrize("few", [False, True])
def test_the_lean_engine_gives_the_answers_of_the_library(
    backbone: Backbone, many: list[Any], asked: Asked, store: FeatureStore, few: bool
) -> None:
    expected = [one.answer(text, images, store) for one, text, images in asked]
    # The lean layers take over the library's, so they come last.
    assert answers(mixed_model(backbone, many, store, LEAN, few=few), asked, store) == expected


def test_adapters_come_and_go_between_batches(
    backbone: Backbone, many: list[Any], asked: Asked, store: FeatureStore
) -> None:
    model = mixed_model(backbone, many, store)
    expected = answers(model, asked, store)
    names, size = model.names(), model.bytes
    for name in names[::2]:
        model.remove(name)
    assert model.names() == names[1::2]
    rest = [place for place, (one, _, _) in enumerate(asked) if one.name in names[1::2]]
    assert answers(model, [asked[place] for place in rest], store) == [expected[place] for place in rest]
    for one in many[::-1]:
        if one.name in names[::2]:
            model.add(one.name, one.folder)
    assert model.bytes == size
    assert answers(model, asked, store) == expected


def test_equal_visual_embeddings_are_kept_once_and_as_long_as_one_uses_them(
    backbone: Backbone, make_adapter: Callable[..., Any], store: FeatureStore
) -> None:
    one, other = make_adapter("one", task="vqa"), make_adapter("other", task="vqa", seed=1)
    model = mixed_model(backbone, [one], store)
    alone = model.bytes
    model.add("same", one.folder)
    assert model.bytes == alone
    model.add("other", other.folder)
    assert model.bytes > alone
    model.remove("other")
    model.remove("one")
    assert model.bytes == alone
    model.remove("same")
    assert model.bytes < alone


def test_bytes_of_an_adapter_are_those_of_its_prompt_and_its_trained_rows(
    backbone: Backbone, make_adapter: Callable[..., Any], store: FeatureStore
) -> None:
    model = mixed_model(backbone, [make_adapter("one", trained=5)], store)
    assert model.bytes_of("one") == (3 + 5) * 16 * 4


@torch.no_grad()
def test_bf16_states_are_as_near_to_those_of_fp32_as_a_bf16_run_s(
    backbone: Backbone, make_adapter: Callable[..., Any], store: FeatureStore
) -> None:
    bf16 = Settings(backbone=LIBRARY.backbone, training=TrainingSettings(precision="bf16"))
    adapters, text = [make_adapter(str(seed), seed=seed) for seed in range(8)], "is there any red shape ?"
    batches, names = [one.batch(text, (), store) for one in adapters], [one.name for one in adapters]
    exact = torch.cat([one.model.encoder(batch)[0] for one, batch in zip(adapters, batches, strict=True)])
    backbone.model.to(torch.bfloat16)
    model = mixed_model(backbone, adapters, store, bf16)
    with torch.autocast("cpu", torch.bfloat16):
        alone = torch.cat([one.model.encoder(batch)[0] for one, batch in zip(adapters, batches, strict=True)])
        (mixed,) = model.encode(model.batch([model.question(name, text) for name in names]), names)
    states = mixed.states[mixed.mask].view_as(exact)
    assert alone.dtype == states.dtype == torch.bfloat16
    assert 0 < (states - exact).norm() < 1.2 * (alone - exact).norm() < 0.1 * exact.norm()


def test_names_that_are_not_there_are_refused_with_the_nearest(
    backbone: Backbone, make_adapter: Callable[..., Any], store: FeatureStore
) -> None:
    model = mixed_model(backbone, [make_adapter("colors")], store)
    batch = model.batch([model.question("colors", "red")])
    for ask in (
        lambda: model.question("colours", "red"),
        lambda: model.answer(batch, ["colours"]),
        lambda: list(model.encode(batch, ["colours"])),
        lambda: model.remove("colours"),
        lambda: model.bytes_of("colours"),
    ):
        with pytest.raises(UsageError, match=re.escape("No adapter is called 'colours'. Did you mean 'colors'?")):
            ask()
    with pytest.raises(UsageError, match="There is an adapter 'colors' already"):
        model.add("colors", make_adapter("other").folder)


def test_a_backbone_that_is_no_t5_is_refused(backbone: Backbone) -> None:
    backbone.model.config.model_type = "bart"
    with pytest.raises(UsageError, match="'tiny' is of type 'bart', and mixed batches go with a T5"):
        MixedModel(backbone, device=CPU)
