"""P-tuning: its network is PEFT's, its prompt is computed anew wherever one is read, and its size is the budget's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from dept_vl.model.adapter import foreign_tensors, restore_tensors, trained_tensors
from dept_vl.model.backbone import Backbone
from dept_vl.model.methods.prompt_encoder import EncodedPrompt, make_encoded_prompt
from dept_vl.model.multimodal_encoder import MultimodalEncoder
from dept_vl.model.prompted_model import PromptedModel
from dept_vl.model.prompted_text import CausalInput
from dept_vl.model.soft_prompt import SoftPrompt
from dept_vl.model.trainable import ParameterGroup, select_trainable
from dept_vl.settings import OptimizerSettings
from dept_vl.types import Batch
from feature_extraction.errors import UsageError

NAMES = {"vectors", *(f"network_{layer}_{part}" for layer in (0, 2, 4) for part in ("weight", "bias"))}


def encoded(seed: int = 0, *, length: int = 3, width: int = 5) -> EncodedPrompt:
    torch.manual_seed(seed)
    return make_encoded_prompt(torch.randn(length, 16), width=width, allowed=None)[0]


def assemble(backbone: Backbone, prompt: SoftPrompt) -> tuple[PromptedModel, list[ParameterGroup]]:
    t5: Any = backbone.model
    encoder = MultimodalEncoder(t5_encoder=t5.encoder, prompt=prompt, visual_embedding=None)
    model = PromptedModel(backbone=t5, encoder=encoder, heads={}).eval()
    return model, select_trainable(model, [], OptimizerSettings())


def test_the_network_is_that_of_peft() -> None:
    peft = pytest.importorskip("peft")
    settings = {"num_virtual_tokens": 3, "token_dim": 16, "encoder_hidden_size": 5, "num_transformer_submodules": 1}
    theirs = peft.PromptEncoder(peft.PromptEncoderConfig(**settings, encoder_reparameterization_type="MLP"))
    prompt = encoded()
    theirs.embedding.weight.data.copy_(prompt.vectors)
    theirs.mlp_head.load_state_dict(prompt.network.state_dict())
    torch.testing.assert_close(prompt.prompt, theirs(torch.arange(3)), rtol=1e-6, atol=1e-6)
    assert sum(value.numel() for value in prompt.parameters()) == sum(value.numel() for value in theirs.parameters())


def test_the_prompt_stands_before_the_text_as_a_plain_one_of_the_same_numbers_would(
    backbone: Backbone, make_batch: Callable[..., Batch]
) -> None:
    prompt, batch = encoded(), make_batch(images=0)
    plain = SoftPrompt(prompt.prompt.detach())
    got, expected = (assemble(backbone, one)[0].encoder(batch) for one in (prompt, plain))
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_it_is_read_wherever_a_prompt_is() -> None:
    prompt = encoded()
    assert len(prompt.prompt) == 3
    assert prompt.prompt.shape == (3, 16)
    assert prompt.for_task("vqa") is prompt
    assert prompt.by_name() == {"prompt": prompt}
    assert prompt.prompt.detach().norm() > 0
    embedded = torch.randn(2, 4, 16)
    assert prompt.embed_text(embedded, torch.ones(2, 4, dtype=torch.bool)) is embedded


def test_a_decoder_generates_after_it(tiny: Callable[..., Backbone], make_batch: Callable[..., Batch]) -> None:
    backbone, batch = tiny("gpt2"), make_batch((5, 3), images=0)
    text = CausalInput(embeddings=backbone.embeddings, prompt=encoded())
    states, mask = text(batch)
    with text.while_generating(backbone.model, "vqa"):
        more = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        got = cast(Any, backbone.model).generate(inputs_embeds=states, attention_mask=mask.long(), **more)
    assert got.shape == (2, 4)


def test_everything_trains_at_the_adapters_rate_and_gets_gradients(
    backbone: Backbone, make_batch: Callable[..., Batch]
) -> None:
    model, groups = assemble(backbone, encoded())
    (group,) = groups
    assert group.name == "adapter"
    assert set(group.parameters) == {f"prompt.{name}" for name in NAMES}
    cast(Any, model.encoder(make_batch(images=0))[0].pow(3).sum()).backward()
    assert all(value.grad is not None and value.grad.any() for value in group.parameters.values())
    assert {id(value) for value in model.parameters() if value.requires_grad} == set(map(id, group.parameters.values()))


def test_it_comes_back_from_its_tensors(backbone: Backbone, make_batch: Callable[..., Batch]) -> None:
    batch = make_batch(images=0)
    model, groups = assemble(backbone, encoded(seed=0))
    other, other_groups = assemble(backbone, encoded(seed=1))
    states = model.encoder(batch)[0]
    assert not torch.equal(other.encoder(batch)[0], states)
    tensors = trained_tensors(model, groups)
    restore_tensors(other, other_groups, tensors, Path("adapter"))
    assert torch.equal(other.encoder(batch)[0], states)
    assert foreign_tensors(tensors) == sorted(tensors)  # not for the prompts of any Hugging Face model


def test_the_network_is_drawn_from_the_seed() -> None:
    first, again, other = encoded(0), encoded(0), encoded(1)
    assert torch.equal(first.prompt, again.prompt)
    assert not torch.equal(first.prompt, other.prompt)


@pytest.mark.parametrize(
    ("allowed", "width", "note"),
    [
        (76_800, None, "width 28 in a network behind 40 vectors: 75,336 of 76,800 parameters"),
        (76_800, 20, "width 20 in a network behind 40 vectors: 62,648 of 76,800 parameters"),
        (None, 768, "width 768 in a network behind 40 vectors: 1,802,496 parameters"),
    ],
)
def test_the_widest_network_beside_forty_vectors_of_t5_base(allowed: int | None, width: int | None, note: str) -> None:
    prompt, told = make_encoded_prompt(torch.zeros(40, 768), width=width, allowed=allowed)
    size = sum(value.numel() for value in prompt.parameters())
    assert told == f"P-tuning: {note}"
    assert f": {size:,} " in told


def test_vectors_that_leave_nothing_for_a_network_are_refused() -> None:
    with pytest.raises(UsageError) as raised:
        make_encoded_prompt(torch.zeros(100, 768), width=None, allowed=76_800)
    assert str(raised.value) == (
        "P-tuning cannot meet the budget of 76,800 parameters: the nearest setting, width 1 in a network behind 100 "
        "vectors, costs 79,107. Raise method.budget to that or choose another method"
    )
