"""Adapters and AdapterDrop: where they are, and what they compute. See test_insertion.py for the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import gelu
from transformers import PreTrainedModel

from dept_vl.model.backbone import Backbone
from dept_vl.model.methods.bottleneck import insert_adapter
from dept_vl.settings import MethodSettings
from feature_extraction.errors import UsageError


def places(backbone: Backbone) -> set[str]:
    """The layers that have an adapter."""
    return {name.removesuffix(".adapter") for name, _ in backbone.model.named_modules() if name.endswith(".adapter")}


def settings(**changes: Any) -> MethodSettings:
    return MethodSettings(**{"name": "adapter", **changes})


@pytest.mark.parametrize(
    ("kind", "attention", "feed_forward"),
    [
        ("t5", ["SelfAttention.o", "EncDecAttention.o"], "DenseReluDense.wo"),
        ("mt5", ["SelfAttention.o", "EncDecAttention.o"], "DenseReluDense.wo"),
        ("bart", ["self_attn.out_proj", "encoder_attn.out_proj"], "fc2"),
        ("mbart", ["self_attn.out_proj", "encoder_attn.out_proj"], "fc2"),
        ("gpt2", ["attn.c_proj"], "mlp.c_proj"),
        ("llama", ["self_attn.o_proj"], "mlp.down_proj"),
        ("mistral", ["self_attn.o_proj"], "mlp.down_proj"),
        ("qwen2", ["self_attn.o_proj"], "mlp.down_proj"),
        ("qwen3", ["self_attn.o_proj"], "mlp.down_proj"),
        ("bert", ["attention.output.dense"], "output.dense"),
        ("roberta", ["attention.output.dense"], "output.dense"),
        ("xlm-roberta", ["attention.output.dense"], "output.dense"),
    ],
)
def test_every_sub_layer_ends_in_an_adapter_or_feed_forward_does(
    tiny: Callable[..., Backbone], kind: str, attention: list[str], feed_forward: str
) -> None:
    everywhere, behind = tiny(kind), tiny(kind)
    insert_adapter(everywhere, settings(width=2), allowed=None)
    insert_adapter(behind, settings(width=2, adapter_places="feed_forward"), allowed=None)
    ends = tuple(f".{end}" for end in attention)
    stacks = 2 if len(attention) == 2 else 1
    assert {name for name in places(everywhere) if name.endswith(ends)} == places(everywhere) - places(behind)
    assert len(places(everywhere)) == {1: 4, 2: 4 + 6}[stacks]
    assert len(places(behind)) == 2 * stacks
    assert all(name.endswith(f".{feed_forward}") for name in places(behind))


def test_an_adapter_adds_to_what_its_layer_gives(tiny: Callable[..., Backbone]) -> None:
    plain, backbone = tiny("t5"), tiny("t5")
    insertion = insert_adapter(backbone, settings(width=3), allowed=None)
    for parameter in insertion.parameters:
        torch.nn.init.normal_(parameter)
    frozen, last = (one.model.get_submodule("decoder.block.1.layer.2.DenseReluDense.wo") for one in (plain, backbone))
    down, up = last.get_submodule("adapter.down"), last.get_submodule("adapter.up")
    inner = torch.randn(2, 5, 32)
    hidden: torch.Tensor = frozen(inner)
    torch.testing.assert_close(last(inner), hidden + up(gelu(down(hidden), approximate="tanh")))


def test_names_and_shapes_are_those_of_the_layers(tiny: Callable[..., Backbone]) -> None:
    backbone = tiny("gpt2")
    own = {name for name, _ in backbone.model.named_parameters()}
    insert_adapter(backbone, settings(width=3, adapter_places="feed_forward"), allowed=None)
    shapes = {"down.weight": (3, 16), "down.bias": (3,), "up.weight": (16, 3), "up.bias": (16,)}
    assert {name: value.shape for name, value in backbone.model.named_parameters() if name not in own} == {
        f"transformer.h.{layer}.mlp.c_proj.adapter.{key}": shape for layer in (0, 1) for key, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("allowed", "changes", "note"),
    [
        (490, {}, "width 1 in attention and feed-forward of every layer: 490"),
        (489, {}, "width 3 in feed-forward of every layer: 460"),
        (196, {}, "width 1 in feed-forward of every layer: 196"),
        (195, {}, "width 2 in feed-forward of the encoder's layers: 164"),
        (98, {}, "width 1 in feed-forward of the encoder's layers: 98"),
        (489, {"adapter_places": "all"}, "width 3 in attention and feed-forward of the encoder's layers: 460"),
        (489, {"placement": "encoder"}, "width 3 in attention and feed-forward of the encoder's layers: 460"),
        (980, {"adapter_places": "feed_forward"}, "width 6 in feed-forward of every layer: 856"),
        (980, {"width": 1}, "width 1 in attention and feed-forward of every layer: 490"),
        (980, {"width": 4}, "width 4 in feed-forward of every layer: 592"),
    ],
)
def test_the_widest_places_in_the_budget_are_taken(
    tiny: Callable[..., Backbone], allowed: int, changes: dict[str, Any], note: str
) -> None:
    insertion = insert_adapter(tiny("t5"), settings(**changes), allowed=allowed)
    assert insertion.note == f"Adapter: {note} of {allowed} parameters"


def test_a_budget_too_small_is_refused(tiny: Callable[..., Backbone]) -> None:
    with pytest.raises(UsageError) as raised:
        insert_adapter(tiny("t5"), settings(), allowed=97)
    assert str(raised.value) == (
        "Adapter cannot meet the budget of 97 parameters: the nearest setting, width 1 in feed-forward of the "
        "encoder's layers, costs 98. Raise method.budget to that or choose another method"
    )


@pytest.mark.parametrize(("fraction", "lowest"), [(0.0, 0), (0.4, 5), (0.5, 6), (0.9, 11)])
def test_adapterdrop_leaves_out_the_lowest_layers_of_each_stack(
    meta_t5_base: Callable[[], Backbone], fraction: float, lowest: int
) -> None:
    backbone = meta_t5_base()
    insertion = insert_adapter(
        backbone, settings(name="adapter_drop", width=2, dropped_fraction=fraction), allowed=None
    )
    layers = {(name.split(".")[0], int(name.split(".")[2])) for name in places(backbone)}
    assert layers == {(stack, layer) for stack in ("encoder", "decoder") for layer in range(lowest, 12)}
    assert insertion.note.startswith(
        f"AdapterDrop: width 2 in attention and feed-forward of every layer but the lowest {100 * fraction:.0f} %: "
    )


def test_adapters_themselves_drop_no_layer(tiny: Callable[..., Backbone]) -> None:
    backbone = tiny("t5")
    insert_adapter(backbone, settings(width=1, dropped_fraction=1.0), allowed=None)
    assert len(places(backbone)) == 10


def test_no_layer_left_is_refused(tiny: Callable[..., Backbone]) -> None:
    with pytest.raises(UsageError) as raised:
        insert_adapter(tiny("t5"), settings(name="adapter_drop", dropped_fraction=0.8), allowed=1000)
    assert str(raised.value) == (
        "method.dropped_fraction is 0.8, which leaves none of these layers of 't5' with adapters. Lower it, for "
        "example to 0.4"
    )


def test_an_encoder_without_layers_left_is_no_choice(
    make_t5: Callable[..., PreTrainedModel], tiny: Callable[..., Backbone]
) -> None:
    backbone = tiny("t5")._replace(model=make_t5(num_layers=1, num_decoder_layers=4))
    drop = settings(name="adapter_drop", dropped_fraction=0.6)
    with pytest.raises(
        UsageError, match=r"^method\.dropped_fraction is 0\.6, which leaves none of these layers of 't5'"
    ):
        insert_adapter(backbone, replace(drop, placement="encoder"), allowed=1000)
    insertion = insert_adapter(backbone, drop, allowed=100)
    assert places(backbone) == {f"decoder.block.{layer}.layer.2.DenseReluDense.wo" for layer in (2, 3)}
    assert (
        insertion.note
        == "AdapterDrop: width 1 in feed-forward of every layer but the lowest 60 %: 98 of 100 parameters"
    )


def test_a_type_with_unknown_layers_is_refused(tiny: Callable[..., Backbone]) -> None:
    with pytest.raises(UsageError) as raised:
        insert_adapter(tiny("olmo"), settings(), allowed=1000)
    assert str(raised.value) == (
        "Adapter does not know the layers of 'olmo', which is of type 'olmo'. Choose a backbone of one of the types "
        "bart, bert, gpt2, llama, mbart, mistral, mt5, qwen2, qwen3, roberta, t5, xlm-roberta; or another method, such "
        "as dept"
    )


def test_adapters_are_put_in_once(tiny: Callable[..., Backbone]) -> None:
    backbone = tiny("t5")
    insert_adapter(backbone, settings(width=1), allowed=None)
    with pytest.raises(UsageError) as raised:
        insert_adapter(backbone, settings(width=1), allowed=None)
    assert str(raised.value) == "'t5' has adapters already, and takes them once. Load the backbone anew"
