"""PEFT does with DePT what it does with its own methods, and reads and writes the folders of dept_vl."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments

pytest.importorskip("peft")
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTuner

from dept_vl.integrations.peft import DeptConfig, parameter_groups
from dept_vl.model.adapter import (
    Adapter,
    adapter_identity,
    load_adapter,
    restore_tensors,
    save_adapter,
    trained_tensors,
)
from dept_vl.model.backbone import Backbone, tokenizer_digest, weight_digest
from dept_vl.model.build import BuiltModel, build_model
from dept_vl.settings import MethodSettings, Settings, TaskSettings
from dept_vl.types import Batch
from feature_extraction.errors import IncompatibleError, UsageError

Make = Callable[..., Any]
Texts = Callable[..., dict[str, Tensor]]
KINDS = ("t5", "bart", "gpt2", "llama", "qwen2", "bert", "gpt2_classifier")
GENERATING = ("t5", "bart", "gpt2", "llama", "qwen2")
NAMES = {f"prompt.{name}" for name in ("prompt", "a", "b", "trained_length", "w1", "b1", "w2", "b2")}


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    decoder = model.config.is_encoder_decoder
    with torch.no_grad():
        return model(**batch, **({"labels": torch.tensor([[5, 6, 1], [7, 1, 1]])} if decoder else {})).logits


def with_options(kind: str, **options: Any) -> dict[str, Any]:
    types = {"t5": "SEQ_2_SEQ_LM", "bart": "SEQ_2_SEQ_LM", "bert": "SEQ_CLS", "gpt2_classifier": "SEQ_CLS"}
    sizes = {"prompt_length": 4, "max_text_length": 12, "budget_length": 20}
    return {"task_type": types.get(kind, "CAUSAL_LM")} | sizes | options


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_equals_in_memory_to_the_bit(
    make_model: Make, make_prompted: Make, texts: Texts, tmp_path: Path, kind: str, low_cpu_mem_usage: bool
) -> None:
    model, batch = make_prompted(kind), texts(left=1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(kind), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert not torch.equal(logits(loaded, batch), logits(make_model(kind), batch))
    assert not any(value.requires_grad for value in loaded.parameters())
    if kind in GENERATING:
        for beams in (1, 3):
            options = {"max_new_tokens": 4, "num_beams": beams}
            assert torch.equal(loaded.generate(**batch, **options), model.generate(**batch, **options))


@pytest.mark.parametrize("offset", ["none", "position", "token", "both"])
def test_a_folder_has_the_tensors_of_our_own_adapters(make_prompted: Make, tmp_path: Path, offset: str) -> None:
    make_prompted("t5", offset=offset).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    by_position = {"prompt.a", "prompt.b", "prompt.trained_length"} if offset in ("position", "both") else set()
    by_token = {"prompt.w1", "prompt.b1", "prompt.w2", "prompt.b2"} if offset in ("token", "both") else set()
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert set(tensors) == {"prompt.prompt"} | by_position | by_token
    assert offset not in ("position", "both") or tensors["prompt.trained_length"] == 12


@pytest.mark.parametrize("offset", ["none", "position", "token", "both"])
def test_what_trains_is_what_the_budget_counts(
    make_prompted: Make, capsys: pytest.CaptureFixture[str], offset: str
) -> None:
    model = make_prompted("t5", fresh=True, offset=offset)
    trained, total = model.get_nb_trainable_parameters()
    assert trained == model.peft_config["default"].budget(16).spent
    model.print_trainable_parameters()
    assert capsys.readouterr().out.startswith(f"trainable params: {trained:,} || all params: {total:,} ||")
    assert model.peft_config["default"].rank == {"none": 0, "position": 9, "token": 7, "both": 3}[offset]


def test_empty_parts_are_neither_saved_nor_missed(
    make_model: Make, make_prompted: Make, texts: Texts, tmp_path: Path
) -> None:
    for options in ({"prompt_length": 0, "rank": 3}, {"rank": 0, "offset": "position"}):
        model = make_prompted("gpt2", **options)
        model.save_pretrained(tmp_path)
        assert all(value.numel() for value in load_file(tmp_path / "adapter_model.safetensors").values())
        loaded = PeftModel.from_pretrained(make_model("gpt2"), tmp_path)
        assert torch.equal(logits(loaded, texts()), logits(model, texts()))


def test_an_adapter_that_lacks_a_tensor_is_refused(make_model: Make, make_prompted: Make, tmp_path: Path) -> None:
    make_prompted("t5").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    del tensors["prompt.a"], tensors["prompt.b"]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(IncompatibleError) as raised:
        PeftModel.from_pretrained(make_model("t5"), tmp_path)
    assert str(raised.value) == (
        "The adapter lacks prompt.a, prompt.b, so it is not whole, or of other settings than its configuration says. "
        "Take it again from where it was saved"
    )


def test_adapters_of_different_sizes_take_turns(
    make_model: Make, make_prompted: Make, move: Make, texts: Texts, tmp_path: Path
) -> None:
    model, batch = make_prompted("gpt2"), texts(left=2)
    # The names of tensors too, which PEFT takes for those of other adapters.
    model.add_adapter("b", DeptConfig(**with_options("gpt2", prompt_length=2, rank=5, offset="position", seed=4)))
    first = logits(model, batch)
    model.set_adapter("b")
    assert model.active_adapters == ["b"]
    assert {name for name, value in model.named_parameters() if value.requires_grad} == {
        f"base_model.model.prompted_input.dept_prompts.b.{part}" for part in ("prompt", "a", "b")
    }
    second = logits(move(model, seed=5), batch)
    assert second.shape[1] == first.shape[1] - 2
    model.set_adapter("default")
    assert torch.equal(logits(model, batch), first)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model("gpt2"), tmp_path)
    assert torch.equal(logits(loaded, batch), first)
    loaded.load_adapter(tmp_path / "b", adapter_name="short")
    assert torch.equal(logits(loaded, batch), first)
    loaded.set_adapter("short")
    assert torch.equal(logits(loaded, batch), second)
    loaded.delete_adapter("default")
    assert list(loaded.peft_config) == ["short"]
    assert torch.equal(logits(loaded, batch), second)


def test_several_adapters_at_once_are_refused(make_prompted: Make) -> None:
    model = make_prompted("t5")
    model.add_adapter("other", DeptConfig(**with_options("t5")))
    message = "Adapters default, other cannot be active together, since a text has one prompt. Set one"
    with pytest.raises(UsageError, match=message):
        model.base_model.set_adapter(["default", "other"])


def test_an_added_adapter_leaves_what_trains_as_it_was(make_prompted: Make) -> None:
    model = make_prompted("t5")
    before = {name for name, value in model.named_parameters() if value.requires_grad}
    model.add_adapter("other", DeptConfig(**with_options("t5")))
    assert {name for name, value in model.named_parameters() if value.requires_grad} == before


def test_modules_to_save_train_and_come_back(
    make_model: Make, make_prompted: Make, texts: Texts, tmp_path: Path
) -> None:
    model = make_prompted("llama", modules_to_save=["lm_head"])
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == NAMES | {"base_model.model.lm_head.weight"}
    base = make_model("llama")
    with torch.no_grad():
        base.lm_head.weight += 1  # a new head, as that of a classifier is, has other numbers each time
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(logits(loaded, texts()), logits(model, texts()))


def test_training_goes_on_from_a_loaded_adapter(
    make_model: Make, make_prompted: Make, texts: Texts, tmp_path: Path
) -> None:
    make_prompted("t5").save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model("t5"), tmp_path, is_trainable=True)
    trained = {name.rpartition("default.")[2] for name, value in loaded.named_parameters() if value.requires_grad}
    assert trained == {"prompt", "a", "b", *(f"token_offset.{name}" for name in ("w1", "b1", "w2", "b2"))}
    with torch.no_grad():
        next(iter(parameter_groups(loaded)))["params"][0].zero_()
    loaded.save_pretrained(tmp_path / "more")
    assert not load_adapter(tmp_path / "more").tensors["prompt.prompt"].any()


def test_a_model_is_pushed_as_the_folder_that_is_saved(make_prompted: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, object] = {}

    def upload(self: object, folder: str, repo_id: str, *_: object, **__: object) -> None:
        pushed.update({"repository": repo_id, "files": {path.name for path in Path(folder).iterdir()}})

    hub = SimpleNamespace(create_repo=lambda repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: ModelCard(""))
    monkeypatch.setattr(PeftModel, "_upload_modified_files", upload)
    make_prompted("t5").push_to_hub("someone/dept-rte")
    assert pushed["repository"] == "someone/dept-rte"
    assert pushed["files"] >= {"adapter_config.json", "adapter_model.safetensors"}


def test_another_base_model_is_refused(make_model: Make, make_prompted: Make, tmp_path: Path) -> None:
    model = make_prompted("t5")
    model.save_pretrained(tmp_path)
    with pytest.raises(IncompatibleError, match="The adapter was trained on another base model"):
        PeftModel.from_pretrained(make_model("t5", seed=1), tmp_path)
    config = DeptConfig.from_pretrained(tmp_path)
    config.dept_vl = None  # the way round that the message names
    PeftModel.from_pretrained(make_model("t5", seed=1), tmp_path, config=config)


def test_injection_without_the_model_around_it_is_refused_by_peft(make_model: Make) -> None:
    with pytest.raises(ValueError, match="`inject_adapter_in_model` does not support"):
        inject_adapter_in_model(DeptConfig(**with_options("t5")), make_model("t5"))


def test_groups_have_the_two_rates_and_all_that_trains(make_prompted: Make) -> None:
    model = make_prompted("gpt2", modules_to_save=["lm_head"])
    model.add_adapter("other", DeptConfig(**with_options("gpt2")))
    groups = parameter_groups(model, prompt_lr=0.4, low_rank_lr=5e-4, modules_lr=1e-5, weight_decay=0.02)
    assert [(group["name"], group["lr"]) for group in groups] == [
        ("prompt", 0.4),
        ("low_rank", 5e-4),
        ("modules", 1e-5),
    ]
    assert {group["weight_decay"] for group in groups} == {0.02}
    assert [tuple(value.shape) for value in groups[0]["params"]] == [(4, 16)]
    trained = {id(value) for value in model.parameters() if value.requires_grad}
    assert {id(value) for group in groups for value in group["params"]} == trained
    torch.optim.AdamW(groups)
    (group,) = parameter_groups(make_prompted("t5", offset="none"))
    assert (group["name"], group["lr"], group["weight_decay"]) == ("prompt", 0.3, 1e-5)


def test_groups_of_a_model_without_prompt_are_refused(make_model: Make, make_prompted: Make, tmp_path: Path) -> None:
    make_prompted("t5").save_pretrained(tmp_path)
    for model in (make_model("t5"), PeftModel.from_pretrained(make_model("t5"), tmp_path)):
        with pytest.raises(UsageError) as raised:
            parameter_groups(model)
        assert str(raised.value) == (
            "No prompt of DePT trains in this model. Make it by get_peft_model with a DeptConfig, or load it with "
            "is_trainable=True"
        )


def test_the_library_s_trainer_trains_and_saves(
    make_model: Make, make_prompted: Make, texts: Texts, tmp_path: Path
) -> None:
    model, batch = make_prompted("t5", fresh=True), texts()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    examples = [
        {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([5, 1])}
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, save_steps=2
    )
    optimizer = torch.optim.AdamW(parameter_groups(model))
    trainer = Trainer(model, arguments, train_dataset=examples, optimizers=(optimizer, None))
    trainer.train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".prompted_input." in name for name in changed)
    loaded = PeftModel.from_pretrained(make_model("t5"), tmp_path / "checkpoint-2")
    assert torch.equal(logits(loaded, batch), logits(model.eval(), batch))
    assert trainer.evaluate(examples)["eval_loss"] > 0


# Interchange with dept_vl's own runs.


def backbone_of(kind: str, make_model: Make, tokenizer: PreTrainedTokenizerFast) -> Backbone:
    model: PreTrainedModel = make_model(kind)
    return Backbone("t5-mini", model, tokenizer, weight_digest(model), tokenizer_digest(tokenizer))


def settings(method: str) -> Settings:
    return Settings(
        method=MethodSettings(name=method, budget_length=20, prompt_length=4, low_rank_scale="official"),
        tasks={"rte": TaskSettings(name="rte", images_per_example=0, max_text_length=12, max_target_length=4)},
    )


def built_on(backbone: Backbone, method: str, seed: int = 0) -> BuiltModel:
    built = build_model(settings(method), backbone, visual_tokens=0, feature_width=0, seed=seed)
    built.model.eval()
    return built


@pytest.fixture
def batch(make_batch: Callable[..., Batch]) -> Batch:
    """Two texts of equal length, so that no padding moves the last bit."""
    made = make_batch((6, 6), images=0, task="rte")
    return replace(made, task="rte")


def own_logits(built: BuiltModel, batch: Batch) -> Tensor:
    with torch.no_grad():
        states, mask = built.model.encoder(batch)
        family: Any = built.model.heads["rte"].family
        return family.target_logits(built.model.backbone, states, mask, batch)


def peft_logits(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            return model(input_ids=batch.text_ids, labels=batch.target_ids).logits
        ids = torch.cat([batch.text_ids, batch.target_ids], dim=1)
        return model(input_ids=ids).logits[:, -batch.target_ids.shape[1] - 1 : -1]


@pytest.mark.parametrize("method", ["prompt", "dept", "adept", "dept_adept"])
@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2", "llama"])
def test_an_adapter_of_our_training_loads_in_peft_and_back(
    make_model: Make,
    move: Make,
    tokenizer: PreTrainedTokenizerFast,
    batch: Batch,
    tmp_path: Path,
    kind: str,
    method: str,
) -> None:
    backbone = backbone_of(kind, make_model, tokenizer)
    built = built_on(backbone, method)
    move(built.model)
    identity = adapter_identity(backbone, task="rte", method=method, features={})
    original = Adapter(identity, asdict(settings(method)), trained_tensors(built.model, built.groups), {"rte": ["a"]})
    save_adapter(tmp_path / "ours", original)

    model = PeftModel.from_pretrained(make_model(kind), tmp_path / "ours")
    torch.testing.assert_close(peft_logits(model, batch), own_logits(built, batch), rtol=1e-5, atol=1e-4)

    model.save_pretrained(tmp_path / "theirs")
    returned = load_adapter(tmp_path / "theirs", expected_identity=identity)
    assert (returned.identity, returned.settings, returned.answers) == (identity, original.settings, {"rte": ["a"]})
    other = built_on(backbone_of(kind, make_model, tokenizer), method, seed=9)
    restore_tensors(other.model, other.groups, returned.tensors, tmp_path)
    assert torch.equal(own_logits(other, batch), own_logits(built, batch))
    again = PeftModel.from_pretrained(make_model(kind), tmp_path / "theirs")
    assert torch.equal(peft_logits(again, batch), peft_logits(model, batch))


def test_an_adapter_of_peft_says_what_it_knows_of_its_backbone(
    make_model: Make, make_prompted: Make, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    make_prompted("t5", offset="position", scale="official").save_pretrained(tmp_path)
    adapter = load_adapter(tmp_path)
    ours = adapter_identity(backbone_of("t5", make_model, tokenizer), task="rte", method="dept", features={})
    unknown = {"task", "backbone.name", "backbone.tokenizer_digest"}
    assert set(adapter.identity) == set(ours)
    assert {key for key in ours if adapter.identity[key] != ours[key]} == unknown
    assert all(adapter.identity[key] is None for key in unknown)
    method = adapter.settings["method"]
    assert method["name"] == "dept"
    assert method["low_rank_scale"] == "official"
    assert set(method) <= {field.name for field in fields(MethodSettings)}
    built = built_on(backbone_of("t5", make_model, tokenizer), "dept")
    restore_tensors(built.model, built.groups, adapter.tensors, tmp_path)
    assert torch.equal(built.groups[0].parameters["prompt.prompt"], adapter.tensors["prompt.prompt"])


def test_an_adapter_of_images_says_in_peft_what_it_needs(
    make_model: Make, make_batch: Callable[..., Batch], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    backbone = backbone_of("t5", make_model, tokenizer)
    chosen = replace(settings("dept"), tasks={"vqa": TaskSettings(max_text_length=12)})
    built = build_model(chosen, backbone, visual_tokens=4, feature_width=6, seed=0)
    identity = adapter_identity(backbone, task="vqa", method="dept", features={})
    save_adapter(tmp_path, Adapter(identity, asdict(chosen), trained_tensors(built.model, built.groups)))
    with pytest.raises(IncompatibleError, match=r"such as visual_embedding\.\S+: those of images"):
        PeftModel.from_pretrained(make_model("t5"), tmp_path)


def test_the_keys_that_we_write_are_those_of_the_configuration(
    make_model: Make, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    backbone = backbone_of("gpt2", make_model, tokenizer)
    built = built_on(backbone, "dept_adept")
    identity = adapter_identity(backbone, task="rte", method="dept_adept", features={})
    save_adapter(
        tmp_path, Adapter(identity, asdict(settings("dept_adept")), trained_tensors(built.model, built.groups))
    )
    keys = set(json.loads((tmp_path / "adapter_config.json").read_text()))
    assert keys <= {field.name for field in fields(DeptConfig)}
    config = DeptConfig.from_pretrained(tmp_path)
    assert (config.task_type, config.offset, config.scale, config.budget_length) == (
        "CAUSAL_LM",
        "both",
        "official",
        None,
    )


def test_tensors_of_one_adapter_do_not_depend_on_the_names_of_others(make_prompted: Make) -> None:
    model = make_prompted("t5")
    alone = get_peft_model_state_dict(model)
    model.add_adapter("prompt", DeptConfig(**with_options("t5")))
    assert set(get_peft_model_state_dict(model)) == set(alone) == NAMES


@pytest.mark.parametrize("old", [False, True])
def test_without_peft_or_with_an_old_one_the_import_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    if old:
        monkeypatch.delattr(BaseTuner, "_get_adapter_state_dict")
        fault = "peft 0.21, and an older one is installed."
    else:
        monkeypatch.setitem(sys.modules, "peft.utils", None)
        fault = "peft (import of peft.utils halted; None in sys.modules)."
    monkeypatch.delitem(sys.modules, "dept_vl.integrations.peft")
    with pytest.raises(ImportError) as raised:
        importlib.import_module("dept_vl.integrations.peft")
    assert str(raised.value) == f"dept_vl.integrations.peft needs {fault} Run: pip install 'dept_vl[peft]'"


def test_a_configuration_can_be_used_again(make_model: Make, tmp_path: Path) -> None:
    config = DeptConfig(**with_options("t5"))
    get_peft_model(make_model("t5"), config).save_pretrained(tmp_path / "one")
    get_peft_model(make_model("t5", seed=1), config).save_pretrained(tmp_path / "other")
    PeftModel.from_pretrained(make_model("t5", seed=1), tmp_path / "other")
