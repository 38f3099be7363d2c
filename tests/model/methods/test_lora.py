"""LoRA and (IA)3: which layers, how many parameters, and what they compute. See test_insertion.py for the rest."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dept_vl.model.backbone import Backbone
from dept_vl.model.methods.insertion import Insertion
from dept_vl.model.methods.lora import insert_ia3, insert_lora
from dept_vl.settings import MethodSettings
from feature_extraction.errors import UsageError

Insert = Callable[..., Insertion]


def added(backbone: Backbone, insertion: Insertion) -> dict[str, tuple[int, ...]]:
    chosen = {id(value) for value in insertion.parameters}
    named = backbone.model.named_parameters()
    return {name: tuple(value.shape) for name, value in named if id(value) in chosen}


@pytest.mark.parametrize(
    ("allowed", "changes", "size", "note"),
    [
        (76_800, {}, 73_728, "LoRA: rank 2 in q and v of the encoder's layers: 73,728 of 76,800 parameters"),
        (110_592, {}, 110_592, "LoRA: rank 1 in q and v of every layer: 110,592 of 110,592 parameters"),
        (110_591, {}, 73_728, "LoRA: rank 2 in q and v of the encoder's layers: 73,728 of 110,591 parameters"),
        (
            None,
            {"lora_rank": 8, "placement": "encoder"},
            294_912,
            "LoRA: rank 8 in q and v of the encoder's layers: 294,912 parameters",
        ),
    ],
)
def test_t5_base_within_a_budget(
    meta_t5_base: Callable[[], Backbone], allowed: int | None, changes: dict[str, Any], size: int, note: str
) -> None:
    insertion = insert_lora(meta_t5_base(), MethodSettings(name="lora", **changes), allowed=allowed)
    assert sum(value.numel() for value in insertion.parameters) == size
    assert insertion.note == note


@pytest.mark.parametrize("lora_rank", [None, 1])
def test_every_layer_of_t5_base_is_too_much_for_a_prompt_of_100(
    meta_t5_base: Callable[[], Backbone], lora_rank: int | None
) -> None:
    method = MethodSettings(name="lora", placement="all", lora_rank=lora_rank)
    with pytest.raises(UsageError) as raised:
        insert_lora(meta_t5_base(), method, allowed=76_800)
    assert str(raised.value) == (
        "LoRA cannot meet the budget of 76,800 parameters: the nearest setting, rank 1 in q and v of every layer, "
        "costs 110,592. Raise method.budget to that or choose another method"
    )


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("t5", ["SelfAttention.q", "SelfAttention.v", "EncDecAttention.q", "EncDecAttention.v"]),
        ("bart", ["self_attn.q_proj", "self_attn.v_proj", "encoder_attn.q_proj", "encoder_attn.v_proj"]),
        ("gpt2", ["attn.c_attn"]),
        ("llama", ["self_attn.q_proj", "self_attn.v_proj"]),
        ("bert", ["attention.self.query", "attention.self.value"]),
    ],
)
def test_queries_and_values_are_updated(tiny: Callable[..., Backbone], kind: str, places: list[str]) -> None:
    backbone = tiny(kind)
    names = added(backbone, insert_lora(backbone, MethodSettings(lora_rank=2), allowed=None))
    wrapped = {name.partition(".lora_")[0] for name in names}
    assert {".".join(name.split(".")[-len(places[0].split(".")) :]) for name in wrapped} == set(places)
    layers = {"t5": 2 * 2 + 2 * 4, "bart": 2 * 2 + 2 * 4, "gpt2": 2, "llama": 4, "bert": 4}[kind]
    assert len(names) == 2 * layers


def test_names_and_shapes_are_those_of_peft(tiny: Callable[..., Backbone]) -> None:
    t5, gpt2 = tiny("t5"), tiny("gpt2")
    names = added(t5, insert_lora(t5, MethodSettings(lora_rank=3, placement="encoder"), allowed=None))
    place = "encoder.block.{}.layer.0.SelfAttention.{}.lora_{}.default.weight"
    assert names == {
        place.format(layer, key, part): shape
        for layer in range(2)
        for key in ("q", "v")
        for part, shape in (("A", (3, 16)), ("B", (16, 3)))
    }
    names = added(gpt2, insert_lora(gpt2, MethodSettings(lora_rank=3), allowed=None))
    assert names["transformer.h.1.attn.c_attn.lora_B.default.weight"] == (48, 3)


def test_an_update_is_b_a_times_alpha_over_r(tiny: Callable[..., Backbone]) -> None:
    plain, backbone = tiny("t5"), tiny("t5")
    insert_lora(backbone, MethodSettings(lora_rank=2, lora_alpha=5.0), allowed=None)
    query: Any = backbone.model.get_submodule("decoder.block.1.layer.1.EncDecAttention.q")
    torch.nn.init.normal_(query.lora_B.default.weight)
    hidden = torch.randn(2, 3, 16)
    update = hidden @ query.lora_A.default.weight.T @ query.lora_B.default.weight.T
    frozen: Any = plain.model.get_submodule("decoder.block.1.layer.1.EncDecAttention.q")
    torch.testing.assert_close(query(hidden), frozen(hidden) + 2.5 * update)


@pytest.mark.parametrize(
    ("allowed", "size", "note"),
    [
        (129_024, 129_024, "k, v and wo of every layer: 129,024 of 129,024 parameters"),
        (76_800, 55_296, "k, v and wo of the encoder's layers: 55,296 of 76,800 parameters"),
        (None, 129_024, "k, v and wo of every layer: 129,024 parameters"),
    ],
)
def test_ia3_takes_every_layer_or_the_encoder(
    meta_t5_base: Callable[[], Backbone], allowed: int | None, size: int, note: str
) -> None:
    insertion = insert_ia3(meta_t5_base(), MethodSettings(name="ia3"), allowed=allowed)
    assert sum(value.numel() for value in insertion.parameters) == size
    assert insertion.note == f"(IA)3: a factor for each feature of {note}"


def test_ia3_that_costs_too_much_is_refused(tiny: Callable[..., Backbone]) -> None:
    with pytest.raises(UsageError) as raised:
        insert_ia3(tiny("t5"), MethodSettings(name="ia3", placement="all"), allowed=300)
    assert str(raised.value) == (
        "(IA)3 cannot meet the budget of 300 parameters: it has no size, and the nearest setting, a factor for each "
        "feature of k, v and wo of every layer, costs 320. Raise method.budget to that or choose another method"
    )


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("t5", {"k": (16, 1), "v": (16, 1), "wo": (1, 32)}),
        ("bart", {"q_proj": (16, 1), "v_proj": (16, 1), "fc2": (1, 32)}),
        ("gpt2", {"c_attn": (48, 1), "c_proj": (1, 64)}),
        ("llama", {"k_proj": (8, 1), "v_proj": (8, 1), "down_proj": (1, 32)}),
    ],
)
def test_ia3_scales_what_attention_makes_and_what_feed_forward_reads(
    tiny: Callable[..., Backbone], kind: str, shapes: dict[str, tuple[int, int]]
) -> None:
    backbone = tiny(kind)
    insertion = insert_ia3(backbone, MethodSettings(name="ia3"), allowed=None)
    names = added(backbone, insertion)
    assert {name.split(".ia3_l")[0].rpartition(".")[2]: shape for name, shape in names.items()} == shapes
    assert all(bool((value == 1).all()) for value in insertion.parameters)


def test_a_factor_multiplies_its_feature(tiny: Callable[..., Backbone]) -> None:
    plain, backbone = tiny("t5"), tiny("t5")
    insert_ia3(backbone, MethodSettings(name="ia3"), allowed=None)
    hidden, factors = torch.randn(3, 32), torch.rand(1, 32)
    frozen, last = (one.model.get_submodule("encoder.block.0.layer.1.DenseReluDense.wo") for one in (plain, backbone))
    with torch.no_grad():
        last.get_parameter("ia3_l.default").copy_(factors)
    torch.testing.assert_close(last(hidden), frozen(hidden * factors))


@pytest.mark.parametrize(("insert", "method"), [(insert_lora, "LoRA"), (insert_ia3, "(IA)3")])
def test_a_type_that_peft_does_not_know_is_refused(tiny: Callable[..., Backbone], insert: Insert, method: str) -> None:
    with pytest.raises(UsageError) as raised:
        insert(tiny("olmo"), MethodSettings(lora_rank=1), allowed=None)
    text = str(raised.value)
    assert text.startswith(
        f"{method} does not know the layers of 'olmo', which is of type 'olmo'. Choose a backbone of one of the types "
    )
    for kind in ("bart", "bert", "gpt2", "llama", "qwen2", "roberta", "t5"):
        assert re.search(rf" {kind}[,;]", text)
    assert "gemma4" not in text  # a pattern in PEFT, which would be read as letters
    assert text.endswith("; or another method, such as dept")


@pytest.mark.parametrize(("insert", "method"), [(insert_lora, "LoRA"), (insert_ia3, "(IA)3")])
def test_layers_are_changed_once(tiny: Callable[..., Backbone], insert: Insert, method: str) -> None:
    backbone = tiny("t5")
    insert_lora(backbone, MethodSettings(lora_rank=1), allowed=None)
    count = len(list(backbone.model.parameters()))
    with pytest.raises(UsageError) as raised:
        insert(backbone, MethodSettings(lora_rank=1), allowed=None)
    assert str(raised.value) == (
        f"The layers of 't5' have been changed by PEFT before, and {method} on top of that would be another method. "
        "Load the backbone anew"
    )
    assert len(list(backbone.model.parameters())) == count


@pytest.mark.parametrize(("insert", "method"), [(insert_lora, "LoRA"), (insert_ia3, "(IA)3")])
def test_without_peft_its_installation_is_named(
    tiny: Callable[..., Backbone], monkeypatch: pytest.MonkeyPatch, insert: Insert, method: str
) -> None:
    backbone = tiny("t5")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as raised:
        insert(backbone, MethodSettings(lora_rank=1), allowed=None)
    assert str(raised.value) == (
        f'{method} is that of the library PEFT, which is not installed. Run: pip install "dept_vl[peft]"'
    )


def test_lora_in_a_decoder_alone_has_no_encoder(tiny: Callable[..., Backbone]) -> None:
    with pytest.raises(UsageError, match=r"^method\.placement is 'encoder', but 'gpt2' \(gpt2\) is no encoder-decoder"):
        insert_lora(tiny("gpt2"), MethodSettings(placement="encoder"), allowed=1000)
