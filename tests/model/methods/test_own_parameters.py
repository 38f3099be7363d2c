"""Full fine-tuning, BitFit and LN tuning: which of the backbone's own parameters train."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dept_vl.model.backbone import Backbone
from dept_vl.model.methods.insertion import Insertion
from dept_vl.model.methods.own_parameters import train_all, train_biases, train_norms
from dept_vl.settings import MethodSettings
from feature_extraction.errors import UsageError


def chosen(backbone: Backbone, insertion: Insertion) -> set[str]:
    found = {id(value) for value in insertion.parameters}
    assert len(found) == len(insertion.parameters)
    assert insertion.group == "backbone"
    return {name for name, value in backbone.model.named_parameters() if id(value) in found}


@pytest.mark.parametrize("kind", ["t5", "gpt2", "bert"])
def test_everything_trains_whatever_the_budget(tiny: Callable[..., Backbone], kind: str) -> None:
    backbone = tiny(kind)
    insertion = train_all(backbone, MethodSettings(name="full"), allowed=1)
    assert chosen(backbone, insertion) == {name for name, _ in backbone.model.named_parameters()}
    assert insertion.note == ""


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        (
            "bart",
            "k_proj, v_proj, q_proj, out_proj, self_attn_layer_norm, fc1, fc2, final_layer_norm, layernorm_embedding, "
            "encoder_attn_layer_norm",
        ),
        ("gpt2", "ln_1, c_attn, c_proj, ln_2, c_fc, ln_f"),
        ("qwen2", "q_proj, k_proj, v_proj"),
        ("bert", "LayerNorm, query, key, value, dense"),
    ],
)
def test_biases_train_and_the_note_says_which_layers_have_them(
    tiny: Callable[..., Backbone], kind: str, layers: str
) -> None:
    backbone = tiny(kind)
    names = {name for name, value in backbone.model.named_parameters() if name.endswith(".bias")}
    size = sum(backbone.model.get_parameter(name).numel() for name in names)
    insertion = train_biases(backbone, MethodSettings(name="bitfit"), allowed=5000)
    assert chosen(backbone, insertion) == names
    assert insertion.note == f"BitFit: the biases of {layers}: {size:,} of 5,000 parameters"


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_backbone_without_biases_is_refused(tiny: Callable[..., Backbone], kind: str) -> None:
    """T5's relative attention bias is an embedding table."""
    with pytest.raises(UsageError) as raised:
        train_biases(tiny(kind), MethodSettings(name="bitfit"), allowed=None)
    assert str(raised.value) == (
        f"BitFit trains biases, and {kind!r} ({kind}) has none. Choose --method ln_tuning, which trains its norms, or "
        "a backbone with biases, such as a BART, GPT-2 or BERT"
    )


@pytest.mark.parametrize(
    ("kind", "norms", "size"),
    [
        ("t5", "layer_norm, final_layer_norm", 12 * 16),
        (
            "bart",
            "self_attn_layer_norm, final_layer_norm, layernorm_embedding, encoder_attn_layer_norm",
            (2 * 2 + 2 * 3 + 2) * 32,
        ),
        ("gpt2", "ln_1, ln_2, ln_f", 5 * 32),
        ("llama", "input_layernorm, post_attention_layernorm, norm", 5 * 16),
        ("bert", "LayerNorm", 5 * 32),
    ],
)
def test_norms_train_with_their_biases(tiny: Callable[..., Backbone], kind: str, norms: str, size: int) -> None:
    backbone = tiny(kind)
    insertion = train_norms(backbone, MethodSettings(name="ln_tuning"), allowed=None)
    assert {name.split(".")[-2] for name in chosen(backbone, insertion)} == set(norms.split(", "))
    assert sum(value.numel() for value in insertion.parameters) == size
    assert insertion.note == f"LN tuning: the norms {norms}: {size} parameters"


def test_norms_without_parameters_are_refused(tiny: Callable[..., Backbone]) -> None:
    with pytest.raises(UsageError) as raised:
        train_norms(tiny("olmo"), MethodSettings(name="ln_tuning"), allowed=None)
    assert str(raised.value) == (
        "LN tuning trains norms, and those of 'olmo' (olmo) have no parameters. Choose another method, such as dept"
    )


def test_a_budget_too_small_is_refused(meta_t5_base: Callable[[], Backbone], tiny: Callable[..., Backbone]) -> None:
    assert train_norms(meta_t5_base(), MethodSettings(), allowed=76_800).note == (
        "LN tuning: the norms layer_norm, final_layer_norm: 47,616 of 76,800 parameters"
    )
    with pytest.raises(UsageError) as raised:
        train_norms(tiny("t5"), MethodSettings(), allowed=191)
    assert str(raised.value) == (
        "LN tuning cannot meet the budget of 191 parameters: it has no size, and the nearest setting, the norms "
        "layer_norm, final_layer_norm, costs 192. Raise method.budget to that or choose another method"
    )
    with pytest.raises(UsageError, match=r"^BitFit cannot meet the budget of 10 parameters: it has no size"):
        train_biases(tiny("qwen2"), MethodSettings(), allowed=10)
