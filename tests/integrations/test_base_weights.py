"""An adapter knows its base model in any precision that keeps the numbers, and whatever was put into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

pytest.importorskip("peft")

from dept_vl.integrations.base_weights import BaseWeights
from dept_vl.model.backbone import weight_digest
from feature_extraction.errors import IncompatibleError

Make = Callable[..., Any]


def weights(model: PreTrainedModel) -> BaseWeights:
    return BaseWeights(model, added="prompted_input")


def check(model: PreTrainedModel, identity: dict[str, Any], *replaced: str) -> None:
    weights(model).refuse_others(identity, replaced=replaced, source="The adapter")


@pytest.mark.parametrize("kind", ["t5", "gpt2", "bert"])
def test_the_digest_is_that_of_our_own_adapters_whatever_was_put_in(
    make_model: Make, make_prompted: Make, kind: str
) -> None:
    expected = weight_digest(make_model(kind))
    assert weights(make_model(kind)).identity(replaced=())["backbone.weight_digest"] == expected
    model = make_prompted(kind, modules_to_save=["lm_head"] if kind != "bert" else None)
    assert model.base_model.base_weights.identity(replaced=())["backbone.weight_digest"] == expected


def test_modules_that_the_adapter_brings_do_not_count(make_model: Make) -> None:
    model, other = make_model("bert"), make_model("bert")
    identity = weights(model).identity(replaced=["classifier"])
    with torch.no_grad():
        other.classifier.weight += 1
    check(other, identity, "classifier")
    with pytest.raises(IncompatibleError):
        check(other, weights(model).identity(replaced=()))


def test_other_weights_are_refused_with_a_way_round(make_model: Make) -> None:
    identity = weights(make_model("gpt2")).identity(replaced=())
    with pytest.raises(IncompatibleError) as raised:
        check(make_model("gpt2", seed=1), identity)
    first, _, row, advice = str(raised.value).splitlines()
    assert first == "The adapter was trained on another base model (expected: its own; got: this one):"
    assert row.split()[0] == "backbone.weight_digest"
    assert advice == (
        "Load that base model. To use the adapter on this one all the same, read its configuration with "
        "DeptConfig.from_pretrained, set dept_vl to None in it, and give it to PeftModel.from_pretrained as config"
    )
    other = make_model("gpt2", seed=1)
    other.name_or_path = "elsewhere"
    with pytest.raises(IncompatibleError, match=r"backbone\.name +None +elsewhere"):
        check(other, identity)


def test_more_precise_weights_are_rounded_to_those_of_the_training(make_model: Make) -> None:
    trained = make_model("gpt2").to(torch.bfloat16)
    identity = weights(trained).identity(replaced=())
    assert identity["backbone.dtype"] == "bfloat16"
    check(make_model("gpt2"), identity)
    with pytest.raises(IncompatibleError):
        check(make_model("gpt2", seed=1), identity)


def test_rounded_or_quantised_weights_cannot_be_told_and_a_warning_says_so(make_model: Make) -> None:
    identity = weights(make_model("gpt2")).identity(replaced=())
    message = (
        r"The adapter was trained on weights in float32; here they are in bfloat16 or quantised, so it is not checked "
        r"that they are the same\. Load the base model with dtype=float32 once to have it checked"
    )
    with pytest.warns(UserWarning, match=message):
        check(make_model("gpt2").to(torch.bfloat16), identity)
    quantised = make_model("gpt2", seed=1)
    quantised.is_quantized = True
    with pytest.warns(UserWarning, match="in float32 or quantised"):
        check(quantised, identity)


def test_weights_are_digested_once(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(tensors: dict[str, torch.Tensor]) -> str:
        calls.append(len(tensors))
        return "digest"

    monkeypatch.setattr("dept_vl.integrations.base_weights.weight_digest", counted)
    base = weights(make_model("t5"))
    for _ in range(3):
        base.identity(replaced=())
    assert len(calls) == 1
