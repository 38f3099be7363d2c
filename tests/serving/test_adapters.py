"""Adapter folders that can be served in mixed batches, and those that are refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dept_vl.model.adapter import Adapter, load_adapter, save_adapter
from dept_vl.model.backbone import Backbone
from dept_vl.model.decomposed_prompt import DecomposedPrompt
from dept_vl.model.families import EncoderDecoder
from dept_vl.serving.adapters import SERVED_HEADS, SERVED_METHODS, LoadedAdapter, merge, read_adapter
from dept_vl.settings import METHODS
from feature_extraction import FeatureStore
from feature_extraction.errors import DamagedError, IncompatibleError, InputDataError


def read(folder: Path, backbone: Backbone, store: FeatureStore | None = None) -> LoadedAdapter:
    return read_adapter(folder, backbone, features=None if store is None else store.identity, family=EncoderDecoder())


def test_the_table_is_what_the_update_adds_at_each_position_that_was_trained() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, prompt = (torch.randn(size, generator=generator) for size in ((7, 3), (3, 4), (2, 4)))
    tensors = {"prompt.prompt": prompt, "prompt.a": a, "prompt.b": b, "prompt.trained_length": torch.tensor(5)}
    merged = merge(tensors, "vqa", 4, official_scale=False)
    torch.testing.assert_close(merged.table, (a @ b)[:5])
    assert merged.prompt is prompt
    official = merge(tensors, "vqa", 4, official_scale=True)
    torch.testing.assert_close(official.table, 8 / 3**0.5 * (a @ b)[:5])
    model = DecomposedPrompt(prompt=prompt, a=a, b=b, scale=1.0).eval()
    model.trained_length.fill_(5)
    text = torch.randn(1, 6, 4, generator=generator)
    expected = model.embed_text(text, torch.ones(1, 6, dtype=torch.bool)) - text
    torch.testing.assert_close(torch.cat([merged.table, torch.zeros(1, 4)])[None], expected)


def test_parts_that_an_adapter_does_not_have_are_of_no_rows() -> None:
    prompt = torch.ones(2, 4)
    assert [part.shape for part in merge({"prompt.prompt": prompt}, "vqa", 4, False)] == [(2, 4), (0, 4)]
    assert [part.shape for part in merge({}, "vqa", 4, False)] == [(0, 4), (0, 4)]
    of_two = {"prompt.vqa.prompt": prompt, "prompt.nlvr2.prompt": 2 * prompt}
    assert torch.equal(merge(of_two, "nlvr2", 4, False).prompt, 2 * prompt)


def test_an_adapter_of_several_tasks_is_that_of_the_task_its_folder_is_named_after(
    backbone: Backbone, finished_pair: Path, store: FeatureStore, tmp_path: Path
) -> None:
    for task in ("vqa", "nlvr2"):
        one = _on_backbone(finished_pair / "adapter" / task, tmp_path / "pair" / task, backbone)
        adapter = read(one, backbone, store)
        assert adapter.served.settings.name == task
        assert torch.equal(adapter.merged.prompt, load_adapter(one).tensors[f"prompt.{task}.prompt"])
    other = _on_backbone(one, tmp_path / "other", backbone)
    with pytest.raises(IncompatibleError, match="was trained for the tasks vqa, nlvr2, and its folder is named after"):
        read(other, backbone, store)


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(SERVED_METHODS)))
def test_other_methods_are_refused_with_those_that_are_served(
    method: str, make_adapter: Callable[..., Any], backbone: Backbone
) -> None:
    one = make_adapter("one", identity={"method": method})
    with pytest.raises(IncompatibleError, match=f"is of method {method}. Served in mixed batches are adapters of meth"):
        read(one.folder, backbone)


def test_other_heads_are_refused_with_those_that_are_served(
    make_adapter: Callable[..., Any], backbone: Backbone
) -> None:
    one = make_adapter("one", "task.head=classification")
    with pytest.raises(IncompatibleError, match=f"is of head classification.*of head {', '.join(SERVED_HEADS)}; let"):
        read(one.folder, backbone)


@pytest.mark.parametrize("field", ["format", "weight_digest", "tokenizer_digest", "hidden_size"])
def test_adapters_of_another_backbone_are_refused(
    field: str, make_adapter: Callable[..., Any], backbone: Backbone
) -> None:
    key = field if field == "format" else f"backbone.{field}"
    one = make_adapter("one", identity={key: "another"})
    with pytest.raises(IncompatibleError, match=rf"trained for something else(.|\n)*{key} .*another(.|\n)*Serve it on"):
        read(one.folder, backbone)


def test_the_name_and_the_precision_of_the_backbone_may_be_others(
    make_adapter: Callable[..., Any], backbone: Backbone
) -> None:
    one = make_adapter("one", identity={"backbone.name": "elsewhere/tiny", "backbone.dtype": "bfloat16"})
    assert read(one.folder, backbone).served.method == "dept"


def test_adapters_of_other_features_are_refused_if_their_task_has_images(
    make_adapter: Callable[..., Any], backbone: Backbone, store: FeatureStore
) -> None:
    one = make_adapter("one", task="vqa", identity={"features.weight_digest": "1" * 64})
    with pytest.raises(IncompatibleError, match=r"features.weight_digest +0{16}… +1{16}…"):
        read(one.folder, backbone, store)
    with pytest.raises(IncompatibleError, match=r"features.visual_tokens +- +4"):
        read(make_adapter("other", task="vqa").folder, backbone)
    assert read(make_adapter("text").folder, backbone, store).served.visual is None


def test_damaged_missing_and_foreign_folders_are_refused(
    make_adapter: Callable[..., Any], backbone: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(InputDataError, match="No adapter in"):
        read(tmp_path, backbone)
    one = make_adapter("one")
    saved = load_adapter(one.folder)
    save_adapter(tmp_path / "peft", saved._replace(settings={"method": saved.settings["method"]}))
    with pytest.raises(IncompatibleError, match="does not say what task it is for, as adapters that PEFT has saved"):
        read(tmp_path / "peft", backbone)
    newer = {**saved.settings, "tasks": {"sst2": {**saved.settings["tasks"]["sst2"], "mood": "good"}}}
    save_adapter(tmp_path / "newer", saved._replace(settings=newer))
    with pytest.raises(IncompatibleError, match=re.escape("has the setting task.mood, which this version of dept_vl")):
        read(tmp_path / "newer", backbone)
    (one.folder / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DamagedError, match="SHA-256 expected"):
        read(one.folder, backbone)


def _on_backbone(source: Path, folder: Path, backbone: Backbone) -> Path:
    """A copy of an adapter of the same weights in another file."""
    adapter = load_adapter(source)
    digests = {f"backbone.{name}": getattr(backbone, name) for name in ("weight_digest", "tokenizer_digest")}
    save_adapter(folder, Adapter({**adapter.identity, **digests}, adapter.settings, adapter.tensors, adapter.answers))
    return folder
