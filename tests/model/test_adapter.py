"""Adapter folders: loaded equals in-memory, and nothing that does not belong together is put together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from dept_vl.model.adapter import (
    CARD_NAME,
    CONFIG_NAME,
    TENSORS_NAME,
    Adapter,
    adapter_identity,
    foreign_tensors,
    load_adapter,
    restore_tensors,
    save_adapter,
    trained_tensors,
)
from dept_vl.model.backbone import Backbone, weight_digest
from dept_vl.model.build import BuiltModel, build_model
from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.settings import MethodSettings, OptimizerSettings, Settings, TaskSettings
from dept_vl.training.optimizer import make_optimizer
from dept_vl.types import Batch
from feature_extraction.errors import DamagedError, IncompatibleError, InputDataError

MakeBatch = Callable[..., Batch]

FEATURES = {"backbone": "timm/tiny", "weight_digest": "ab" * 32, "grid": None, "mean": [0.5, 0.5, 0.5]}
METHODS = ("dept", "prompt", "adept", "dept_adept", "visual_only", "full")
ANSWERS = ["red", "blue", "yes", "two", "no"]


def settings(method: str = "dept", *, prompt_length: int = 4, **task: object) -> Settings:
    return Settings(
        method=MethodSettings(name=method, budget_length=10, prompt_length=prompt_length),
        tasks={"vqa": replace(TaskSettings(max_text_length=8), **task)},
    )


def build(backbone: Backbone, method: str = "dept", *, seed: int = 0, **changes: Any) -> BuiltModel:
    answers = {"vqa": ANSWERS}
    return build_model(
        settings(method, **changes), backbone, visual_tokens=4, feature_width=6, seed=seed, answers=answers
    )


def trained(built: BuiltModel, batch: Batch) -> BuiltModel:
    """The model after two real steps."""
    optimizer = make_optimizer(built.groups, OptimizerSettings())
    for _ in range(2):
        built.model.train()(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    built.model.eval()
    return built


def identity_of(backbone: Backbone) -> dict[str, object]:
    return adapter_identity(backbone, task="vqa", method="dept", features=FEATURES)


def adapter_of(built: BuiltModel, backbone: Backbone) -> Adapter:
    return Adapter(identity_of(backbone), asdict(settings()), trained_tensors(built.model, built.groups))


@pytest.fixture
def folder(backbone: Backbone, make_batch: MakeBatch, tmp_path: Path) -> Path:
    """A saved adapter."""
    save_adapter(tmp_path / "adapter", adapter_of(trained(build(backbone), make_batch((5, 3))), backbone))
    return tmp_path / "adapter"


def everything(built: BuiltModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in built.model.state_dict().items()}


@pytest.mark.parametrize(
    "task",
    [{}, {"num_beams": 3}, {"constrained": True}, {"head": "first_step"}, {"head": "classification"}],
    ids=["greedy", "beams", "constrained", "first_step", "classification"],
)
@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_equals_in_memory(
    backbone: Backbone,
    make_t5: Callable[..., T5ForConditionalGeneration],
    make_batch: MakeBatch,
    tmp_path: Path,
    method: str,
    task: dict[str, object],
) -> None:
    batch = make_batch((5, 3, 4, 7), answers=5)
    original = trained(build(backbone, method, **task), batch)
    save_adapter(tmp_path, adapter_of(original, backbone))
    adapter = load_adapter(tmp_path, expected_identity=identity_of(backbone))
    other = build(backbone._replace(model=make_t5()), method, seed=9, **task)
    assert not torch.equal(other.model.eval().loss(batch).loss, original.model.loss(batch).loss)
    restore_tensors(other.model, other.groups, adapter.tensors, tmp_path)
    assert torch.equal(other.model.loss(batch).loss, original.model.loss(batch).loss)
    assert original.model.answer(batch) == other.model.answer(batch)


def test_the_length_that_was_trained_is_saved_with_the_rows(backbone: Backbone, folder: Path) -> None:
    adapter = load_adapter(folder)
    assert adapter.tensors["prompt.trained_length"] == 5
    other = build(backbone)
    restore_tensors(other.model, other.groups, adapter.tensors, folder)
    prompt = other.model.encoder.prompt
    assert isinstance(prompt, DecomposedPrompt)
    assert prompt.trained_length == 5


def test_the_tensors_are_the_trained_ones_and_no_others(backbone: Backbone, folder: Path) -> None:
    names = {name for group in build(backbone).groups for name in group.parameters}
    assert set(load_adapter(folder).tensors) == names | {"prompt.trained_length"}


def test_saved_tensors_do_not_follow_the_model(backbone: Backbone) -> None:
    built = build(backbone)
    tensors = trained_tensors(built.model, built.groups)
    built.groups[0].parameters["prompt.prompt"].data.fill_(0)
    assert tensors["prompt.prompt"].any()


def test_the_answers_of_each_task_come_back_in_their_order(backbone: Backbone, folder: Path) -> None:
    adapter = load_adapter(folder)
    assert adapter.answers == {}
    answers = {"vqa": ["red", 'a "b"', "é"], "nlvr2": ["true", "false"]}
    save_adapter(folder, adapter._replace(answers=answers))
    assert load_adapter(folder).answers == answers


def test_identity_and_settings_come_back_as_they_were(backbone: Backbone, folder: Path) -> None:
    adapter = load_adapter(folder)
    assert adapter.identity == identity_of(backbone)
    assert adapter.settings == asdict(settings())


def test_the_identity_names_everything_an_adapter_is_tied_to(backbone: Backbone) -> None:
    assert identity_of(backbone) == {
        "format": 2,
        "task": "vqa",
        "method": "dept",
        "backbone.name": "tiny",
        "backbone.family": "encoder_decoder",
        "backbone.dtype": "float32",
        "backbone.weight_digest": backbone.weight_digest,
        "backbone.tokenizer_digest": backbone.tokenizer_digest,
        "backbone.hidden_size": 16,
        "features.backbone": "timm/tiny",
        "features.weight_digest": "ab" * 32,
        "features.grid": None,
        "features.mean": [0.5, 0.5, 0.5],
    }


def test_equal_adapters_give_equal_files(backbone: Backbone, make_batch: MakeBatch, tmp_path: Path) -> None:
    adapter = adapter_of(trained(build(backbone), make_batch((5, 3))), backbone)
    save_adapter(tmp_path / "one", adapter)
    save_adapter(tmp_path / "other", adapter._replace(tensors=dict(reversed(adapter.tensors.items()))))
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == {TENSORS_NAME, CONFIG_NAME, CARD_NAME}
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes() for name in files)


def test_the_card_says_what_the_adapter_belongs_to(backbone: Backbone, folder: Path) -> None:
    card = (folder / CARD_NAME).read_text()
    assert card.startswith("# dept adapter for vqa on tiny\n")
    assert f"| backbone.weight_digest | {backbone.weight_digest} |" in card
    assert "| prompt.a | 8 x 4 |" in card
    assert "| prompt.trained_length | scalar |" in card


@pytest.mark.parametrize(
    "field",
    [
        "format",
        "task",
        "method",
        "backbone.name",
        "backbone.family",
        "backbone.dtype",
        "backbone.weight_digest",
        "backbone.tokenizer_digest",
        "backbone.hidden_size",
        "features.backbone",
        "features.weight_digest",
        "features.grid",
        "features.mean",
    ],
)
def test_each_field_that_differs_is_refused_with_what_was_expected(
    backbone: Backbone, folder: Path, field: str
) -> None:
    expected = identity_of(backbone) | {field: "other"}
    with pytest.raises(IncompatibleError) as raised:
        load_adapter(folder, expected_identity=expected)
    first, header, row, advice = str(raised.value).splitlines()
    assert first == f"The adapter in {folder} was trained for something else:"
    assert header.split() == ["field", "expected", "got"]
    assert row.split()[:2] == [field, "other"]
    assert advice == "Choose the adapter's own backbone and features, or train a new adapter"
    assert raised.value.exit_code == 4


def test_a_field_that_only_one_side_has_is_refused(backbone: Backbone, folder: Path) -> None:
    more = identity_of(backbone) | {"features.layer": 3}
    with pytest.raises(IncompatibleError, match=r"features\.layer +3 +-\n"):
        load_adapter(folder, expected_identity=more)
    less = {field: value for field, value in identity_of(backbone).items() if field != "features.grid"}
    with pytest.raises(IncompatibleError, match=r"features\.grid +- +None\n"):
        load_adapter(folder, expected_identity=less)


def test_a_backbone_of_the_same_shapes_but_other_weights_is_refused(
    backbone: Backbone, make_t5: Callable[..., T5ForConditionalGeneration], folder: Path
) -> None:
    other = make_t5(seed=5)
    twin = backbone._replace(model=other, weight_digest=weight_digest(other))
    with pytest.raises(IncompatibleError, match=r"backbone\.weight_digest"):
        load_adapter(folder, expected_identity=identity_of(twin))


def test_a_folder_without_an_adapter_is_missing_data(tmp_path: Path) -> None:
    with pytest.raises(InputDataError) as raised:
        load_adapter(tmp_path)
    assert str(raised.value) == (
        f"No adapter in {tmp_path}: adapter_config.json is missing. Give the folder that training wrote, RUN/adapter"
    )
    assert raised.value.exit_code == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"dept_vl": {}}', b"\xff\xfe"])
def test_a_damaged_configuration_is_refused(folder: Path, content: bytes) -> None:
    (folder / CONFIG_NAME).write_bytes(content)
    with pytest.raises(DamagedError) as raised:
        load_adapter(folder)
    assert str(raised.value) == f"{folder / CONFIG_NAME} does not fit its own digest. Take it again from the run"
    assert raised.value.exit_code == 5


def test_an_adapter_of_an_older_format_is_refused(folder: Path) -> None:
    (folder / CONFIG_NAME).write_text('{"identity": {}, "settings": {}, "digest": ""}')
    with pytest.raises(IncompatibleError) as raised:
        load_adapter(folder)
    assert str(raised.value) == (
        f"{folder / CONFIG_NAME} was written by an older version of dept_vl, in format 1; this one reads format 2. "
        "Use that version, or train again"
    )


def test_an_adapter_of_another_method_is_refused(folder: Path) -> None:
    (folder / CONFIG_NAME).write_text('{"peft_type": "LORA", "r": 8}')
    with pytest.raises(InputDataError) as raised:
        load_adapter(folder)
    assert str(raised.value) == (
        f"{folder / CONFIG_NAME} is an adapter of the method LORA. Give one of dept_vl, whose is DEPT"
    )


def text_only(method: str, **changes: object) -> Settings:
    return replace(
        settings(method, images_per_example=0),
        method=replace(settings(method).method, budget_length=20, low_rank_scale="official", **changes),
    )


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("dept", {"offset": "position", "prompt_length": 4, "rank": 8, "max_text_length": 8}),
        ("adept", {"offset": "token", "prompt_length": 4, "rank": 7, "max_text_length": 0}),
        ("dept_adept", {"offset": "both", "prompt_length": 4, "rank": 4, "max_text_length": 8}),
        ("prompt", {"offset": "none", "prompt_length": 20, "rank": 0, "max_text_length": 0}),
    ],
)
def test_the_configuration_tells_peft_the_sizes(
    backbone: Backbone, tmp_path: Path, method: str, expected: dict[str, object]
) -> None:
    chosen = text_only(method)
    built = build_model(chosen, backbone, visual_tokens=0, feature_width=0, seed=0)
    tensors = trained_tensors(built.model, built.groups)
    save_adapter(tmp_path, Adapter(identity_of(backbone), asdict(chosen), tensors))
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    assert config.pop("dept_vl")["shapes"] == {name: list(tensors[name].shape) for name in sorted(tensors)}
    assert config == expected | {
        "peft_type": "DEPT",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": "tiny",
        "inference_mode": True,
        "budget_length": None,
        "scale": "official",
        "token_dropout": 0.1,
    }


def test_the_embedded_backbone_is_no_name_for_peft(backbone: Backbone, tmp_path: Path) -> None:
    identity = adapter_identity(backbone._replace(name="t5-mini"), task="rte", method="prompt", features={})
    save_adapter(tmp_path, Adapter(identity, {}, {"prompt.prompt": torch.ones(2, 16)}))
    assert json.loads((tmp_path / CONFIG_NAME).read_text())["base_model_name_or_path"] is None


def test_an_adapter_with_visual_parts_has_no_sizes_for_peft(folder: Path) -> None:
    config = json.loads((folder / CONFIG_NAME).read_text())
    assert set(config) == {"peft_type", "task_type", "base_model_name_or_path", "inference_mode", "dept_vl"}
    foreign = foreign_tensors(config["dept_vl"]["shapes"])
    assert foreign
    assert all(name.startswith("visual_embedding.") for name in foreign)


def test_a_changed_identity_in_the_file_is_damage_and_not_believed(folder: Path) -> None:
    path = folder / CONFIG_NAME
    path.write_text(path.read_text().replace('"task": "vqa"', '"task": "gqa"'))
    with pytest.raises(DamagedError, match="does not fit its own digest"):
        load_adapter(folder)


@pytest.mark.parametrize("place", [8, 100, -1])
def test_one_flipped_bit_in_the_tensors_is_found(folder: Path, place: int) -> None:
    path = folder / TENSORS_NAME
    expected = json.loads((folder / CONFIG_NAME).read_text())["dept_vl"]["sha256"]
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError) as raised:
        load_adapter(folder)
    message = str(raised.value)
    assert message.startswith(f"{path}: SHA-256 expected {expected}, got ")
    assert message.endswith(". Take it again from the run")


def test_missing_tensors_are_damage(folder: Path) -> None:
    (folder / TENSORS_NAME).unlink()
    with pytest.raises(DamagedError, match="got no file"):
        load_adapter(folder)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape"])
def test_tensors_that_do_not_fit_are_refused_and_nothing_is_changed(
    backbone: Backbone, make_batch: MakeBatch, fault: str
) -> None:
    tensors = adapter_of(trained(build(backbone), make_batch((5, 3))), backbone).tensors
    if fault == "missing":
        del tensors["prompt.b"]
    elif fault == "unexpected":
        tensors["prompt.c"] = torch.zeros(2)
    else:
        tensors["prompt.b"] = torch.zeros(3, 16)
    other = build(backbone, seed=9)
    before = everything(other)
    with pytest.raises(IncompatibleError) as raised:
        restore_tensors(other.model, other.groups, tensors, Path("somewhere"))
    message = str(raised.value)
    row = {
        "missing": "prompt.b  (4, 16)   -",
        "unexpected": "prompt.c  -         (2,)",
        "shape": "prompt.b  (4, 16)   (3, 16)",
    }[fault]
    assert message.splitlines()[0] == "The tensors of somewhere do not fit this model:"
    assert message.splitlines()[2].strip() == row
    assert message.splitlines()[-1] == "Use the settings of the run that trained them"
    after = everything(other)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_another_prompt_length_is_refused(backbone: Backbone, folder: Path) -> None:
    other = build(backbone, prompt_length=5)
    with pytest.raises(IncompatibleError) as raised:
        restore_tensors(other.model, other.groups, load_adapter(folder).tensors, folder)
    assert "prompt.prompt  (5, 16)   (4, 16)" in str(raised.value)


def test_restored_parameters_still_train(backbone: Backbone, make_batch: MakeBatch, folder: Path) -> None:
    other = build(backbone)
    restore_tensors(other.model, other.groups, load_adapter(folder).tensors, folder)
    other.model(make_batch((5, 3))).loss.backward()
    assert all(value.grad is not None for group in other.groups for value in group.parameters.values())


def test_a_stop_while_saving_leaves_no_adapter(
    backbone: Backbone, make_batch: MakeBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration is written last: without it the folder is none."""
    adapter = adapter_of(trained(build(backbone), make_batch((5, 3))), backbone)
    written: list[str] = []

    def stop_at_the_last(path: Path, data: bytes) -> str:
        written.append(path.name)
        if path.name == CONFIG_NAME:
            raise KeyboardInterrupt
        path.write_bytes(data)
        return ""

    monkeypatch.setattr("dept_vl.model.adapter.write_durably", stop_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(tmp_path, adapter)
    assert written == [TENSORS_NAME, CARD_NAME, CONFIG_NAME]
    with pytest.raises(InputDataError, match="No adapter in"):
        load_adapter(tmp_path)
